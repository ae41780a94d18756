"""python -m fer_lab.evaluate run=ID [data=… split=… key=value]: a run's figures again, from the run alone."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError, main

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fer_lab.data.datamodule import FaceData
    from fer_lab.evaluation.uncertainty import Interval
    from fer_lab.learning.module import FerModule

HEADLINE = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1_weighted",
    "kappa",
    "mcc",
    "auroc",
    "nll",
    "brier",
    "ece",
)


@dataclass(frozen=True)
class Judgement:
    """How a net did on one part of a split; `probabilities` (N, K) averaged over the test-time views."""

    usage: str
    classes: tuple[str, ...]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    per_class: Mapping[str, Mapping[str, float]]
    inference_ms: float  # one image alone, all views, median


def judge(module: FerModule, data: FaceData, usage: str, views: str) -> Judgement:
    """Predicts the `usage` part (validation or test) once and takes every figure of it."""
    import torch

    from fer_lab.evaluation.metrics import emotion_metrics, per_class
    from fer_lab.evaluation.uncertainty import bootstrap_confusion, bootstrap_probabilities

    module.eval()
    rows = getattr(data.split, usage)
    found = torch.cat(
        [module.probabilities(faces).cpu() for faces in data.evaluation(rows, views, module.device)]
    )
    labels = torch.from_numpy(data.index.labels[rows])
    logits, classes = found.double().clamp_min(1e-12).log(), data.index.classes
    people = [str(data.index.subjects[row]) for row in rows] if data.index.has_subjects else None
    if people and len(set(people)) == 1:
        people = None  # of one person only the pictures can be drawn again
    chosen = found.argmax(1).numpy()
    return Judgement(
        usage=usage,
        classes=classes,
        rows=rows,
        labels=labels.numpy(),
        probabilities=found.numpy(),
        scores=emotion_metrics(logits, labels, classes),
        intervals=bootstrap_confusion(labels.numpy(), chosen, len(classes), groups=people)
        | bootstrap_probabilities(labels.numpy(), found.double().numpy(), people),
        per_class=per_class(logits, labels, classes),
        inference_ms=inference_ms(module, data, rows[:16], views),
    )


def inference_ms(module: FerModule, data: FaceData, rows: NDArray[np.int64], views: str) -> float:
    """Median milliseconds from one cached picture to its probabilities; the first, cold ones are left out."""
    times = []
    for row in range(len(rows)):
        start = time.perf_counter()
        for faces in data.evaluation(rows[row : row + 1], views, module.device, as_images=True):
            module.probabilities(faces).cpu()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[len(times) // 4 :])


def write(judgement: Judgement, data: FaceData, folder: Path) -> list[Path]:
    """The figures, scores and predictions of a judgement as files in `folder`; their paths."""
    import torch

    from fer_lab import figures
    from fer_lab.evaluation.metrics import confusion

    usage, classes, found = judgement.usage, judgement.classes, judgement.probabilities
    labels, predicted = judgement.labels, found.argmax(1)
    counts = confusion(torch.from_numpy(found), torch.from_numpy(labels), classes)
    pictures = data.cache.images[judgement.rows]
    made = {
        "confusion_matrix": figures.confusion_matrix(counts, classes),
        "per_class": figures.per_class(judgement.per_class),
        "calibration": figures.reliability(found.max(1), predicted == labels),
        "mistakes": figures.mistakes(pictures, labels, predicted, found, classes, judgement.inference_ms),
    }
    paths = [figures.save(figure, folder / f"{usage}_{name}.png") for name, figure in made.items()]
    return [*paths, write_scores(judgement, folder), write_predictions(judgement, data, folder)]


def write_scores(judgement: Judgement, folder: Path) -> Path:
    path = folder / f"{judgement.usage}.json"
    content = {
        "count": len(judgement.rows),
        "scores": dict(judgement.scores),
        "intervals_95": {name: list(interval) for name, interval in judgement.intervals.items()},
        "per_class": judgement.per_class,
        "inference_ms": judgement.inference_ms,
    }
    path.write_text(json.dumps(content, indent=1))
    return path


def write_predictions(judgement: Judgement, data: FaceData, folder: Path) -> Path:
    """One row per picture: name, true and predicted expression, and a probability of each."""
    path = folder / f"{judgement.usage}_predictions.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "label", "predicted", *(f"p_{name}" for name in judgement.classes)])
        for row, label, found in zip(judgement.rows, judgement.labels, judgement.probabilities, strict=True):
            name, classes = data.index.names[row], judgement.classes
            table.writerow(
                [name, classes[label], classes[found.argmax()], *(f"{value:.6f}" for value in found)]
            )
    return path


def show(judgements: list[Judgement], title: str) -> None:
    """The closing table: one line a score, one column a part of the split, with 95% intervals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for one in judgements:
        table.add_column(f"{one.usage} ({len(one.rows):,} faces)", justify="right")
    for name in HEADLINE:
        cells = []
        for one in judgements:
            interval = one.intervals.get(name)
            bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
            cells.append(f"{one.scores[name]:.4f}{bounds}")
        table.add_row(name, *cells)
    Console().print(table)


def overridden(saved: DictConfig, wanted: DictConfig) -> DictConfig:
    """The run's config with what the command line names in place of the run's own."""
    for group in ("data", "split"):
        named = {key: value for key, value in wanted[group].items() if value is not None}
        whole = "source" in named or "_target_" in named  # a group was chosen, not a key of the run's
        if whole:
            saved[group] = as_trained(saved.data, wanted.data) if group == "data" else named
        else:
            saved[group] = OmegaConf.merge(saved[group], named)
    for key in ("views", "threads"):
        saved[key] = saved[key] if wanted[key] is None else wanted[key]
    saved.cache_dir = wanted.cache_dir
    return saved


def as_trained(trained: DictConfig, other: DictConfig) -> DictConfig:
    """Another data set at the run's own size and channels, unless the command line names others."""
    typed = {text.partition("=")[0] for text in HydraConfig.get().overrides.task}
    kept = {key: trained[key] for key in ("size", "channels") if f"data.{key}" not in typed}
    return OmegaConf.merge(other, kept)  # type: ignore[return-value]


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Rebuilds the run from its folder and judges it; the figures go to its `evaluations` folder."""
    from fer_lab.tracking.find import find_run

    folder = find_run(str(cfg.run), Path(cfg.runs_dir), cfg.tracking.uri)
    if not (folder / "best.pt").exists() or not (folder / "config.yaml").exists():
        raise UsageError(
            f"{folder} has no config.yaml and best.pt: the run finished no epoch; train it again"
        )
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    return rejudge(folder, overridden(saved, cfg))


def rebuild(folder: Path, config: DictConfig) -> tuple[FerModule, FaceData]:
    """The net of a run with its best weights, and the data that `config` names for it."""
    from fer_lab.build import build_data, build_module, device_of
    from fer_lab.models.weights import read

    trained = list(config.classes)
    data = build_data(config)
    if list(data.index.classes) != trained:
        raise UsageError(
            f"the run tells {', '.join(trained)} apart; {data.index.name} has {', '.join(data.index.classes)}"
        )
    module = build_module(config, data, weights=None).to(device_of(config))
    module.judged.load_state_dict(read(folder / "best.pt"))
    return module, data


def rejudge(folder: Path, config: DictConfig) -> dict[str, Any]:
    module, data = rebuild(folder, config)
    warn_of_trained_faces(folder, config, data)
    usages = [usage for usage in ("validation", "test") if len(getattr(data.split, usage))]
    judgements = [judge(module, data, usage, config.views) for usage in usages]
    place = folder / "evaluations" / f"{data.index.name}-{data.split.digest(data.index)[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    for one in judgements:
        write(one, data, place)
    show(judgements, folder.name)
    print(f"figures and predictions are in {place}")
    return {one.usage: dict(one.scores) for one in judgements}


def warn_of_trained_faces(folder: Path, config: DictConfig, data: FaceData) -> None:
    """Says so where another split of the run's own data set judges faces that trained it."""
    if OmegaConf.load(folder / "config.yaml").data.source._target_ != config.data.source._target_:
        return
    trained = set(json.loads((folder / "split.json").read_text())["train"])
    for usage in ("validation", "test"):
        names = [data.index.names[row] for row in getattr(data.split, usage)]
        seen = sum(name in trained for name in names)
        if seen:
            print(
                f"warning: {seen} of these {len(names)} {usage} faces trained this run: its figures flatter"
            )


if __name__ == "__main__":
    main(evaluate, "evaluate")
