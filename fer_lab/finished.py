"""A finished run as its files tell it, without its net: what it was told, what it predicted, who its siblings are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError
from fer_lab.evaluation.predictions import read_predictions
from fer_lab.tracking.record import RunRecord, read_events

JUDGED = ("validation", "test")


@dataclass(frozen=True)
class Part:
    """One judged part of the split: `labels` (N,), `probabilities` (N, K) or None of a task without expressions,
    `affect` and `true_affect` (N, 2) or None; `scores` and `intervals` (95%) by name."""

    usage: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64] | None
    affect: NDArray[np.float64] | None
    true_affect: NDArray[np.float64] | None
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    per_class: Mapping[str, Mapping[str, float]]
    inference_ms: float | None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def predicted(self) -> NDArray[np.int64]:
        assert self.probabilities is not None
        return self.probabilities.argmax(1)


@dataclass(frozen=True)
class Finished:
    """`folds` is what the parent of a cross-validation says of its folds; empty of any other run."""

    folder: Path
    config: DictConfig
    record: RunRecord
    parts: Mapping[str, Part]
    fit: Mapping[str, Any]
    folds: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def main(self) -> Part:
        """The part that the report is about: test, or validation where the split has no test part."""
        return self.parts.get("test") or self.parts["validation"]

    @property
    def has_net(self) -> bool:
        return (self.folder / "best.pt").exists()

    @cached_property
    def trained(self) -> frozenset[str]:
        """The names of the faces that trained it; empty of a cross-validation, where each fold has its own."""
        return frozenset(read(self.folder / "split.json").get("train", ()))

    @cached_property
    def unseen(self) -> dict[str, Part]:
        """The judged parts of which no face trained it: not validation where that trains as well."""
        return {
            usage: part for usage, part in self.parts.items() if not self.trained.intersection(part.names)
        }

    @cached_property
    def tags(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for event, _ in read_events(self.folder):
            if event["event"] == "tags":
                found |= event["values"]
        return found

    @cached_property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """What the run recorded of each part of its data: name, digest and counts of each class."""
        events = (event for event, _ in read_events(self.folder) if event["event"] == "dataset")
        return {event["context"]: event for event in events}


def read_run(folder: Path) -> Finished:
    """Raises UsageError where the run was not judged."""
    if not (folder / "config.yaml").exists() or not (folder / "figures").is_dir():
        raise UsageError(
            f"{folder} has no config.yaml and figures: the run has not ended; train it to its end"
        )
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    parts = {usage: part for usage in JUDGED if (part := read_part(folder / "figures", usage))}
    if not parts:
        raise UsageError(
            f"{folder / 'figures'} has no predictions: the run was not judged (a trial of a sweep is not); train it again "
            "with its own command, without the sweep"
        )
    return Finished(
        folder, config, RunRecord(folder), parts, read(folder / "fit.json"), read(folder / "folds.json")
    )


def refuse_without_net(folder: Path) -> None:
    """Raises UsageError where the run kept no net of its own."""
    folds = [one["run"] for one in read(folder / "folds.json").get("folds", ())]
    if folds:
        raise UsageError(
            f"{folder} is a cross-validation, which has a net for each fold; name one of them: {', '.join(folds[:10])}"
        )
    if not (folder / "best.pt").exists() or not (folder / "config.yaml").exists():
        raise UsageError(
            f"{folder} has no config.yaml and best.pt: the run finished no epoch, or is a trial of a sweep, which keep no "
            "weights; train it again with its own command"
        )


def read(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is no such file."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    assert isinstance(kept, dict)
    return kept


def read_part(folder: Path, usage: str) -> Part | None:
    """The scores and predictions of one part; None where it was not judged. Raises DataError where they are damaged."""
    table, summary = folder / f"{usage}_predictions.csv", read(folder / f"{usage}.json")
    if not table.exists() or not summary:
        return None
    found = read_predictions(table, summary.get("count"))
    places = {name: place for place, name in enumerate(found.classes)}
    return Part(
        usage=usage,
        classes=found.classes,
        names=found.names,
        labels=np.array([places.get(label, -1) for label in found.labels], dtype=np.int64),
        probabilities=None if found.probabilities is None else found.probabilities.astype(np.float64),
        affect=None if found.affect is None else found.affect.astype(np.float64),
        true_affect=found.true_affect,
        scores=summary.get("scores", {}),
        intervals={name: (low, high) for name, (low, high) in summary.get("intervals_95", {}).items()},
        per_class=summary.get("per_class") or {},
        inference_ms=summary.get("inference_ms"),
    )


def siblings(run: Finished, runs_dir: Path) -> list[Finished]:
    """This run and the judged ones beside it that differ in nothing but the seed, on the same faces; by seed."""
    wanted, faces = settings(run.config), data_of(run)
    found = {int(run.config.seed): run}
    for place in sorted(runs_dir.glob("*/figures/*_predictions.csv")):
        folder = place.parent.parent
        if folder.resolve() == run.folder.resolve() or not (folder / "config.yaml").exists():
            continue
        config = OmegaConf.load(folder / "config.yaml")
        if isinstance(config, DictConfig) and settings(config) == wanted and int(config.seed) not in found:
            other = read_run(folder)
            if data_of(other) == faces:
                found[int(config.seed)] = other
    return [found[seed] for seed in sorted(found)]


def settings(config: DictConfig) -> dict[str, Any]:
    """What a run was told, without its seed and without what cannot change what it learns."""
    from fer_lab.identity import WITHOUT_EFFECT

    kept = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    for key in (*WITHOUT_EFFECT, "seed"):
        section, _, leaf = key.rpartition(".")
        owner = OmegaConf.select(kept, section) if section else kept
        if isinstance(owner, DictConfig):
            owner.pop(leaf, None)
    return OmegaConf.to_container(kept)  # type: ignore[return-value]


def data_of(run: Finished) -> tuple[str, ...]:
    """The digests of the parts that the run used; of a run without a record, its split alone."""
    return tuple(sorted(f"{usage} {part['digest']}" for usage, part in run.datasets.items()))
