"""Cross-validation as one command: folds are ordinary runs, what they predict is judged as one, a killed one goes on."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from fer_lab import folds, frozen
from fer_lab.build import load_data
from fer_lab.chapters.case import open_case
from fer_lab.chapters.leaks import leaks
from fer_lab.cli import UsageError
from fer_lab.data.faces import DataError, Index
from fer_lab.evaluate import evaluate
from fer_lab.evaluation.audits import Audit, Group, folder_of, write_audit
from fer_lab.evaluation.predictions import read_predictions
from fer_lab.finished import read_run
from fer_lab.tracking.forward import settle
from fer_lab.tracking.record import RunRecord
from fer_lab.train import train
from tests.composing import composed

TINY = (
    "model=small_transfer", "model.weights=null", "split=leave_one_subject_out", "split.fold=all", "scheduler=none",
    "augment=none",
    "data.source.train=42", "data.source.validation=14", "data.source.test=14", "+data.source.per_person=14",
    "data.size=32", "data.batch_size=256", "trainer.accelerator=cpu", "trainer.max_epochs=1", "threads=1",
)  # fmt: skip
"""Five drawn people with two faces of each expression; the convolutions are frozen as they were drawn."""


def config(place: Path, *words: str, runs: str = "runs", primary: str = "train") -> DictConfig:
    return composed(primary, place, *(TINY if primary == "train" else ()), *words, runs=runs)


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    yield
    settle()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def parent(place: Path) -> Path:
    """A cross-validation that died in its third fold and was typed again."""
    looks = 0
    look = frozen.look

    def counted(*arguments):
        nonlocal looks
        looks += 1
        return look(*arguments)

    def dies(cfg, count, parent):
        if cfg.split.fold == 2:
            raise KeyboardInterrupt
        return train_fold(cfg, count, parent)

    train_fold = folds.train_fold
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "look", counted)
        with pytest.MonkeyPatch.context() as inner, pytest.raises(KeyboardInterrupt):
            inner.setattr(folds, "train_fold", dies)
            train(config(place))
        (folder,) = place.glob("runs/*-cv-*")
        assert RunRecord(folder).state == "killed"
        with pytest.raises(UsageError, match="not trained yet"):
            evaluate(config(place, f"run={folder.name}", primary="evaluate"))
        done = [entry["run"] for entry in folds.read_entries(folder)]
        before = {run: (place / "runs" / run / "spool.jsonl").read_bytes() for run in done}
        audited(place)
        result = train(config(place))
    assert len(done) == 2 and result.run == folder.name
    assert all((place / "runs" / run / "spool.jsonl").read_bytes() == before[run] for run in done)
    assert looks == 3  # 70 faces, 32 at a time, once for all folds
    settle()
    return folder


def faces_of_each(index: Index) -> list[list[str]]:
    """The names of each person's faces."""
    faces = list(zip(index.names, index.subjects, strict=True))
    return [[name for name, who in faces if who == person] for person in sorted(set(index.subjects))]


def audited(place: Path) -> None:
    """Says that a face of the first person is one of the second, and that two of the third are one."""
    one = config(place, "split.fold=0")
    index = load_data(one).cache.index
    first, second, third, *_ = faces_of_each(index)
    groups = [
        Group((first[0], second[0]), ("fear", "fear"), 1.0),
        Group(tuple(third[:2]), ("fear", "anger"), 1.0),
    ]
    write_audit(
        Audit(index.name, index.digest, 0.74, tuple(groups), {}, []), {}, folder_of(index, one.cache_dir)
    )


def test_pooled_figures_also_stand_without_the_faces_that_have_a_copy_in_another_part_of_their_fold(
    parent, place, capsys
):
    pooled = read_predictions(parent / "figures/test_predictions.csv")
    index = load_data(config(place, "split.fold=0")).cache.index
    first, second, *_ = (names[0] for names in faces_of_each(index))
    hits = [
        max(row) == row[pooled.classes.index(label)]
        for name, row, label in zip(pooled.names, pooled.values, pooled.labels, strict=True)
        if name not in (first, second)
    ]
    kept = json.loads((parent / "figures/test_clean.json").read_text())
    assert kept["count"] == len(hits) == 68 and kept["scores"]["accuracy"] == pytest.approx(np.mean(hits))
    evaluate(config(place, f"run={parent.name}", primary="evaluate"))
    assert "on the 68 faces that have no copy in another part of their fold" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_leaks_of_a_cross_validation_are_those_of_each_fold(parent, place, tmp_path):
    """The first person's copy chose the epoch of her fold; the second's trained his; the third's two were apart from all."""
    cfg = config(place, f"run={parent.name}", primary="report")
    (row,) = leaks(open_case(read_run(parent), cfg, tmp_path)).blocks[0].rows
    assert row[:4] == ("test", "70", "1", "2")


def test_pooled_predictions_are_those_of_the_folds_each_face_once(parent):
    entries = json.loads((parent / "folds.json").read_text())["folds"]
    assert [entry["fold"] for entry in entries] == [0, 1, 2, 3, 4]
    pooled = read_predictions(parent / "figures/test_predictions.csv")
    parts = [read_predictions(folds.predictions_of(parent, entry)) for entry in entries]
    wanted = {name: row for part in parts for name, row in zip(part.names, part.values, strict=True)}
    assert len(pooled.names) == len(wanted) == sum(len(part.names) for part in parts) == 70
    for name, row in zip(pooled.names, pooled.values, strict=True):
        np.testing.assert_array_equal(row, wanted[name])
    for entry, part in zip(entries, parts, strict=True):  # nobody is judged by a net that trained on them
        split = json.loads((parent.parent / entry["run"] / "split.json").read_text())
        assert set(split["test"]) == set(part.names) and not set(split["train"]) & set(part.names)
    shown = json.loads((parent / "figures/test.json").read_text())
    hits = [
        max(row) == row[pooled.classes.index(label)]
        for row, label in zip(pooled.values, pooled.labels, strict=True)
    ]
    assert shown["count"] == 70 and shown["scores"]["accuracy"] == pytest.approx(np.mean(hits))
    assert (parent / "figures/test_confusion_matrix.png").exists() and (parent / "config.yaml").exists()


def test_the_interval_is_a_bootstrap_over_subjects(parent):
    with (parent / "figures/test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    people = sorted({row["name"].split("/")[1] for row in rows})
    hits = {
        person: [row["label"] == row["predicted"] for row in rows if person in row["name"]]
        for person in people
    }
    draws = np.random.default_rng(1).integers(len(people), size=(20_000, len(people)))
    right, count = (np.array([measure(hits[person]) for person in people]) for measure in (sum, len))
    low, high = np.quantile(right[draws].sum(1) / count[draws].sum(1), [0.025, 0.975])
    found = json.loads((parent / "figures/test.json").read_text())["intervals_95"]["accuracy"]
    assert found == pytest.approx([low, high], abs=0.015)


def test_mean_and_deviation_over_folds_and_the_score(parent, place):
    content = json.loads((parent / "folds.json").read_text())
    rates = [entry["scores"]["accuracy"] for entry in content["folds"]]
    assert content["mean_sd"]["accuracy"] == pytest.approx([np.mean(rates), np.std(rates, ddof=1)])
    result = train(config(place))  # found again
    assert result.score == pytest.approx(np.mean([entry["validation"] for entry in content["folds"]]))


def test_a_fold_alone_is_the_same_run(parent, place):
    entry = folds.read_entries(parent)[3]
    result = train(config(place, "split.fold=3"))
    assert result.run == entry["run"] and result.score == entry["validation"]
    again = read_predictions(place / "runs" / result.run / "figures/test_predictions.csv")
    settled = read_predictions(parent / "figures/test_predictions.csv")
    wanted = dict(zip(settled.names, settled.values, strict=True))
    np.testing.assert_allclose(again.values, [wanted[name] for name in again.names], atol=2e-6)
    fresh = train(config(place, "split.fold=3", runs="fresh"), folds.FoldJob("alone", parent=""))
    assert fresh.metrics["val/loss"] == pytest.approx(result.metrics["val/loss"], rel=1e-5)


def test_folds_are_nested_under_their_parent_in_mlflow(parent, place):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("fer_lab").experiment_id])
    (top,) = [run for run in runs if run.data.tags.get("fer.kind") == "cross-validation"]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert sorted(run.data.tags["fer.fold"] for run in nested) == ["0", "1", "2", "3", "4"]
    assert "final/test_accuracy_low" in top.data.metrics and "final/folds_accuracy_sd" in top.data.metrics
    assert {run.info.status for run in (top, *nested)} == {"FINISHED"}


def test_evaluate_shows_it_again_and_says_what_it_cannot_do(parent, place, capsys):
    found = evaluate(config(place, f"run={parent.name}", primary="evaluate"))
    assert found["test"] == json.loads((parent / "figures/test.json").read_text())["scores"]
    assert "70 faces" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"no net of its own to judge with views; choose one of its folds"):
        evaluate(config(place, f"run={parent.name}", "views=flip", primary="evaluate"))


def test_the_validating_subject_trains_too_if_told_so(tmp_path):
    train(config(tmp_path, "split.fold=1", "split.train_on_all=true"), folds.FoldJob("alone", parent=""))
    (path,) = tmp_path.glob("runs/*/split.json")
    split = json.loads(path.read_text())
    assert len(split["train"]) == 56 and set(split["validation"]) < set(split["train"])
    assert not set(split["test"]) & set(split["train"])


def test_only_train_takes_all_folds(tmp_path):
    from fer_lab.build import build_data

    with pytest.raises(DataError, match=r"split.fold=all trains 5 nets .* split.fold=0..4"):
        build_data(config(tmp_path))
    with pytest.raises(UsageError, match=r"model.weights must be named, .* runs:/ID of a trained run"):
        train(config(tmp_path, "split.fold=0", "model.weights=???"))
    with pytest.raises(UsageError, match="needs a split with folds: split=kfold"):
        train(config(tmp_path, "split._target_=fer_lab.data.splits.Official"))
