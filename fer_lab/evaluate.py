"""python -m fer_lab.evaluate run=ID|[A,B,C] [data=… split=… key=value]: figures again, from the runs alone."""

from __future__ import annotations

import csv
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError, main

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fer_lab.data.datamodule import FaceData
    from fer_lab.data.faces import Index
    from fer_lab.evaluation.uncertainty import Interval
    from fer_lab.learning.module import FerModule

LOOKS = "looks.jsonl"
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
    *(f"{name}{of}" for name in ("ccc", "pcc", "rmse", "sagr") for of in ("_valence", "_arousal")),
)


@dataclass(frozen=True)
class Judgement:
    """How a net did on one part of a split; `probabilities` (N, K) averaged over the test-time views, and so is
    `affect` (N, 2), the valence and arousal it tells, if any. A net that tells no expressions has no `classes`."""

    usage: str
    classes: tuple[str, ...]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    per_class: Mapping[str, Mapping[str, float]]
    inference_ms: float  # one image alone, all views, median
    affect: NDArray[np.float32] | None = None


def judge(module: FerModule, data: FaceData, usage: str, views: str) -> Judgement:
    """Predicts the `usage` part (validation or test) once and takes every figure of it."""
    rows = getattr(data.split, usage)
    found = predict(module, data, rows, views)
    milliseconds = inference_ms(module, data, rows[:16], views)
    return judgement_of(usage, data.index, rows, found, milliseconds, module.task.classes)


def predict(module: FerModule, data: FaceData, rows: NDArray[np.int64], views: str) -> NDArray[np.float32]:
    """(N, K | 2 | K + 2) predictions of the judged net's task, averaged over the test-time views."""
    import torch

    module.eval()
    batches = data.evaluation(rows, views, module.device)
    return torch.cat([module.predictions(faces).cpu() for faces in batches]).numpy()


def judgement_of(
    usage: str,
    index: Index,
    rows: NDArray[np.int64],
    predictions: NDArray[np.float32],
    milliseconds: float,
    classes: tuple[str, ...] | None = None,
) -> Judgement:
    """Every figure of predictions for the faces at `rows`, whichever nets made them. Raises UsageError where there is
    none.

    `predictions` (N, …) are probabilities of `classes` (None: all of the index; none for a net that tells no
    expressions) and then, where there are two more columns, valence and arousal.
    """
    from fer_lab.evaluation.uncertainty import people_on

    classes = index.classes if classes is None else classes
    labels, found = index.labels[rows], predictions[:, : len(classes)]
    affect = predictions[:, len(classes) :] if predictions.shape[1] > len(classes) else None
    truth = None if index.affect is None else index.affect[rows]
    people = people_on(index, rows)
    told = expression_figures(labels, found, classes, people) if classes else Figures({}, {}, {})
    if affect is not None and truth is not None:
        felt = affect_figures(affect, truth, people)
        told = Figures(told.scores | felt.scores, told.intervals | felt.intervals, told.per_class)
    if not told.scores:
        from fer_lab.build import WITH_AFFECT

        raise UsageError(
            f"this net tells valence and arousal, which {index.name} does not have; {WITH_AFFECT}"
        )
    return Judgement(usage, classes, rows, labels, found, *told, milliseconds, affect)


class Figures(NamedTuple):
    scores: dict[str, float]
    intervals: dict[str, Interval]
    per_class: dict[str, dict[str, float]]


def expression_figures(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: tuple[str, ...],
    people: list[str] | None,
) -> Figures:
    import torch

    from fer_lab.evaluation.metrics import emotion_metrics, per_class
    from fer_lab.evaluation.uncertainty import bootstrap_confusion, bootstrap_probabilities

    found, targets = probabilities.astype("float64"), torch.from_numpy(labels)
    logits = torch.from_numpy(found).clamp_min(1e-12).log()
    return Figures(
        emotion_metrics(logits, targets, classes),
        bootstrap_confusion(labels, found.argmax(1), len(classes), groups=people)
        | bootstrap_probabilities(labels, found, people),
        per_class(logits, targets, classes),
    )


def affect_figures(
    predicted: NDArray[np.float32], true: NDArray[np.float32], people: list[str] | None
) -> Figures:
    from fer_lab.evaluation.affect import affect_metrics, bootstrap_affect

    return Figures(affect_metrics(predicted, true), bootstrap_affect(predicted, true, people), {})


def inference_ms(module: FerModule, data: FaceData, rows: NDArray[np.int64], views: str) -> float:
    """Median milliseconds from one cached picture to its predictions; the first, cold ones are left out."""
    times = []
    for row in range(len(rows)):
        start = time.perf_counter()
        for faces in data.evaluation(rows[row : row + 1], views, module.device, as_images=True):
            module.predictions(faces).cpu()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[len(times) // 4 :])


def write(judgement: Judgement, data: FaceData, folder: Path) -> list[Path]:
    """The figures, scores and predictions of a judgement as files in `folder`; their paths."""
    from fer_lab import figures
    from fer_lab.evaluation.affect import circumplex

    made = draw_expressions(judgement, data) if judgement.classes else {}
    if judgement.affect is not None and data.index.affect is not None:
        made["affect"] = circumplex(judgement.affect, data.index.affect[judgement.rows])
    paths = [figures.save(figure, folder / f"{judgement.usage}_{name}.png") for name, figure in made.items()]
    return [*paths, write_scores(judgement, folder), write_predictions(judgement, data, folder)]


def draw_expressions(judgement: Judgement, data: FaceData) -> dict[str, Figure]:
    import torch

    from fer_lab import figures
    from fer_lab.evaluation.metrics import confusion

    classes, found, labels = judgement.classes, judgement.probabilities, judgement.labels
    predicted = found.argmax(1)
    counts = confusion(torch.from_numpy(found), torch.from_numpy(labels), classes)
    pictures = data.cache.images[judgement.rows]
    return {
        "confusion_matrix": figures.confusion_matrix(counts, classes),
        "per_class": figures.per_class(judgement.per_class),
        "calibration": figures.reliability(found.max(1), predicted == labels),
        "mistakes": figures.mistakes(pictures, labels, predicted, found, classes, judgement.inference_ms),
    }


def write_scores(judgement: Judgement, folder: Path) -> Path:
    path = folder / f"{judgement.usage}.json"
    content = {
        "count": len(judgement.rows),
        "scores": dict(judgement.scores),
        "intervals_95": {name: list(interval) for name, interval in judgement.intervals.items()},
        "per_class": judgement.per_class,
        "inference_ms": judgement.inference_ms,
    }
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1))
    return part.replace(path)


def write_predictions(judgement: Judgement, data: FaceData, folder: Path) -> Path:
    """One row per picture: name, true and predicted expression, a probability of each, valence and arousal; whole or
    not at all."""
    path = folder / f"{judgement.usage}_predictions.csv"
    part = path.with_name(f"{path.name}.part")
    with part.open("w", newline="") as file:
        csv.writer(file).writerows(prediction_rows(judgement, data.index))
    return part.replace(path)


def prediction_rows(judgement: Judgement, index: Index) -> Iterator[list[str]]:
    """The head, and then a row for each picture; what a net does not tell has no columns."""
    classes, felt = judgement.classes, judgement.affect is not None
    yield [
        *("name", "label"),
        *(["predicted", *(f"p_{name}" for name in classes)] if classes else []),
        *(("valence", "arousal", "true_valence", "true_arousal") if felt else ()),
    ]
    for place, (row, label) in enumerate(zip(judgement.rows, judgement.labels, strict=True)):
        found = judgement.probabilities[place]
        values = [*found]
        if judgement.affect is not None:
            truth = (math.nan, math.nan) if index.affect is None else index.affect[row]
            values += [*judgement.affect[place], *truth]
        predicted = [classes[found.argmax()]] if classes else []
        yield [index.names[row], index.classes[label], *predicted, *(f"{value:.6f}" for value in values)]


def show(judgements: list[Judgement], title: str) -> None:
    """The closing table: one line a score, one column a part of the split, with 95% intervals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for one in judgements:
        table.add_column(f"{one.usage} ({len(one.rows):,} faces)", justify="right")
    for name in HEADLINE:
        if not any(name in one.scores for one in judgements):
            continue
        cells = []
        for one in judgements:
            interval = one.intervals.get(name)
            bounds = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
            cells.append(f"{one.scores.get(name, math.nan):.4f}{bounds}")
        table.add_row(name, *cells)
    Console().print(table)


def named(wanted: DictConfig) -> list[str]:
    """What the command line names in place of a run's own."""
    groups = [
        f"{group}.{key}"
        for group in ("data", "split")
        for key, value in wanted[group].items()
        if value is not None
    ]
    return groups + (["views"] if wanted.views is not None else [])


def overridden(saved: DictConfig, wanted: DictConfig) -> DictConfig:
    """The run's config with what the command line names in place of the run's own."""
    for group in ("data", "split"):
        named = {key: value for key, value in wanted.get(group, {}).items() if value is not None}
        whole = "source" in named or "_target_" in named  # a group was chosen, not a key of the run's
        if whole:
            saved[group] = as_trained(saved.data, wanted.data) if group == "data" else named
        else:
            saved[group] = OmegaConf.merge(saved[group], named)
            if "root" in named:
                move(saved, named["root"])
    for key in ("views", "threads"):
        saved[key] = saved[key] if wanted.get(key) is None else wanted[key]
    saved.cache_dir = wanted.cache_dir
    return saved


def move(config: DictConfig, root: str) -> None:
    """A run's config, which names the place of its data twice, with the data in another."""
    config.data.root = root
    if "root" in config.data.source:
        config.data.source.root = root


def as_trained(trained: DictConfig, other: DictConfig) -> DictConfig:
    """Another data set at the run's own size, channels and crop of the face, unless the command line names others; the
    run's own data set as it was, but for the keys that the command line names."""
    typed = {text.partition("=")[0].lstrip("+") for text in HydraConfig.get().overrides.task}
    if other.source._target_ == trained.source._target_:
        named = OmegaConf.create({"data": trained})
        for key in sorted(key for key in typed if key.startswith("data.")):
            OmegaConf.update(
                named, key, OmegaConf.select(OmegaConf.create({"data": other}), key), force_add=True
            )
        if "data.root" in typed and "root" in trained.source:
            named.data.source.root = other.root
        return named.data
    crop = ("crop", "margin") if trained.get("crop", "none") != "none" else ()
    kept = {key: trained[key] for key in ("size", "channels", *crop) if f"data.{key}" not in typed}
    return OmegaConf.merge(other, kept)  # type: ignore[return-value]


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Rebuilds the run from its folder and judges it; the figures go to its `evaluations` folder. Several runs are
    judged as one, by the mean of what they predict; of a cross-validation the pooled figures are shown again."""
    from fer_lab.finished import refuse_without_net
    from fer_lab.folds import FOLDS, show_again
    from fer_lab.tracking.find import find_run

    if OmegaConf.is_list(cfg.run):
        from fer_lab.ensemble import judge_ensemble

        return judge_ensemble(cfg)
    folder = find_run(str(cfg.run), Path(cfg.runs_dir), cfg.tracking.uri)
    if (folder / FOLDS).exists():
        return show_again(folder, named(cfg))
    refuse_without_net(folder)
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    return rejudge(folder, overridden(saved, cfg))


def rebuild(folder: Path, config: DictConfig) -> tuple[FerModule, FaceData]:
    """The net of a run with its best weights, and the data that `config` names for it."""
    from fer_lab.build import build_data, build_module, device_of
    from fer_lab.models.weights import read

    trained = list(config.classes)
    data = build_data(config, to_learn=False)
    module = build_module(config, data, weights=None).to(device_of(config))
    if module.task.classes and list(data.index.classes) != trained:
        raise UsageError(
            f"the run tells {', '.join(trained)} apart; {data.index.name} has {', '.join(data.index.classes)}"
        )
    module.judged.load_state_dict(read(folder / "best.pt"))
    return module, data


def rejudge(folder: Path, config: DictConfig) -> dict[str, Any]:
    from fer_lab.clean import clean_part, write_clean

    module, data = rebuild(folder, config)
    warn_of_trained_faces(folder, config, data)
    usages = [usage for usage in ("validation", "test") if len(getattr(data.split, usage))]
    note_look(folder, "evaluate", data.index.name, usages, config.views)
    judgements = [judge(module, data, usage, config.views) for usage in usages]
    place = folder / "evaluations" / f"{data.index.name}-{data.split.digest(data.index)[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    for one in judgements:
        write(one, data, place)
        write_clean(one, clean_part(config, one, data), place)
    show(judgements, folder.name)
    show_calibrated(folder, judgements)
    print(f"figures and predictions are in {place}")
    return {one.usage: dict(one.scores) for one in judgements}


def note_look(folder: Path, how: str, data: str, usages: list[str], views: str) -> None:
    """A line in the run's looks.jsonl: these parts were judged once more, which a report counts."""
    line = {"time": datetime.now().isoformat(timespec="seconds"), "how": how, "data": data, "views": views}
    with (folder / LOOKS).open("a") as file:
        file.write(json.dumps(line | {"parts": usages}) + "\n")


def show_calibrated(folder: Path, judgements: list[Judgement]) -> None:
    """What the temperature that a report fitted, if one did, makes of these probabilities."""
    from fer_lab.evaluation.calibration import figures, read_temperature, scaled

    fitted = read_temperature(folder)
    for one in judgements:
        if fitted and one.classes:
            now = figures(one.labels, scaled(one.probabilities, fitted.value))
            words = ", ".join(f"{name} {one.scores[name]:.4f} -> {now[name]:.4f}" for name in ("nll", "ece"))
            print(f"{one.usage} at temperature {fitted.value:.3f}: {words}")


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
