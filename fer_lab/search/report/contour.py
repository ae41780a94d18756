"""The score over two parameters at once: a table of their choices, or a smoothed surface of their ranges."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from fer_lab.search.report.canvas import GREY, norm, page, ring, shades
from fer_lab.search.report.trials import FEWEST, Key, Search, importance

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def contour(search: Search) -> Figure | None:
    """Of the two most important parameters that are both choices or both numbers, and go together."""
    shares = importance(search)
    keys = {name: Key(name, {name: key.ranges[name]}) for key in search.keys for name in key.ranges}
    pairs = [
        (shares.get(first, 0) + shares.get(second, 0), keys[first], keys[second])
        for first, second in combinations(keys, 2)
        if bool(keys[first].choices) == bool(keys[second].choices)
        and len(together(search.complete, keys[first], keys[second])) >= FEWEST
    ]
    if not pairs:
        return None
    _, first, second = max(pairs, key=lambda pair: pair[0])
    return (table if first.choices else surface)(search, first, second)


def together(trials: list[FrozenTrial], first: Key, second: Key) -> list[FrozenTrial]:
    return [trial for trial in trials if first.name(trial) and second.name(trial)]


def table(search: Search, first: Key, second: Key) -> Figure:
    """The best score of each pair of choices, and of how many trials."""
    rows, columns = first.choices, second.choices
    cells: dict[tuple[int, int], list[float]] = {}
    for trial in together(search.complete, first, second):
        cells.setdefault((int(first.place(trial)), int(second.place(trial))), []).append(search.score(trial))
    best = np.full((len(rows), len(columns)), math.nan)
    for place, scores in cells.items():
        best[place] = max(scores) if search.maximize else min(scores)
    title = f"Best {search.metric} by {first.label} and {second.label} (complete trials)"
    figure = page(max(6.4, 2.6 + 1.1 * len(columns)), 1.6 + 0.62 * len(rows), title)
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.imshow(best, cmap=shades(search), norm=norm(search), aspect="auto")
    for place, value in np.ndenumerate(best):
        text = "–" if math.isnan(value) else f"{value:.4f}\n({len(cells[place[0], place[1]])})"
        dark = not math.isnan(value) and sum(shades(search)(norm(search)(value))[:3]) < 1.5
        axes.text(place[1], place[0], text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [str(one) for one in columns])
    axes.set_yticks(range(len(rows)), [str(one) for one in rows])
    axes.set(xlabel=second.label, ylabel=first.label)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def surface(search: Search, first: Key, second: Key) -> Figure:
    """Complete trials, and between them a surface smoothed in the unit square of both ranges. A pruned trial is a
    mark alone: the score of its first epochs cannot stand beside those of whole trainings."""
    from scipy.interpolate import RBFInterpolator

    keys = (second, first)
    trials = together(search.complete, *keys)
    points = np.array([[key.height(trial) for key in keys] for trial in trials])
    scores = np.array([search.score(trial) for trial in trials])
    side = np.linspace(0, 1, 80)
    across, up = np.meshgrid(side, side)
    smooth = RBFInterpolator(points, scores, kernel="linear", smoothing=0.3)
    height = smooth(np.stack([across.ravel(), up.ravel()], axis=1)).reshape(across.shape)
    figure = page(7, 5.2, f"{search.metric} over {first.label} and {second.label}")
    axes = figure.add_subplot()
    axes.grid(visible=False)
    look: Any = {"cmap": shades(search), "norm": norm(search)}
    filled = axes.contourf(across, up, height, levels=np.linspace(*search.span, 11), extend="both", **look)
    marks = np.array([[key.height(trial) for key in keys] for trial in together(search.pruned, *keys)])
    if len(marks):
        axes.scatter(marks[:, 0], marks[:, 1], marker="x", color=GREY, s=22, linewidths=1.2, label="pruned")
    axes.scatter(
        points[:, 0], points[:, 1], c=scores, edgecolors="white", linewidths=1, s=42, label="complete", **look
    )
    ring(axes, *points[scores.argmax() if search.maximize else scores.argmin()])
    for key, ticks in zip(keys, (axes.set_xticks, axes.set_yticks), strict=True):
        places, texts = key.ticks
        ticks([key.share(place) for place in places], texts)
    axes.set(xlabel=second.label, ylabel=first.label, xlim=(0, 1), ylim=(0, 1))
    bar = figure.colorbar(filled, ax=axes, format="%.4g", label=search.metric)
    bar.outline.set_visible(False)
    if len(marks):
        figure.legend(loc="outside lower center", ncols=2)
    return figure
