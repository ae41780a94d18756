"""Cross-validation, `split.fold=all`: every fold an ordinary run, one parent that judges what all of them predicted.

A fold was not trained on the faces it predicts, so the predictions of all folds together cover the data set once. The
parent's folder looks like a run's: config.yaml, figures/test.json, figures/test_predictions.csv, and folds.json in
place of weights. The same command finds the folds that are done and goes on with the others.
"""

from __future__ import annotations

import copy
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig

from fer_lab.cli import ROOT, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fer_lab.data.datamodule import FaceData
    from fer_lab.data.faces import Index
    from fer_lab.data.splits import Split
    from fer_lab.evaluate import Judgement
    from fer_lab.evaluation.audits import Audit
    from fer_lab.fit import Result
    from fer_lab.learning.module import FerModule
    from fer_lab.tracking.record import RunRecord

FOLDS = "folds.json"
Entry = dict[str, Any]
"""One fold in folds.json: fold, run, count, subjects, validation (its score), epochs, seconds, inference_ms, scores."""


@dataclass
class FoldJob:
    """One fold as the training sees it: lean like a sweep's trial, but never cut short, and its weights are kept."""

    name: str
    parent: str
    tags: Mapping[str, str] = field(default_factory=dict)

    def report(self, epochs: int, score: float) -> bool:
        return False

    def keeps(self, score: float) -> bool:
        return True


def cross_validate(cfg: DictConfig) -> Result:
    """Trains, finds or continues every fold, and judges their predictions together."""
    from fer_lab.build import build_data, signature, starting_weights
    from fer_lab.data.faces import digest
    from fer_lab.tracking.address import tracking_uri
    from fer_lab.tracking.forward import settle, tracked
    from fer_lab.tracking.record import open_run, reconcile
    from fer_lab.train import refuse_what_cannot_be, run_name

    refuse_what_cannot_be(cfg, alone=True)
    uri, runs, first = tracking_uri(cfg.tracking.uri), Path(cfg.runs_dir), of_fold(cfg, 0)
    count = fold_count(cfg)
    data = build_data(first)
    identity = digest("every fold", signature(first, data, starting_weights(first, uri)[1]))
    reconcile(runs)
    with open_run(runs, run_name(of_fold(cfg, "all", "-cv"), runs, identity), identity) as record:
        if record.standing == "finished" and (record.folder / FOLDS).exists():
            print("these settings, data and weights were cross-validated before (rerun=true does it again)")
            return conclude(record.folder)
        with tracked(record, uri, cfg.tracking.experiment):
            describe_folds(record, first, data)
            if done := len(read_entries(record.folder)):
                print(f"going on with run {record.name}: {done} of {count} folds are done")
            entries = [train_fold(of_fold(cfg, number), count, record) for number in range(count)]
            judge_together(record, first, data, entries)
        settle()  # the folds' own records
        return conclude(record.folder)


def of_fold(cfg: DictConfig, fold: int | str, ending: str = "") -> DictConfig:
    """A config of its own, since whoever builds from it also writes into it."""
    mine = copy.deepcopy(cfg)
    mine.split.fold = fold
    mine.name = f"{cfg.name}{ending}"
    return mine


def fold_count(cfg: DictConfig) -> int:
    from fer_lab.build import instantiate, load_data

    if not hasattr(get_object(cfg.split._target_), "fold_count"):
        raise UsageError(
            "split.fold=all needs a split with folds: split=kfold or split=leave_one_subject_out"
        )
    return int(instantiate(cfg.split).fold_count(load_data(of_fold(cfg, 0)).cache.index))


def describe_folds(record: RunRecord, first: DictConfig, data: FaceData) -> None:
    from fer_lab.describe import write_config
    from fer_lab.tracking.environment import log_environment

    write_config(record, of_fold(first, "all"))
    log_environment(record, ROOT)
    record.tags(
        {
            "fer.kind": "cross-validation",
            "fer.signature": record.signature,
            "fer.mixes_subjects": data.split.mixes_subjects,
        }
    )
    index = data.index
    record.dataset(index.name, index.digest, "test", index.counts(), str(first.data.root or ""))


def train_fold(cfg: DictConfig, count: int, parent: RunRecord) -> Entry:
    """The fold's entry in folds.json, from there if it was trained before."""
    from fer_lab.train import train

    entries, number = read_entries(parent.folder), cfg.split.fold
    for entry in entries:
        if entry["fold"] == number and predictions_of(parent.folder, entry).exists():
            return entry
    words = [word for word in HydraConfig.get().overrides.task if not word.startswith("split.fold=")]
    command = shlex.join(["python", "-m", "fer_lab.train", *words, f"split.fold={number}"])
    tags = {"fer.kind": "fold", "fer.fold": str(number), "command": command, "mlflow.source.name": command}
    job = FoldJob(f"{parent.name} fold {number}", parent.name, tags)
    result = train(copy.deepcopy(cfg), job, predict_test)
    if not predictions_of(
        parent.folder, {"run": result.run}
    ).exists():  # a sweep trained it, and kept no weights
        result = train(cfg)
    entry = {"fold": number, "run": result.run, "validation": result.score, "epochs": result.epochs}
    entry |= {"seconds": result.seconds} | what_it_told(parent.folder.parent / result.run)
    write_entries(parent.folder, [*entries, entry])
    parent.metrics({f"folds/test_{name}": value for name, value in entry["scores"].items()}, step=number)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in list(entry["scores"].items())[:2])
    print(f"fold {number + 1} of {count}: {shown} on {entry['count']} faces · run {result.run}", flush=True)
    return entry


def predict_test(module: FerModule, data: FaceData, record: RunRecord, views: str) -> None:
    """What the best weights say of the fold's test faces, into its folder: quick scores, no figures."""
    from fer_lab.evaluate import Judgement, inference_ms, predict, write_predictions, write_scores
    from fer_lab.fit import best_weights, outcome_of
    from fer_lab.models.weights import read

    module.judged.load_state_dict(read(best_weights(record)))
    rows, classes = data.split.test, tuple(module.task.classes)
    found = predict(module, data, rows, views)
    affect = found[:, len(classes) :] if found.shape[1] > len(classes) else None
    truth = None if data.index.affect is None else data.index.affect[rows]
    labels, milliseconds = data.index.labels[rows], inference_ms(module, data, rows[:8], views)
    scores = quick_scores(found[:, : len(classes)], labels, affect, truth)
    told = found[:, : len(classes)]
    judgement = Judgement("test", classes, rows, labels, told, scores, {}, {}, milliseconds, affect)
    folder = record.folder / "figures"
    folder.mkdir(exist_ok=True)
    for path in (write_scores(judgement, folder), write_predictions(judgement, data, folder)):
        record.artifact(path)
    final = {f"final/test_{name}": value for name, value in scores.items()}
    record.metrics(final, step=outcome_of(record)["best_epoch"])


def quick_scores(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    affect: NDArray[np.float32] | None,
    truth: NDArray[np.float32] | None,
) -> dict[str, float]:
    import torch

    from fer_lab.evaluation.affect import quick_affect_metrics
    from fer_lab.evaluation.metrics import quick_metrics

    scores: dict[str, float] = {}
    if probabilities.shape[1]:
        logits = torch.from_numpy(probabilities).clamp_min(1e-12).log()
        scores = quick_metrics(logits, torch.from_numpy(labels))
    if affect is not None and truth is not None:
        scores |= quick_affect_metrics(affect, truth)
    return scores


def what_it_told(folder: Path) -> Entry:
    """Of a fold's own files: how many faces it judged, how well, and how fast it is."""
    known = json.loads((folder / "figures/test.json").read_text())
    return {
        "count": known["count"],
        "inference_ms": known["inference_ms"],
        "scores": {name: value for name, value in known["scores"].items() if value == value},
    }


def judge_together(record: RunRecord, cfg: DictConfig, data: FaceData, entries: list[Entry]) -> None:
    """The figures of all folds' predictions as one, also without copies, and how the folds' own scores spread."""
    from fer_lab.clean import audit_of, without
    from fer_lab.describe import keep_clean
    from fer_lab.evaluate import write

    judgement = pooled(record.folder, entries, data)
    (record.folder / "figures").mkdir(exist_ok=True)
    for path in write(judgement, data, record.folder / "figures"):
        record.artifact(path)
    bounds = {
        f"test_{name}_{end}": value
        for name, interval in judgement.intervals.items()
        for end, value in interval._asdict().items()
    }
    final = {f"test_{name}": value for name, value in judgement.scores.items()} | bounds
    for name, (mean, deviation) in spread(entries).items():
        final |= {f"folds_{name}_mean": mean, f"folds_{name}_sd": deviation}
    record.metrics({f"final/{name}": value for name, value in final.items() if value == value}, step=0)
    if audit := audit_of(cfg, data.index):
        record.tags({"fer.audit": audit.digest})
        splits = fold_splits(record.folder, entries, data.index) or []
        copied = copied_faces(audit, data.index, judgement.rows, splits)
        keep_clean(record, judgement, without(judgement, data.index, copied), step=0)
    record.artifact(FOLDS)


def fold_splits(folder: Path, entries: Sequence[Entry], index: Index) -> list[Split] | None:
    """What each fold trained on, chose by and judged, as its run recorded it, in rows of the index; None where the run
    of a fold is gone."""
    import numpy as np

    from fer_lab.data.faces import USAGES
    from fer_lab.data.splits import Split

    place = {name: row for row, name in enumerate(index.names)}
    found = []
    for entry in entries:
        path = folder.parent / entry["run"] / "split.json"
        if not path.exists():
            return None
        parts = json.loads(path.read_text())
        rows = {usage: [place[name] for name in parts[usage] if name in place] for usage in USAGES}
        train, validation, test = (np.array(rows[usage], dtype=np.int64) for usage in USAGES)
        found.append(Split(train, validation, test))
    return found


def copied_faces(
    audit: Audit, index: Index, rows: NDArray[np.int64], splits: list[Split], usage: str = ""
) -> NDArray[np.bool_]:
    """Which of the faces at `rows` have a copy in another part of the fold that judged them, or in its `usage`."""
    import numpy as np

    from fer_lab.evaluation.audits import Copies

    copied = np.zeros(len(index), dtype=bool)
    for split in splits:
        copies = Copies.of(audit, index, split)
        found = copies.have_copy_in(split.test, getattr(split, usage)) if usage else copies.leaked("test")
        copied[split.test[found]] = True
    return copied[rows]


def pooled(folder: Path, entries: list[Entry], data: FaceData) -> Judgement:
    """Every face once, in the order of the data set, as the fold that was not trained on it saw it."""
    import numpy as np

    from fer_lab.evaluate import judgement_of
    from fer_lab.evaluation.predictions import read_predictions

    parts = [read_predictions(predictions_of(folder, entry), entry["count"]) for entry in entries]
    place = {name: row for row, name in enumerate(data.index.names)}
    rows = np.array([place[name] for part in parts for name in part.names], dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    if len(np.unique(rows)) != len(rows):
        raise UsageError(
            f"{folder}: a face was judged by two folds; delete that folder and type the command again"
        )
    values = np.concatenate([part.values for part in parts])[order]
    milliseconds = statistics.median(entry["inference_ms"] for entry in entries)
    return judgement_of("test", data.index, rows[order], values, milliseconds, parts[0].classes)


def spread(entries: list[Entry]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation over the folds of every score that all of them have."""
    names = [name for name in entries[0]["scores"] if all(name in entry["scores"] for entry in entries)]
    columns = {name: [entry["scores"][name] for entry in entries] for name in names}
    return {name: (statistics.mean(values), statistics.stdev(values)) for name, values in columns.items()}


def predictions_of(folder: Path, entry: Entry) -> Path:
    """A fold's predictions: its run lies beside its parent's."""
    return folder.parent / entry["run"] / "figures/test_predictions.csv"


def read_entries(folder: Path) -> list[Entry]:
    path = folder / FOLDS
    return json.loads(path.read_text())["folds"] if path.exists() else []


def write_entries(folder: Path, entries: list[Entry]) -> None:
    """The folds in their order, with mean and deviation of their scores; replaced as a whole."""
    from fer_lab.learning.callbacks import replace

    latest = {entry["fold"]: entry for entry in entries}
    ordered = [latest[number] for number in sorted(latest)]
    content: dict[str, Any] = {"folds": ordered}
    if len(ordered) > 1:
        content["mean_sd"] = {name: list(pair) for name, pair in spread(ordered).items()}
    replace(folder / FOLDS, lambda path: path.write_text(json.dumps(content, indent=1)))


def conclude(folder: Path) -> Result:
    """The closing table and line; the result's score is the folds' mean validation score."""
    from fer_lab.fit import Result

    entries = read_entries(folder)
    show_again(folder)
    name, (mean, deviation) = next(iter(spread(entries).items()))
    score = statistics.mean(entry["validation"] for entry in entries)
    print(
        f"{len(entries)} folds: {name} {mean:.4f} ± {deviation:.4f} (sd over folds) · run {folder.name} · "
        f"next: python -m fer_lab.evaluate run={folder.name} · make ui"
    )
    return Result(
        score=score,
        state="finished",
        run=folder.name,
        epochs=sum(entry["epochs"] for entry in entries),
        seconds=sum(entry["seconds"] for entry in entries),
        metrics={f"final/folds_{name}_mean": mean for name, (mean, _) in spread(entries).items()},
    )


def show_again(folder: Path, named: Sequence[str] = ()) -> dict[str, Any]:
    """The pooled figures as they were written; `named` is what a command wants to have judged in place of them."""
    import numpy as np

    from fer_lab.evaluate import Judgement, show
    from fer_lab.evaluation.uncertainty import Interval

    if named:
        runs = ", ".join(entry["run"] for entry in read_entries(folder)[:3])
        raise UsageError(
            f"{folder.name} is a cross-validation: it has no net of its own to judge with {', '.join(named)}; choose one "
            f"of its folds, such as {runs}, or type its train command with split.fold=0"
        )
    path = folder / "figures/test.json"
    if not path.exists():
        raise UsageError(f"{folder.name} has folds that are not trained yet; type its train command again")
    known = json.loads(path.read_text())
    intervals = {name: Interval(*bounds) for name, bounds in known["intervals_95"].items()}
    none = np.zeros(known["count"], dtype=np.int64)  # the table shows scores, and how many faces they are of
    judgement = Judgement(
        "test", (), none, none, np.zeros((0, 0), np.float32), known["scores"], intervals, {}, 0.0
    )
    show([judgement], f"{folder.name}: every face judged by the fold that was not trained on it")
    if (clean := folder / "figures/test_clean.json").exists():
        kept = json.loads(clean.read_text())
        name, score = next(iter(kept["scores"].items()))
        print(
            f"test: {name} {score:.4f} on the {kept['count']:,} faces that have no copy in another part of their fold"
        )
    return {"test": known["scores"]}
