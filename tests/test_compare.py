"""Runs on the same faces, and the leaderboard of a sweep, from files as runs and sweeps leave them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fer_lab.cli import UsageError
from fer_lab.compare import CHOSEN, Field, class_contrasts, compare, how_judged, read_field, standings
from fer_lab.data import draw
from fer_lab.evaluation.paired import chance, mcnemar
from fer_lab.search.confirm import interval
from fer_lab.standings import leaderboard, read_board
from fer_lab.tracking.record import open_run

CLASSES = ("fear", "anger", "neutral")
LABELS = np.arange(300) % 3


def answers(right: np.ndarray) -> np.ndarray:
    return np.where(right, LABELS[: len(right)], (LABELS[: len(right)] + 1) % 3)


RIGHT = {name: np.ones(300, bool) for name in ("good", "near", "bad")}
RIGHT["good"][:60] = False
RIGHT["near"][3:66] = False
RIGHT["bad"][:150] = False


def judged(
    runs: Path, name: str, chosen: np.ndarray, *, data: str = "fer2013", root: str = "", **parts: list[str]
):
    """A run as training leaves it; `parts` are the names of each part's faces."""
    with open_run(runs, name) as record:
        for part, names in (parts or {"test": [f"{row}.png" for row in range(len(chosen))]}).items():
            record.dataset(data, "d", part, {"fear": len(names)})
            write_part(record.folder / "figures", part, names, chosen)
    target = "fer_lab.data.jaffe.Jaffe" if data == "jaffe" else "fer_lab.data.fer2013.Fer2013"
    config = {"data": {"source": {"_target_": target, "root": root}, "root": root}, "classes": CLASSES}
    OmegaConf.save(OmegaConf.create(config), runs / name / "config.yaml")


def write_part(folder: Path, part: str, names: list[str], chosen: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{part}.json").write_text(json.dumps({"count": len(names), "scores": {}, "intervals_95": {}}))
    with (folder / f"{part}_predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "label", "predicted", *(f"p_{name}" for name in CLASSES)])
        for name, label, found in zip(names, LABELS, chosen, strict=False):
            table.writerow([name, CLASSES[label], CLASSES[found], *np.eye(3)[found]])


def asked(runs: Path, *names: str, **more):
    places = {"runs_dir": str(runs), "tracking": {"uri": None}, "output": str(runs.parent / "out")}
    return OmegaConf.create({"compare": list(names), **places, **more})


def test_three_runs_are_ranked_paired_and_tied(tmp_path, capsys) -> None:
    for name, right in RIGHT.items():
        judged(tmp_path / "runs", name, answers(right))
    page = compare(asked(tmp_path / "runs", "bad", "good", "near"))
    said = capsys.readouterr().out
    assert "good is tied with near" in said and "good is better than bad by 30.00 points [" in said
    assert said.splitlines()[-1].startswith(f"the comparison is in {page}")
    table = list(csv.DictReader(page.with_suffix(".csv").open()))
    assert [(line["run"], line["tied with"]) for line in table] == [
        ("good", "near"),
        ("near", "good"),
        ("bad", "none"),
    ]
    assert table[0]["accuracy %"].startswith("80.00 [7")
    pairs = list(csv.DictReader((page.parent / "compare_2.csv").open()))
    assert (pairs[0]["only first right"], pairs[0]["only second right"]) == ("6", "3")
    assert pairs[0]["p"] == f"{mcnemar(6, 3):.3f}"
    by_class = list(csv.DictReader((page.parent / "compare_3.csv").open()))
    assert [line["expression"] for line in by_class] == list(CLASSES)
    assert by_class[0]["good"] == "80.00" and by_class[0]["bad"].startswith("50.00 (-30.00 [")
    assert (page.parent / "compare.png").stat().st_size > 5000 and "![" in page.read_text()


def test_other_faces_are_left_out_or_refused(tmp_path) -> None:
    runs, names = tmp_path / "runs", [f"{row}.png" for row in range(300)]
    judged(runs, "whole", answers(RIGHT["good"]))
    judged(runs, "half", answers(RIGHT["near"][:150]))
    field = read_field(asked(runs, "whole", "half"))
    assert len(field.labels) == 150 and "whole 300, half 150" in field.notes[0]
    assert field.right["whole"].tolist() == RIGHT["good"][:150].tolist()
    judged(runs, "elsewhere", answers(RIGHT["good"]), data="rafdb")
    with pytest.raises(UsageError, match="whole on fer2013, elsewhere on rafdb; `report matrix="):
        read_field(asked(runs, "whole", "elsewhere"))
    judged(runs, "fold", answers(RIGHT["good"]), test=[f"other/{name}" for name in names])
    with pytest.raises(UsageError, match="share 0 of their faces"):
        read_field(asked(runs, "whole", "fold"))
    judged(runs, "early", answers(RIGHT["good"]), validation=names)
    judged(runs, "later", answers(RIGHT["near"]), validation=names)
    assert read_field(asked(runs, "early", "later")).notes[0] == CHOSEN
    (runs / "later/split.json").write_text(json.dumps({"train": names[:5]}))
    with pytest.raises(UsageError, match=r"later judged validation \(which trained it, too\)"):
        read_field(asked(runs, "early", "later"))
    with pytest.raises(UsageError, match="whole judged test; early judged validation"):
        read_field(asked(runs, "whole", "early"))
    with pytest.raises(UsageError, match="name two runs or more"):
        read_field(asked(runs, "whole", "whole"))


def test_runs_of_one_name_in_two_places_stay_two(tmp_path) -> None:
    for place in ("a", "b"):
        judged(tmp_path / place, "run", answers(RIGHT["good" if place == "a" else "bad"]))
    cfg = asked(tmp_path, str(tmp_path / "a/run"), str(tmp_path / "b/run"))
    assert list(read_field(cfg).right) == [str(tmp_path / "a/run"), str(tmp_path / "b/run")]
    assert compare(cfg).exists()


def test_what_a_run_or_class_is_called_stays_words_in_the_page() -> None:
    chosen = {"<b>a|b": LABELS, r"c\|d": (LABELS + 1) % 3}
    field = Field("*faces*", "test", ("<script>", "x", "y"), LABELS, chosen, None, ["a <note>"])
    text = standings(field).markdown()
    assert r"\<b\>a\|b" in text and r"c\\\|d" in text and r"a \<note\>" in text and r"\*faces\*" in text


def test_the_classes_are_corrected_together() -> None:
    """Six more faces of one class right: p .031 alone, not among three classes."""
    better, worse = LABELS.copy(), LABELS.copy()
    worse[:18:3] = 1
    field = Field("d", "test", CLASSES, LABELS, {"better": better, "worse": worse}, None)
    assert mcnemar(6, 0) == pytest.approx(2 / 2**6)
    assert [one.tied for one in class_contrasts(field, "better", "worse")] == [True] * 3
    worse[:36:3] = 1
    field = Field("d", "test", CLASSES, LABELS, {"better": better, "worse": worse}, None)
    assert [one.tied for one in class_contrasts(field, "better", "worse")] == [False, True, True]


def test_people_are_what_is_drawn_again_where_they_are_known(tmp_path) -> None:
    from fer_lab.data.jaffe import Jaffe

    root = tmp_path / "jaffe"
    root.mkdir()
    for _, _, name, _ in draw._jaffe_names():
        (root / f"{name}.tiff").write_bytes(b"")
    items = Jaffe(root).items()
    names = [item.name for item in items][:210]
    for name in ("good", "bad"):
        judged(tmp_path / "runs", name, answers(RIGHT[name][:210]), data="jaffe", root=str(root), test=names)
    field = read_field(asked(tmp_path / "runs", "good", "bad"))
    assert field.subjects == [item.subject for item in items][:210]
    (pair,) = field.duels
    assert pair.by_subject and pair.p == chance(*field.right.values(), field.subjects)
    assert "the test over subjects" in standings(field).note
    assert "cannot decide" not in how_judged(field)
    few = replace(field, subjects=[str(place % 4) for place in range(210)])
    assert how_judged(few).endswith("compare fewer runs.")
    (tmp_path / "jaffe").rename(tmp_path / "gone")
    field = read_field(asked(tmp_path / "runs", "good", "bad"))
    assert field.subjects is None and "not at hand" in field.notes[0]


def trial(number: int, score: float, **facts) -> dict:
    overrides = [f"optimizer.lr={facts.pop('lr', number)}"]
    return {
        "study": facts.pop("study", "s"), "number": number, "state": facts.pop("state", "COMPLETE"), "values": [score],
        "params": {"lr": overrides}, "user_attrs": {"overrides": overrides, "run": f"run{number}", **facts},
    }  # fmt: skip


def sweep(folder: Path, lines: list[dict], **objectives: str) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save(
        {"name": folder.name, "objectives": objectives or {"val/accuracy": "max"}}, folder / "sweep.yaml"
    )
    text = "\n".join(map(json.dumps, lines)) + '\n{"study": "s", "numb'  # its writer was killed
    (folder / "trials.jsonl").write_text(text)
    return folder


def test_a_leaderboard_ties_by_faces_and_by_seeds(tmp_path, capsys) -> None:
    runs = tmp_path / "runs"
    for number in range(5):
        with open_run(runs, f"run{number}") as record:
            record.dataset("fer2013", "d", "validation", {"fear": 600, "anger": 400})
    lines = [trial(0, 0.60), trial(1, 0.62), trial(2, 0.61), trial(3, 0.40), trial(4, 0.9, state="PRUNED")]
    lines += [trial(5, 0.62, lr=1), trial(6, 0.7, state="COMPLETE") | {"user_attrs": {"state": "lost"}}]
    seeds = {1: (0.61, 0.612, 0.611), 2: (0.58, 0.582, 0.581)}
    for of, scores in seeds.items():
        lines += [
            trial(10 * of + s, score, study="s/confirm", of=of, seed=s) for s, score in enumerate(scores)
        ]
    board = read_board(sweep(runs / "s", lines))
    assert [entry.number for entry in board.ranking] == [1, 2, 0, 3] and board.trials == 5
    assert board.ranking[0].confirmed.mean == interval(seeds[1])[0]
    assert board.ties == {1: ["0"], 2: ["0"], 0: ["1", "2"], 3: []}
    cfg = OmegaConf.create({"sweep": "s", "runs_dir": str(runs), "output": None})
    page = leaderboard(cfg)
    assert "Trial 1 leads, tied with 1 of the other 3." in capsys.readouterr().out
    (first, _, third, _) = csv.DictReader(page.with_suffix(".csv").open())
    assert first["over new seeds"] == "0.6110 [0.6085, 0.6135]" and first["in the search"].startswith(
        "0.6200 [0.589"
    )
    assert third["over new seeds"] == "" and third["tied with"] == "1, 2"


def test_a_loss_has_no_binomial_interval_and_several_objectives_no_leader(tmp_path) -> None:
    runs = tmp_path / "runs"
    board = read_board(sweep(runs / "s", [trial(0, 0.9), trial(1, 1.1)], **{"val/loss": "min"}))
    assert [entry.number for entry in board.ranking] == [0, 1] and board.ties == {0: ["1?"], 1: ["0?"]}
    with pytest.raises(UsageError, match="no trial that was trained to its end"):
        read_board(sweep(runs / "t", []))
    with pytest.raises(UsageError, match="2 objectives"):
        read_board(sweep(runs / "u", [trial(0, 1)], **{"val/loss": "min", "cost/seconds": "min"}))
