"""The plots of a report that a training run does not draw itself: arrays in, a matplotlib Figure out.

No titles but what tells the parts apart: the page says in a caption what is seen, of how many faces and how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fer_lab.evaluation.metrics import BINS
from fer_lab.evaluation.robustness import Perturbation, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

BLUE, ORANGE, RED, GREY, INK = "#0072B2", "#E69F00", "#D55E00", "#B8B8B8", "#333333"


def reliability(labels: ArrayLike, before: ArrayLike, after: ArrayLike | None) -> Figure:
    """Accuracy against confidence of probabilities (N, K) as the net gives them and, where there are others, after
    temperature scaling, side by side over one axis of faces a bin."""
    shown = {"as trained": (np.asarray(before), RED)}
    if after is not None:
        shown["after temperature scaling"] = (np.asarray(after), BLUE)
    figure = _figure(4.6 * len(shown), 5.2)
    axes = np.atleast_2d(figure.subplots(2, len(shown), sharex=True, sharey="row", height_ratios=(3, 1)).T)
    for (name, (found, colour)), (upper, lower) in zip(shown.items(), axes, strict=True):
        _quiet(upper).set_title(name, loc="left", fontsize=11, color=INK)
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, zorder=1)
        confidence, accuracy, counts = _bins(np.asarray(labels), found)
        filled = counts > 0
        upper.bar(_middles()[filled], accuracy[filled], 0.94 / BINS, color=colour, alpha=0.3)
        upper.vlines(confidence[filled], confidence[filled], accuracy[filled], color=colour, linewidth=1.5)
        upper.plot(confidence[filled], accuracy[filled], "o", color=colour, markersize=5, clip_on=False)
        upper.set(xlim=(0, 1), ylim=(0, 1))
        _quiet(lower).bar(_middles(), counts, 0.94 / BINS, color=colour, alpha=0.6)
        lower.set_xlabel("confidence (probability of the predicted class)")
        _percent(upper.xaxis, upper.yaxis)
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 1].set_ylabel("faces")
    return figure


def robustness(curves: Mapping[Perturbation, Sequence[Point]], side: int, chance: float) -> Figure:
    """A panel for each way of being worse: accuracy with its 95% band, and what always saying the commonest class gets."""
    rows = -(-len(curves) // 3)
    figure = _figure(10.5, 3.1 * rows)
    figure.set_layout_engine("constrained", hspace=0.08)
    panels = figure.subplots(rows, 3, sharey=True, squeeze=False).ravel()
    for axes, (kind, points) in zip(panels, curves.items(), strict=False):
        places = np.arange(len(points))
        clean = next(point.accuracy for point in points if point.strength == 0)
        low, high = np.transpose([point.interval for point in points])
        _quiet(axes).fill_between(places, low, high, color=BLUE, alpha=0.18, linewidth=0)
        axes.axhline(clean, color=GREY, linewidth=1)
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=":")
        axes.plot(places, [point.accuracy for point in points], "o-", color=BLUE, markersize=4, linewidth=1.6)
        axes.set_title(kind.name, loc="left", fontsize=11, color=INK)
        axes.set_xticks(places, [kind.words(point.strength, side) for point in points], fontsize=8)
        axes.set_ylim(0, 1)
        _percent(axes.yaxis)
    for axes in panels[len(curves) :]:
        axes.axis("off")
    for axes in panels[::3]:
        axes.set_ylabel("accuracy")
    return figure


def examples(image: Tensor, kinds: Sequence[Perturbation]) -> Figure:
    """One face (1, C, H, W) uint8 as the net sees it at every strength, a row for each way of being worse."""
    columns = max(len(kind.strengths) for kind in kinds)
    figure = _figure(1.25 * columns + 1.1, 1.42 * len(kinds))
    panels = figure.subplots(len(kinds), columns, squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, strength in zip(row, kind.strengths, strict=False):
            _face(axes, kind.change(image, strength)[0].cpu().numpy())
            axes.set_title(kind.words(strength, image.shape[-1]), fontsize=8, color=INK, pad=3)
        row[0].text(
            -0.12, 0.5, kind.name.replace(" ", "\n"), transform=row[0].transAxes, ha="right", va="center", fontsize=9
        )  # fmt: skip
    return figure


def contact_sheet(
    images: NDArray[np.uint8], captions: Sequence[tuple[str, str]], columns: int = 6, words: tuple[str, str] = ("", "")
) -> Figure:  # fmt: skip
    """Faces (N, C, H, W), each under two lines: in red what is doubted, in blue what speaks against it, each line
    behind its word of `words`."""
    rows = -(-len(images) // columns)
    figure = _figure(1.75 * columns, 2.15 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, lines in zip(panels, images, captions, strict=False):
        _face(axes, image)
        for height, line, word, colour in zip((1.15, 1.03), lines, words, (RED, BLUE), strict=True):
            text = f"{word} {line}".strip()
            axes.text(
                0, height, text, transform=axes.transAxes, fontsize=8.5, color=colour, fontweight="bold"
            )
    return figure


def seeds(scores: Mapping[str, Sequence[tuple[str, float]]]) -> Figure:
    """A row for each score: every seed's value as a point, their mean as a line."""
    figure = _figure(8, 0.9 + 0.55 * len(scores))
    axes = _quiet(figure.subplots(), grid="x")
    for row, values in enumerate(scores.values()):
        found = [value for _, value in values]
        axes.plot(found, [row] * len(found), "o", color=BLUE, alpha=0.75, markersize=7)
        axes.vlines(np.mean(found), row - 0.3, row + 0.3, color=INK, linewidth=1.5)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.4, -0.6)
    return figure


def _bins(
    labels: NDArray[np.int64], found: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean confidence, accuracy and faces of each bin; 0 where a bin is empty."""
    confidence = found.max(1)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    sums = (np.bincount(place, values, BINS) for values in (confidence, found.argmax(1) == labels))
    mean_confidence, accuracy = (total / np.maximum(counts, 1) for total in sums)
    return mean_confidence, accuracy, counts


def _middles() -> NDArray[np.float64]:
    return (np.arange(BINS) + 0.5) / BINS


def _figure(width: float, height: float) -> Figure:
    """Bare, unknown to pyplot: freed with its last reference."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _quiet(axes: Axes, grid: Literal["x", "y"] = "y") -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK)
    axes.grid(axis=grid, color="#EEEEEE")
    axes.set_axisbelow(True)
    return axes


def _percent(*directions: object) -> None:
    from matplotlib.ticker import PercentFormatter

    for axis in directions:
        axis.set_major_formatter(PercentFormatter(1, decimals=None))  # type: ignore[attr-defined]


def _face(axes: Axes, image: NDArray[np.uint8]) -> None:
    shown = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
    axes.imshow(shown, interpolation="nearest")
