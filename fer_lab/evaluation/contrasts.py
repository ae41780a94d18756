"""Pictures of comparisons: differences with their intervals, and a table of shares as colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.evaluation.uncertainty import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREY, INK = "#0072B2", "#D55E00", "#B8B8B8", "#333333"


class Contrast(NamedTuple):
    """A difference of two shares and its 95% interval; `tied` ones are drawn grey."""

    name: str
    value: float
    interval: Interval
    tied: bool


def differences(panels: Sequence[tuple[str, Sequence[Contrast]]]) -> Figure:
    """A panel for each (title, contrasts), side by side: a line from low to high, and the difference as a point."""
    from matplotlib.figure import Figure

    longest = max(len(contrasts) for _, contrasts in panels)
    widest = max(len(one.name) for _, contrasts in panels for one in contrasts)
    width, height = (3.4 + 0.08 * widest) * len(panels), 1.1 + 0.36 * longest
    figure = Figure(figsize=(width, height), layout="constrained")
    for axes, (title, contrasts) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _forest(axes, contrasts)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return figure


def _forest(axes: Axes, contrasts: Sequence[Contrast]) -> None:
    for row, one in enumerate(contrasts):
        colour = GREY if one.tied else BLUE if one.value > 0 else RED
        axes.hlines(row, 100 * one.interval.low, 100 * one.interval.high, color=colour, linewidth=2)
        axes.plot([100 * one.value], [row], "o", color=colour, markersize=6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(contrasts)), [one.name for one in contrasts])
    axes.set_ylim(len(contrasts) - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(color=GREY, labelcolor=INK, axis="both")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.set_xlabel("points, 95% interval")


def heat_map(
    shares: NDArray[np.float64], words: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Shares (R, C) in 0..1, nan where there is none, as colours with `words` in each cell."""
    from matplotlib.figure import Figure

    widest = max(map(len, rows))
    width, height = 1.6 + 0.09 * widest + 1.9 * len(columns), 1.2 + 0.75 * len(rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, words[row][column], ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="faces of", ylabel="trained")
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, label="accuracy")
    bar.outline.set_visible(False)
    return figure
