"""Every plot: arrays in, a matplotlib Figure out, drawn without a display and without pyplot's global state.

A title says the result. Colours are Okabe and Ito's, told apart by every kind of colour vision.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#B8B8B8", "#333333"
DOTS_PER_INCH = 120
BINS = 15

History = Mapping[str, Sequence[tuple[float, float]]]


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG, whole or not at all, making its folder; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    return part.replace(path)


def curves(history: History, best: int | None = None) -> Figure:
    """Loss and accuracy over the epochs.

    `history` maps `train/loss`, `validation/accuracy` and so on (`val_loss`, `train.accuracy` are read as
    well; other names are left out) to (epoch, value) pairs, accuracy in 0..1. `best` is the epoch whose
    weights were kept; left out, the one of highest validation accuracy, else of lowest validation loss.
    """
    named = _train_and_validation(history)
    best = _best_epoch(named) if best is None else best
    figure = _figure(10, 4, _curves_title(named, best))
    mixed = any("ccc" in name for name in history)  # concordance has no unit
    units = {"loss": "loss" if mixed else "loss (nats)", "accuracy": "accuracy"}
    measures = [measure for measure in units if any(measure in name for name in named)]
    for place, measure in enumerate(measures):
        axes = _quiet(figure.add_subplot(1, len(measures), place + 1), "epoch", units[measure])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for part, colour in (("train", BLUE), ("validation", RED)):
            _curve(axes, named.get((part, measure), []), part, colour, best)
        if measure == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if best is not None:
            axes.axvline(best, color=GREY, linewidth=1, zorder=0, label=f"best epoch ({best:g})")
        axes.legend(frameon=False)
    return figure


def confusion_matrix(counts: ArrayLike, classes: Sequence[str], title: str | None = None) -> Figure:
    """`counts` (K, K), rows true, columns predicted: each cell its count and its share of the row."""
    counts = np.asarray(counts)
    support = counts.sum(1, keepdims=True)
    share = counts / np.maximum(support, 1)
    side = 0.8 * len(classes)
    figure = _figure(side + 2.7, side + 1.4, title or _confusion_title(counts, classes))
    axes = figure.add_subplot()
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1.6)  # darker blues would hide the text
    for (row, column), count in np.ndenumerate(counts):
        percent = f"{share[row, column]:.0%}" if support[row] else "–"
        axes.text(column, row, f"{percent}\n{count}", ha="center", va="center", color="black", fontsize=9)
    slant = 35 if max(map(len, classes)) > 9 or len(classes) > 8 else 0
    axes.set_xticks(range(len(classes)), classes, rotation=slant, ha="right" if slant else "center")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(
        shown, ax=axes, shrink=0.6, format=PercentFormatter(1), label="share of the true class"
    )
    bar.outline.set_visible(False)
    bar.ax.set_ylim(0, 1)
    return figure


def per_class(table: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of precision, recall and f1 (0..1) for each class of `table`, with its support; nan has no bar."""
    classes = list(table)
    figure = _figure(max(6.5, 1.5 + 1.2 * len(classes)), 4.4, _per_class_title(table))
    axes = _quiet(figure.add_subplot(), "expression (labelled faces)", "score")
    for place, (column, colour) in enumerate((("precision", ORANGE), ("recall", BLUE), ("f1", GREEN))):
        values = np.array([table[name][column] for name in classes], dtype=float)
        left = np.arange(len(classes)) + (place - 1) * 0.28
        label = "F1" if column == "f1" else column
        bars = axes.bar(left, np.nan_to_num(values), 0.26, color=colour, label=label)
        written = ["–" if math.isnan(value) else f"{value:.2f}".removeprefix("0") for value in values]
        axes.bar_label(bars, written, fontsize=8, padding=1, color=INK)
    axes.set_xticks(range(len(classes)), [f"{name}\n({table[name]['support']:,.0f})" for name in classes])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0)
    return figure


def face_sheet(
    images: ArrayLike, titles: Sequence[str], columns: int = 8, title: str | None = None
) -> Figure:
    """A sheet of small faces, each under its title.

    `images` (N, C, H, W), C 1 or 3, uint8 or float in 0..1 (what the net gets before mean and deviation).
    `titles` of up to 18 characters a line.
    """
    pictures = _pictures(images)
    columns = max(1, min(columns, len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    size = f"{pictures.shape[2]}×{pictures.shape[1]}"
    gap = 0.1 + 0.13 * max((text.count("\n") + 1 for text in titles), default=1)
    title = title or f"Faces of {size} pixels"
    figure = _figure(max(4.5, columns * 1.2 + 0.2), rows * (1.15 + gap) + 0.6, title)
    axes = _canvas(figure, (1, 1, 1), columns * 1.08, rows * (1.04 + gap))
    for place, (picture, text) in enumerate(zip(pictures, titles, strict=True)):
        x, y = place % columns * 1.08 + 0.04, place // columns * (1.04 + gap) + gap
        _draw(axes, picture, x, y)
        axes.text(x + 0.5, y - 0.04, text, ha="center", va="bottom", fontsize=8, color=INK)
    return figure


def mistakes(
    images: ArrayLike,
    true: ArrayLike,
    predicted: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    inference_ms: float | None = None,
    limit: int = 12,
) -> Figure:
    """The mistakes of a split that gave the true class the least probability, worst first.

    `images` (N, C, H, W) as in `face_sheet`, all of the split or a memory map of it (only the faces shown
    are read); `true`, `predicted` (N,) class indices; `probabilities` (N, K); `inference_ms` per face.
    """
    true, predicted, probabilities = np.asarray(true), np.asarray(predicted), np.asarray(probabilities)
    wrong = np.flatnonzero(true != predicted)
    worst = wrong[np.argsort(probabilities[wrong, true[wrong]], kind="stable")][:limit]
    columns = max(2, min(4, len(worst)))
    rows = math.ceil(len(worst) / columns)
    title = _mistakes_title(len(wrong), len(true), len(worst), inference_ms)
    figure = _figure(columns * 2.9, rows * 1.75 + 0.7, title)
    pictures = _pictures(np.asarray(images)[worst])
    for place, item in enumerate(worst):
        axes = _canvas(figure, (rows, columns, place + 1), 2.6, 1.4)
        _draw(axes, pictures[place], 0, 0.4)
        _verdict(axes, true[item], predicted[item], probabilities[item], classes)
    return figure


def reliability(confidences: ArrayLike, correct: ArrayLike) -> Figure:
    """Accuracy against confidence in 15 bins, and how many faces each holds.

    `confidences` (N,) in 0..1, the probability of the predicted class; `correct` (N,) booleans. The title
    states the expected calibration error over the same bins.
    """
    confidences, correct = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    place = np.minimum((confidences * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    filled = count > 0
    accuracy = np.bincount(place, correct, BINS)[filled] / count[filled]
    confidence = np.bincount(place, confidences, BINS)[filled] / count[filled]
    error = float((count[filled] * np.abs(accuracy - confidence)).sum() / max(count.sum(), 1))
    figure = _figure(5.6, 6.4, _reliability_title(error, confidences, correct))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _quiet(upper, "", "accuracy")
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="confidence = accuracy")
    upper.vlines(confidence, confidence, accuracy, color=RED, linewidth=1.5, label="gap")
    upper.plot(
        confidence, accuracy, "o", color=BLUE, clip_on=False, zorder=3, label=f"mean of a bin of 1/{BINS}"
    )
    upper.set(xlim=(0, 1.01), ylim=(0, 1.02))
    upper.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        borderaxespad=0,
        fontsize=9,
        columnspacing=1,
    )
    _quiet(lower, "confidence (probability of the predicted class)", "faces")
    lower.bar((np.arange(BINS) + 0.5) / BINS, count, 0.9 / BINS, color=BLUE)
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis in (upper.xaxis, upper.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure


# ---- titles: the result in words ----


def _curves_title(named: dict[tuple[str, str], list[tuple[float, float]]], best: int | None) -> str:
    epochs = len({epoch for points in named.values() for epoch, _ in points})
    accuracy = dict(named.get(("validation", "accuracy"), []))
    loss = dict(named.get(("validation", "loss"), []))
    if best is None:
        return f"{epochs} epochs, none validated"
    if best in accuracy:
        return f"Best epoch {best:g} of {epochs}: validation accuracy {accuracy[best]:.1%}"
    return f"Best epoch {best:g} of {epochs}: validation loss {loss.get(best, math.nan):.3f}"


def _confusion_title(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    total = counts.sum()
    off = counts / np.maximum(counts.sum(1, keepdims=True), 1) * (1 - np.eye(len(classes)))
    row, column = np.unravel_index(off.argmax(), off.shape)
    head = f"{counts.trace() / max(total, 1):.1%} of {total:,} faces right"
    if off.max() == 0:
        return head
    return f"{head}\n{off.max():.0%} of {classes[row]} taken for {classes[column]}"


def _mistakes_title(wrong: int, total: int, shown: int, inference_ms: float | None) -> str:
    speed = "" if inference_ms is None else f" · inference {inference_ms:.3g} ms per face"
    if wrong == 0:
        return f"No mistake among {total:,} faces{speed}"
    some = f", the {shown} worst" if shown < wrong else ""
    return f"{wrong:,} of {total:,} faces wrong{some}{speed}"


def _per_class_title(table: Mapping[str, Mapping[str, float]]) -> str:
    known = {name: row["f1"] for name, row in table.items() if not math.isnan(row["f1"])}
    if not known:
        return "No class has a defined F1"
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    mean = f"Macro F1 {np.mean(list(known.values())):.2f}"
    return mean if low == high else f"{mean}: from {low} {known[low]:.2f} to {high} {known[high]:.2f}"


def _reliability_title(error: float, confidences: NDArray[np.float64], correct: NDArray[np.float64]) -> str:
    gap = confidences.mean() - correct.mean()
    lean = "overconfident" if gap > 0.01 else "underconfident" if gap < -0.01 else "right on average"
    means = f"confidence {confidences.mean():.1%}, accuracy {correct.mean():.1%}"
    return f"Calibration error {error:.1%}: {lean}\n(mean {means})"


# ---- parts of the plots ----


def _figure(width: float, height: float, title: str) -> Figure:
    """A bare Figure: unknown to pyplot, so it is freed with its last reference."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    lines = [textwrap.fill(line, int(width * 10)) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def _quiet(axes: Axes, x: str, y: str) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK)
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.set(xlabel=x, ylabel=y)
    return axes


def _canvas(figure: Figure, place: tuple[int, int, int], width: float, height: float) -> Axes:
    """Axes without axes, in units of one face, y downwards."""
    axes = figure.add_subplot(*place)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", anchor="NW")
    axes.axis("off")
    return axes


def _draw(axes: Axes, picture: NDArray[np.uint8], x: float, y: float) -> None:
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(picture, extent=(x, x + 1, y + 1, y), interpolation="nearest")
    axes.set(xlim=limits[0], ylim=limits[1])


def _verdict(
    axes: Axes, true: int, predicted: int, probabilities: NDArray[np.float64], classes: Sequence[str]
) -> None:
    """The words over a face, and beside it a bar per class."""
    for y, word, label, colour in ((0.0, "true", true, BLUE), (0.19, "predicted", predicted, RED)):
        share = f"{probabilities[label]:.0%}" if probabilities[label] >= 0.005 else "<1%"
        text = f"{word}: {classes[label]} {share}"
        axes.text(0, y, text, color=colour, fontsize=9, fontweight="bold", va="top")
    step = 1 / len(classes)
    for place, (name, probability) in enumerate(zip(classes, probabilities, strict=True)):
        y = 0.4 + (place + 0.5) * step
        marked = {true: BLUE, predicted: RED}.get(place)
        axes.text(1.72, y, name, ha="right", va="center", fontsize=7.5, color=marked or INK)
        axes.barh(y, probability * 0.8, step * 0.7, left=1.76, color=marked or GREY)


def _pictures(images: ArrayLike) -> NDArray[np.uint8]:
    """(N, C, H, W) of any kind -> (N, H, W, 3) uint8."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {array.shape}; expected (N, C, H, W) with 1 or 3 channels")
    if array.dtype != np.uint8:
        array = (np.clip(array.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
    return np.broadcast_to(array.transpose(0, 2, 3, 1), (len(array), *array.shape[2:], 3))


def _train_and_validation(history: History) -> dict[tuple[str, str], list[tuple[float, float]]]:
    named = {}
    for name, points in history.items():
        found = re.fullmatch(r"(train|val|validation)[/_.](loss|accuracy)", name)
        if found:
            part = "train" if found[1] == "train" else "validation"
            named[part, found[2]] = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    return named


def _best_epoch(named: dict[tuple[str, str], list[tuple[float, float]]]) -> int | None:
    if accuracy := named.get(("validation", "accuracy")):
        return int(max(accuracy, key=lambda point: point[1])[0])
    if loss := named.get(("validation", "loss")):
        return int(min(loss, key=lambda point: point[1])[0])
    return None


def _curve(axes: Axes, points: list[tuple[float, float]], part: str, colour: str, best: int | None) -> None:
    if not points:
        return
    epochs, values = zip(*sorted(points), strict=True)
    marker = "o" if len(points) <= 30 else ""
    axes.plot(epochs, values, color=colour, marker=marker, markersize=3, linewidth=1.5, label=part)
    if part == "validation" and best is not None and best in epochs:
        value = values[epochs.index(best)]
        axes.plot(
            [best], [value], "o", color=colour, markersize=8, markerfacecolor="white", markeredgewidth=2
        )
