"""The report of a run that was really trained: every chapter is there, nothing is loaded, nothing escapes."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fer_lab.audit import audit
from fer_lab.chapters import protocol
from fer_lab.chapters.book import CHAPTERS
from fer_lab.chapters.case import open_case
from fer_lab.chapters.leaks import leaks
from fer_lab.cli import UsageError
from fer_lab.evaluate import evaluate
from fer_lab.evaluation.audits import Audit, Group, folder_of, write_audit
from fer_lab.evaluation.calibration import read_temperature
from fer_lab.explain import explain
from fer_lab.finished import read_run
from fer_lab.pages import Code, Page, Picture, Points, Section, Table, Text, Warn, render
from fer_lab.report import report
from fer_lab.tracking.forward import settle
from fer_lab.tracking.record import RunRecord
from fer_lab.train import train
from tests.composing import composed, plain

TINY = (
    "trainer=smoke", "trainer.accelerator=cpu", "threads=1", "data.size=32", "data.batch_size=28",
    "data.source.train=56", "data.source.validation=42", "data.source.test=42",
)  # fmt: skip
SECTIONS = (
    "Protocol", "Leaks", "Scores with intervals", "Seeds", "Each expression", "Confusion", "Calibration", "Robustness",
    "Label suspects", "Worst mistakes", "Training", "Model card", "Again",
)  # fmt: skip
HOSTILE = "<script>alert('x')</script> | _a_ [b](c) <img src=http://x.invalid/y.png>"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


class Tags(HTMLParser):
    """What an HTML page refers to, and its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str, str]] = []
        self.names: list[str] = []
        self.headings: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self._inside = tag
        self.links += [
            (tag, key, value or "") for key, value in attributes if key in ("src", "href", "srcset", "action")
        ]

    def handle_data(self, data: str) -> None:
        if self._inside == "h2" and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("report")
    shutil.copy(empty_store, folder / "mlflow.db")
    yield folder
    settle()


@pytest.fixture(scope="module")
def folder(home) -> Path:
    """The report of one of two runs that differ in their seed."""
    names = [train(composed("train", home, *TINY, f"seed={seed}")).run for seed in (0, 1)]
    page = report(composed("report", home, f"run={names[0]}", "faces=20", "suspects=4"))
    assert page == home / "runs" / names[0] / "report/index.html"
    return page.parent


def test_the_page_has_every_chapter_and_loads_nothing(folder):
    page = Tags((folder / "index.html").read_text())
    assert tuple(page.headings) == SECTIONS
    assert len(SECTIONS) + 2 == len(CHAPTERS)  # no valence and arousal, no folds here
    assert "script" not in page.names and "iframe" not in page.names
    for tag, key, value in page.links:
        assert value.startswith("#" if tag == "a" else "data:"), (tag, key, value[:80])
    pictures = [value for tag, _, value in page.links if tag == "img"]
    assert len(pictures) >= 9
    for value in pictures:
        assert base64.b64decode(value.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert "@import" not in (text := (folder / "index.html").read_text()) and "url(" not in text
    for anchor in (value for tag, _, value in page.links if tag == "a"):
        assert f'id="{anchor[1:]}"' in text


def test_markdown_refers_to_the_pictures_beside_it(folder):
    text = (folder / "report.md").read_text()
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(links) >= 9
    assert all((folder / link).read_bytes().startswith(b"\x89PNG") for link in links)
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == list(
        SECTIONS
    )
    for line in text.splitlines():
        if line.startswith("| ---"):
            assert line.count("|") == text.splitlines()[text.splitlines().index(line) - 1].count("|")


def test_it_says_how_the_figures_came_about(folder):
    text = (folder / "report.md").read_text()
    run = read_run(folder.parent)
    assert f"**{100 * run.main.scores['accuracy']:.1f}%" in text
    assert "looked at once, by the best weights, after the last epoch" in text
    assert (
        "Nobody has looked for copies of test faces" in text
        and "python -m fer_lab.audit data=synthetic" in text
    )
    assert "| mean ± sd |" in text and "Seeds 0 (" in text
    other = read_run(next(path for path in folder.parent.parent.iterdir() if path != folder.parent))
    pair = [one.main.scores["accuracy"] for one in (run, other)]
    assert f"| accuracy | {sum(pair) / 2:.4f} ± " in text
    assert "Expression, not feeling" in text and "Art. 5(1)(f)" in text
    assert "42 test faces of synthetic" in text


def test_the_temperature_and_the_page_are_kept_with_the_run(folder):
    from mlflow import MlflowClient

    fitted = read_temperature(folder.parent)
    assert fitted is not None and fitted.faces == 42
    record = RunRecord(folder.parent)
    assert record.tag("fer.temperature") == f"{fitted.value:.4f}"
    assert record.state == "finished"
    client = MlflowClient(f"sqlite:///{folder.parents[2]}/mlflow.db")
    experiment = client.get_experiment_by_name("fer_lab")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`fer.run` = '{folder.parent.name}'")
    kept = {item.path for place in ("", "report") for item in client.list_artifacts(run.info.run_id, place)}
    assert {"temperature.json", "report/index.html", "report/report.md", "report/robustness.png"} <= kept
    assert run.info.status == "FINISHED" and run.data.tags["fer.temperature"] == f"{fitted.value:.4f}"


def test_without_its_faces_a_run_has_a_page_still(folder, home):
    lost = home / "runs/lost"
    shutil.copytree(folder.parent, lost, ignore=shutil.ignore_patterns("report", "spool.jsonl", ".lock"))
    config = OmegaConf.load(lost / "config.yaml")
    config.data.source.test = 7
    OmegaConf.save(config, lost / "config.yaml")
    text = report(composed("report", home, "run=lost")).read_text()
    assert "Written without the faces" in text and "Not measured" in text
    assert "Worst mistakes" in text  # drawn when the run was judged


def test_the_command_of_the_leaks_chapter_fills_it(folder, home, tmp_path):
    """The printed words, through a shell's eyes, audit the very faces of the run; its figures stay as recorded."""
    cfg = composed("report", home, f"run={folder.parent.name}")
    case = open_case(read_run(folder.parent), cfg, tmp_path)
    _, code, _ = leaks(case).blocks
    (line,) = code.lines
    assert line in (folder / "report.md").read_text().splitlines()
    words = shlex.split(line)
    assert (
        words[:4] == ["python", "-m", "fer_lab.audit", "data=synthetic"] and "data.source.train=56" in words
    )
    audit(plain("audit", *words[3:]))
    assert isinstance(leaks(case).blocks[0], Table)
    case.config.views = "ten"
    assert "in ten crops" not in case.faces(case.part)
    assert ("predicted from", "each face alone") in list(protocol.facts(case))


def test_each_later_look_at_the_test_faces_is_counted(folder, home, capsys):
    run = folder.parent
    assert "looked at once, by" in protocol.looked_at(read_run(run))
    for views in ("none", "flip"):
        evaluate(composed("evaluate", home, f"run={run.name}", f"views={views}"))
    assert "judged 2 times more since" in protocol.looked_at(read_run(run))
    assert "faces that have no copy in another part" in capsys.readouterr().out  # of the audit above
    (place,) = (run / "evaluations").iterdir()
    assert json.loads((place / "test_clean.json").read_text())["count"] <= 42


def test_what_a_net_looks_at_is_kept_with_the_run(folder, home):
    from mlflow import MlflowClient

    explain(composed("explain", home, f"run={folder.parent.name}", "count=1", "checked=2", "layers=1"))
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("fer_lab")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`fer.run` = '{folder.parent.name}'")
    kept = {item.path for item in client.list_artifacts(run.info.run_id, "explain")}
    assert {"explain/maps.png", "explain/explain.md"} <= kept


def test_leaks_are_those_of_the_audit(folder, home, tmp_path):
    cfg = composed("report", home, f"run={folder.parent.name}")
    case = open_case(read_run(folder.parent), cfg, tmp_path)
    index, part = case.data.index, case.part
    copies = tuple(index.names[row] for row in (case.data.split.train[0], case.data.split.test[3]))
    audit = Audit(index.name, index.digest, 0.7, (Group(copies, ("fear", "anger"), 1.0),), {}, ["x"])
    write_audit(audit, {}, folder_of(index, cfg.cache_dir))
    table, words = leaks(case).blocks
    (row,) = (row for row in table.rows if row[0] == "test")
    assert row[1:4] == ("42", "1", "1")
    right = part.labels == part.predicted
    place = part.names.index(copies[1])
    assert row[5].startswith(f"{100 * np.delete(right, place).mean():.1f}% [")
    assert row[6].startswith("100.0%" if right[place] else "0.0%")
    assert "1 groups of copies labelled differently" in words.words and audit.digest[:16] in words.words


def test_what_cannot_be_is_refused_with_words(home, folder):
    for words, said in (
        ([], "name one of run=ID"),
        (["run=a", "anchors=true"], "2 are named: run, anchors"),
        (["run=a", "record=[b]"], "record=.* goes with anchors"),
        ([f"run={folder.parent.name}", "faces=-1"], "faces=-1: expected 0 or more"),
    ):
        with pytest.raises(UsageError, match=said):
            report(composed("report", home, *words))
    bare = home / "runs/bare"
    (bare / "figures").mkdir(parents=True)
    shutil.copy(folder.parent / "config.yaml", bare)
    with pytest.raises(UsageError, match="the run was not judged"):
        report(composed("report", home, "run=bare"))


def test_signs_of_html_and_markdown_are_words(tmp_path):
    (tmp_path / "a.png").write_bytes(PIXEL)
    blocks = [
        Text(f"{HOSTILE} `{HOSTILE}` **{HOSTILE}**"),
        Warn(HOSTILE),
        Points([HOSTILE]),
        Table((HOSTILE, "b|c"), [(HOSTILE, "`d|e`")], HOSTILE),
        Picture(tmp_path / "a.png", f'"{HOSTILE}'),
        Code([HOSTILE, "```", "</code>"]),
    ]
    page = Page(
        HOSTILE, HOSTILE, [Section(HOSTILE, blocks)], [(HOSTILE, HOSTILE, HOSTILE)], HOSTILE, [HOSTILE]
    )
    seen = Tags(render(page, "html"))
    assert "script" not in seen.names
    assert [value[:10] for tag, _, value in seen.links if tag == "img"] == ["data:image"]
    text = render(page, "md")
    outside = re.sub(r"````sh\n.*?\n````", "", text, flags=re.DOTALL)
    outside = re.sub(r"`[^`]*`", "", outside)
    assert not re.search(r"(?<!\\)<", outside)
    assert "````sh" in text
    (row,) = (line for line in text.splitlines() if "d\\|e" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


@pytest.mark.long
def test_a_cross_validation_and_a_net_without_expressions_have_a_page(home):
    words = ("split=kfold", "split.folds=3", "split.fold=all")
    folds = train(composed("train", home, *TINY, *words)).run
    text = report(composed("report", home, f"run={folds}")).with_name("report.md").read_text()
    assert "140 out-of-fold faces" in text and "## Folds" in text
    assert "every fold has a net of its own" in text and "Not measured: it is a cross-validation" in text
    felt = train(composed("train", home, *TINY, "task=valence_arousal", "monitor=val/ccc")).run
    text = report(composed("report", home, f"run={felt}")).with_name("report.md").read_text()
    assert "## Valence and arousal" in text and "## Confusion" not in text and "CCC, valence" in text
