"""What a sweep leaves behind: the report says what happened, the recipe is the winner, no figure is ever in the way."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
import numpy as np
import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from PIL import Image

from fer_lab.search.confirm import ablation_jobs, confirm_jobs, verdict
from fer_lab.search.ledger import ended
from fer_lab.search.report.contour import contour
from fer_lab.search.report.page import SweepFacts, headline, range_of, write_report
from fer_lab.search.report.plots import FIGURES, history, parallel, pareto, pruning, save_figures, slices
from fer_lab.search.report.recipe import content, write_recipe
from fer_lab.search.report.trials import Search, importance
from fer_lab.search.space.grammar import Parameter

ROOT = Path(__file__).resolve().parents[2]
SGD, OTHERS = "optimizer.lr (optimizer=sgd)", "optimizer.lr (optimizer=adamw,muon)"
PARAMETERS = [
    Parameter("optimizer", "optimizer", CategoricalDistribution(["sgd", "adamw", "muon"]), ()),
    Parameter("data.batch_size", "data.batch_size", CategoricalDistribution([64, 32]), ()),
    Parameter("model.dropout", "model.dropout", FloatDistribution(0, 0.6), ()),
    Parameter(SGD, "optimizer.lr", FloatDistribution(1e-3, 0.5, log=True), (("optimizer", ("sgd",)),)),
    Parameter(OTHERS, "optimizer.lr", FloatDistribution(1e-4, 0.1, log=True), (("optimizer", ("adamw", "muon")),)),
    Parameter("optimizer.momentum", "optimizer.momentum", FloatDistribution(0.5, 0.99), (("optimizer", ("sgd",)),)),
]  # fmt: skip


def searched(count: int, direction: str = "maximize", fate: str = "") -> optuna.Study:
    """A search of the conditional space above: dropout decides, muon is best. Every fifth trial is pruned after two
    of six epochs, number 3 failed, number 4 was lost, number 6 ran out of memory; `fate`: all end that way."""
    chance = random.Random(0)
    sign = 1 if direction == "maximize" else -1
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(count):
        trial = study.ask()
        values: dict[str, object] = {}
        for one in PARAMETERS:
            if all(values[key] in choices for key, choices in one.when):
                values[one.key] = trial._suggest(one.name, one.distribution)
        peak = 0.6 - 0.5 * (values["model.dropout"] - 0.2) ** 2 + 0.01 * (values["optimizer"] == "muon")
        peak += chance.gauss(0, 0.002)
        trial.set_user_attr("overrides", [f"{key}={value}" for key, value in values.items()])
        trial.set_user_attr("run", f"run-{number}")
        state = fate or {3: "failed", 4: "lost", 6: "out_of_memory"}.get(number)
        state = state or ("pruned" if number % 5 == 2 else "complete")
        epochs = {"complete": 6, "pruned": 2}.get(state, 0)
        for epoch in range(1, epochs + 1):
            trial.report(sign * peak * (1 - 0.3**epoch), epoch)
        for key, value in {"state": state, "epochs": epochs, "seconds": 3.0 * epochs}.items():
            trial.set_user_attr(key, value)
        if state in ("failed", "out_of_memory"):
            trial.set_user_attr("error", "RuntimeError: shapes (32|7) do not fit\nsecond line")
        ends = {
            "complete": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "out_of_memory": TrialState.PRUNED,
        }
        study.tell(trial, sign * peak if state == "complete" else None, ends.get(state, TrialState.FAIL))
    return study


def compared(count: int) -> optuna.Study:
    """Two objectives: wider is better and dearer; every third trial is dominated."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for number in range(count):
        trial = study.ask()
        width = trial.suggest_int("model.width", 8 + number, 8 + number, log=True)
        trial.set_user_attr("overrides", [f"model.width={width}"])
        trial.set_user_attr("state", "complete")
        study.tell(trial, [0.3 + width / 100 - 0.05 * (number % 3 == 2), 90.0 * width**2])
    return study


def done(jobs: list[dict], score) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(direction="maximize")
    for job in jobs:
        trial = study.ask()
        for key, value in job.items():
            trial.set_user_attr(key, value)
        study.tell(trial, score(job))
    return study.trials


@pytest.fixture
def compose() -> Iterator[object]:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda words: hydra.compose("train", overrides=list(words), return_hydra_config=True)
    GlobalHydra.instance().clear()


def facts(study: optuna.Study, compose, fixed: Sequence[str] = (), **more) -> SweepFacts:
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    given = {
        "name": "r1-1a2b",
        "objectives": {"val/accuracy": "max"},
        "winner": study.best_trial if complete and len(study.directions) == 1 else None,
        "command": "python -m fer_lab.sweep -m sweeps=r1",
        "code": "46d1d9f",
        "seconds": 75.0,
        "workers": 2,
    }
    return SweepFacts(
        study=study,
        parameters=PARAMETERS,
        compose=lambda words: compose([*fixed, *words]),
        compose_train=compose,
        **{**given, **more},
    )


def rows(report: str, title: str) -> list[list[str]]:
    """The cells of the table under a title, without its header."""
    part = report.split(f"## {title}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines()[2:]]


def test_the_report_of_a_whole_sweep(tmp_path, compose):
    study = searched(40)
    third = sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda trial: -trial.value)[2]
    confirm = done(
        confirm_jobs(study, 3, 4, 0),
        lambda job: 0.58 + 0.02 * (job["of"] == third.number) + job["seed"] / 1e3,
    )
    assert verdict(confirm, study).winner.number == third.number
    when = {"optimizer.lr": ["optimizer"], "optimizer.momentum": ["optimizer"]}
    worth = {"optimizer": 0.03, "model.dropout": 0.01}
    ablation = done(
        ablation_jobs(third, when, [], 2, 0),
        lambda job: 0.6 + job["seed"] / 1e3 - worth.get(job["reverted"], 0),
    )
    sweep = facts(
        study, compose, confirm=confirm, ablation=ablation, winner=third, final={"test/accuracy": 0.61234}
    )
    paths = write_report(sweep, tmp_path)
    report = (tmp_path / "report.md").read_text()

    assert all((tmp_path / path).is_file() for path in paths)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {path.name for path in paths}
    assert set(re.findall(r"\]\((.*?)\)", report)) == {str(path) for path in paths if path.suffix == ".png"}
    assert headline(sweep) in report
    assert headline(sweep).startswith(f"val/accuracy: Trial {third.number} wins: 0.6025 [")
    said = facts_of(report)
    assert said["trials"] == "39: 29 complete, 8 pruned, 1 failed, 1 out of memory"
    assert said["not counted"] == "1 lost (others stand for them)"
    assert said["epochs trained"] == "190 of 234 without pruning"
    assert (said["time"], said["test/accuracy"]) == ("0:01:15 on 2 workers", "0.6123")
    first, *others = rows(report, "Confirmed on new seeds")
    assert first[:3] == ["1", str(third.number), "**0.6025**"]
    assert first[4] == "0.6010 0.6020 0.6030 0.6040"
    assert first[5] == f"{third.value:.4f}"
    assert len(others) == 2
    assert rows(report, "Best trials")[0][0] == str(study.best_trial.number)
    assert [row[:2] for row in rows(report, "What went wrong")] == [["failed", "3"], ["out of memory", "6"]]
    assert "shapes (32\\|7) do not fit second line" in report
    assert ["`optimizer.lr`", "0.001 to 0.5, log", "optimizer=sgd"] in rows(report, "The space")
    changed = {row[0]: row[1:] for row in rows(report, "The winner against the defaults")}
    dropout = dict(word.split("=") for word in third.user_attrs["overrides"])["model.dropout"]
    assert changed["`model.dropout`"][:2] == ["0", f"{float(dropout):.4g}"]
    assert changed["`model.dropout`"][2].startswith("+0.0100 (")
    assert f"train --config-dir {tmp_path} recipe=best " in report


def facts_of(report: str) -> dict[str, str]:
    lines = report.split("\n\n")[2].splitlines()[2:]
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("fer_lab")]


NOTHING = "No score: none of"


@pytest.mark.parametrize(
    ("study", "objectives", "says", "drawn"),
    [
        (lambda: searched(0), {"val/accuracy": "max"}, f"{NOTHING} 0 trials", set()),
        (lambda: searched(4, fate="failed"), {"val/accuracy": "max"}, f"{NOTHING} 4 trials", set()),
        (lambda: searched(12, fate="pruned"), {"val/accuracy": "max"}, f"{NOTHING} 12 trials", {"pruning"}),
        (lambda: searched(1), {"val/accuracy": "max"}, "in trial 0, the highest of 1 on one seed", {"history", "pruning"}),
        (lambda: searched(30, "minimize"), {"val/loss": "min"}, "the lowest of 21 on one seed", set(FIGURES) - {"pareto"}),
        (lambda: compared(9), {"val/accuracy": "max", "cost/parameters": "min"}, "6 of 9 trials are on the Pareto front",
         {"pareto", "slices", "importances"}),
    ],
    ids=["none", "failed", "pruned", "one", "minimize", "pareto"],
)  # fmt: skip
def test_a_report_says_what_there_is(tmp_path, compose, caplog, study, objectives, says, drawn):
    sweep = facts(study(), compose, objectives=objectives)
    if "model.width" in str(sweep.study.trials):
        sweep = facts(sweep.study, compose, objectives=objectives, winner=None)
    paths = write_report(sweep, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert says in report
    assert {path.stem for path in paths if path.suffix == ".png"} == drawn
    assert not warned(caplog), "a figure was left out because it failed"
    assert (sweep.winner is not None) == (tmp_path / "recipe/best.yaml").exists()


@pytest.mark.parametrize("words", [
    ["optimizer=sgd", "optimizer.lr=0.03", "optimizer.momentum=0.8", "model.dropout=0.25", "data.batch_size=32"],
    ["recipe=fer2013_small", "optimizer=adamw", "optimizer.lr=2e-05", "scheduler=none", "data.source.root=/faces"],
    ["recipe=r0_jaffe_vgg19_code", "model.freeze=none", "patience=null", "seed=3", "+augment.note=[1,a]"],
    ["recipe=fer2013_vgg", "optimizer=adam", "trainer=smoke", "optimizer.weight_decay=0", "monitor=val/loss", "mode=min"],
    ["model=vgg19", "data=folder", "split=kfold", "balance=r2", "name=a-${seed}", "~optimizer.fused", "optimizer=adam"],
])  # fmt: skip
def test_the_recipe_composes_the_winner_again(tmp_path, compose, words):
    best = compose(words)
    more = write_recipe(tmp_path / "recipe/best.yaml", best, compose, ["score 0.6", "commit"])
    again = compose([f"hydra.searchpath=[file://{tmp_path}]", "recipe=best", *more])
    assert content(again) == content(best)
    assert type(again.optimizer.weight_decay) is type(best.optimizer.weight_decay)
    assert more == (["~optimizer.fused"] if "~optimizer.fused" in words else [])


def test_the_recipe_is_taken_by_the_command_line(tmp_path, compose):
    study = searched(12)
    sweep = facts(study, compose, ["recipe=fer2013_small", "tracking.uri=postgresql://me:secret@host/db"])
    write_report(sweep, tmp_path)
    assert "secret" not in (tmp_path / "recipe/best.yaml").read_text()
    report = (tmp_path / "report.md").read_text()
    command = (
        next(line for line in report.splitlines() if "recipe=best" in line).partition("#")[0].split()[1:]
    )
    done = subprocess.run(
        [sys.executable, *command, "--cfg", "job"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    printed = OmegaConf.create(done.stdout)
    assert isinstance(printed, DictConfig), done.stderr
    assert content(printed) == content(sweep.compose(sweep.winner.user_attrs["overrides"]))


def seen(study: optuna.Study, metrics=("val/accuracy",)) -> Search:
    return Search(study, tuple(metrics), ended(study))


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_history_shows_each_score_once_and_nothing_of_the_lost():
    study = searched(40)
    study.add_trial(optuna.create_trial(value=0.01, user_attrs={"state": "complete"}))
    search = seen(study)
    axes = history(search).axes[0]
    shown = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    complete = [trial.number for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert shown["off the page"] == [40]
    assert shown["complete"] == complete[:-1]
    assert shown["pruned"] == list(range(2, 40, 5))
    assert shown["no score"] == [3, 6]
    assert not any(4 in numbers for numbers in shown.values())
    front = np.maximum.accumulate([study.trials[number].value for number in complete])
    steps = next(line for line in axes.lines if line.get_label() == "best so far")
    assert steps.get_ydata().tolist()[:-1] == front.clip(*search.span).tolist()
    assert front[-1] == search.span[1]


def test_a_key_with_two_ranges_is_one_panel_with_two_colours():
    figure = slices(seen(searched(40)))
    panels = {axes.get_xlabel(): axes for axes in figure.axes}
    assert list(panels) == [
        "optimizer",
        "data.batch_size",
        "model.dropout",
        "optimizer.lr",
        "optimizer.momentum",
    ]
    legend = [text.get_text() for text in panels["optimizer.lr"].get_legend().get_texts()]
    assert sorted(legend) == ["optimizer=adamw,muon", "optimizer=sgd"]
    ticks = [label.get_text() for label in panels["optimizer.lr"].get_xticklabels()]
    assert ticks == ["0.0001", "0.001", "0.01", "0.1"]
    assert panels["data.batch_size"].get_legend() is None
    assert [label.get_text() for label in panels["data.batch_size"].get_xticklabels()] == ["32", "64"]


def test_parallel_crosses_a_missing_key_below_its_axis_and_ends_in_the_score():
    search = seen(searched(40))
    axes = parallel(search).axes[0]
    assert {"optimizer.momentum", "muon", "val/accuracy"} <= set(texts(axes))
    best = axes.lines[0].get_xydata()
    momentum = next(height for x, height in best if x == 4)
    assert search.best.params["optimizer"] != "sgd"
    assert momentum == pytest.approx(-0.13)
    assert best[-1] == pytest.approx([5, 1])


def test_importances_find_what_decides():
    shares = importance(seen(searched(150)))
    assert next(iter(shares)) == "model.dropout"
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(seen(searched(7))) == {}


def test_two_choices_make_a_table_of_their_best_scores():
    study = optuna.create_study(direction="maximize")
    scores = {}
    for place in range(12):
        trial = study.ask()
        pair = (
            trial.suggest_categorical("optimizer", ["sgd", "muon"]),
            trial.suggest_categorical("scheduler", ["none", "cosine"]),
        )
        scores.setdefault(pair, []).append(0.5 + place / 100)
        study.tell(trial, 0.5 + place / 100)
    axes = contour(seen(study)).axes[0]
    assert axes.get_xlabel() == "scheduler"
    written = {f"{max(values):.4f}\n({len(values)})" for values in scores.values()}
    assert set(texts(axes)) - {"–"} == written


def test_the_surface_is_highest_where_the_scores_are():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(60):
        trial = study.ask()
        x, y = trial.suggest_float("x", 1e-4, 1, log=True), trial.suggest_float("y", 0, 10)
        study.tell(trial, -((math.log10(x) + 1) ** 2) - (y - 8) ** 2 / 10)
    figure = contour(seen(study))
    axes = figure.axes[0]
    ring = axes.lines[-1].get_xydata()[0]
    keys = {"x": (math.log10(study.best_params["x"]) + 4) / 4, "y": study.best_params["y"] / 10}
    assert ring == pytest.approx([keys[axes.get_xlabel()], keys[axes.get_ylabel()]])


def test_pruning_tells_the_share_of_epochs_saved():
    figure = pruning(seen(searched(40)))
    assert figure.get_suptitle() == "8 of 37 trials pruned: 14% of the epochs saved"
    assert [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")] == [
        "complete",
        "pruned",
        "best",
    ]


def test_the_front_is_joined_and_numbered():
    study = compared(9)
    axes = pareto(seen(study, ("val/accuracy", "cost/parameters"))).axes[0]
    assert sorted(map(int, texts(axes))) == sorted(trial.number for trial in study.best_trials)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "cost/parameters (less is better)",
        "val/accuracy (more is better)",
    )


def test_a_figure_of_before_does_not_outlive_its_study_and_one_that_fails_is_left_out(
    tmp_path, monkeypatch, caplog
):
    save_figures(searched(40), ["val/accuracy"], tmp_path)
    assert Image.open(tmp_path / "slices.png").convert("RGB").getcolors(100_000)

    def parallel(search):
        raise ValueError("a bug")

    monkeypatch.setitem(FIGURES, "parallel", parallel)
    paths = save_figures(searched(6, fate="failed"), ["val/accuracy"], tmp_path)
    assert paths == []
    assert list(tmp_path.iterdir()) == []
    assert warned(caplog) == ["the figure parallel is left out"]


def test_ranges_are_written_in_words():
    ranges = optuna.distributions
    assert range_of(ranges.IntDistribution(16, 128, log=True)) == "16 to 128, whole numbers, log"
    assert range_of(ranges.FloatDistribution(0, 1, step=0.25)) == "0 to 1, in steps of 0.25"
    assert range_of(CategoricalDistribution(["a", 1])) == "choice(a, 1)"
