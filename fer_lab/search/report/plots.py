"""What a search looked like: one figure a question, its answer in the title.

Optuna's own plots leave the conditional keys out or set None as a number beside the others, so these are drawn from
its trials here; importances (PED-ANOVA, which knows conditions) and the Pareto front are Optuna's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from fer_lab.search.ledger import ended
from fer_lab.search.report.canvas import (
    BLUE,
    BRANCHES,
    GREY,
    INK,
    ORANGE,
    RED,
    STYLE,
    norm,
    page,
    ring,
    shades,
)  # fmt: skip
from fer_lab.search.report.contour import contour
from fer_lab.search.report.trials import Key, Search, importance, is_complete, marks

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


def save_figures(study: Study, metrics: Sequence[str], folder: Path) -> list[Path]:
    """Every figure that the study can give as folder/NAME.png, each whole or not at all; their paths.

    `metrics` are the names of the objectives. Of several objectives the first is the score of the figures
    that show one. Figures of an earlier call that this study does not give are removed.
    """
    search = Search(study, tuple(metrics), ended(study))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        path = folder / f"{name}.png"
        figure = _drawn(draw, search)
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        part = path.with_suffix(".part")
        figure.savefig(part, format="png", dpi=120, facecolor="white")
        paths.append(part.replace(path))
    return paths


def _drawn(draw: Callable[[Search], Figure | None], search: Search) -> Figure | None:
    try:
        with rc_context(STYLE):
            return draw(search)
    except Exception:  # the report of hours of training is not lost to a figure
        log.warning("the figure %s is left out", draw.__name__, exc_info=True)
        return None


def history(search: Search) -> Figure | None:
    """Scores in the order of the trials, with the best so far; below, those that were not trained to the end."""
    best = search.best
    if best is None or len(search.metrics) > 1:
        return None
    figure = page(8, 4.2, _history_title(search, best))
    axes = figure.add_subplot()
    axes.set(xlabel="trial", ylabel=search.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    numbers = [trial.number for trial in search.complete]
    scores = [search.score(trial) for trial in search.complete]
    _points(
        axes,
        np.array(numbers),
        search.complete,
        search,
        color=BLUE,
        label="complete",
        far="off the page",
    )
    _rug(axes, [trial.number for trial in search.pruned], "pruned", color="#888888", marker="|")
    lost = [trial.number for trial in search.trials if math.isnan(search.score(trial))]
    _rug(axes, lost, "no score", color=RED, marker="x")
    front = (np.maximum if search.maximize else np.minimum).accumulate(scores).clip(*search.span)
    steps = [*numbers, search.trials[-1].number], [*front, front[-1]]
    axes.step(*steps, where="post", color=ORANGE, zorder=1, label="best so far")
    ring(axes, best.number, search.score(best))
    _focus(axes, search)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def parallel(search: Search) -> Figure | None:
    """One line a trial through its values to its score; grey: pruned. A key without a part is crossed below."""
    keys, best = search.keys, search.best
    if len(keys) < 2 or best is None:
        return None
    good_last = sorted(search.complete, key=search.score, reverse=not search.maximize)
    title = f"The way to the good scores, through each trial's values; orange: the best, trial {best.number}"
    figure = page(max(8, 1.75 * (len(keys) + 1)), 4.8, title)
    axes = figure.add_subplot()
    axes.axis("off")
    grey = [_ribbon(_heights(keys, trial, search)) for trial in search.pruned]
    axes.add_collection(LineCollection(grey, colors="#E3E3E3", linewidths=0.9))
    lines = [_ribbon(_heights(keys, trial, search)) for trial in good_last]
    colours = shades(search)(norm(search)([search.score(trial) for trial in good_last]))
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=1.2))
    axes.plot(*_ribbon(_heights(keys, best, search)).T, color=ORANGE, linewidth=2.6)
    for column, key in enumerate(keys):
        places, texts = key.ticks
        _column(axes, column, key.label, [key.share(place) for place in places], texts)
    low, high = search.span
    scores = marks(low, high, 5)
    heights = [(score - low) / (high - low) for score in scores]
    _column(axes, len(keys), search.metric, heights, [f"{score:.4g}" for score in scores])
    axes.set(xlim=(-0.3, len(keys) + 0.3), ylim=(-0.2, 1.12))
    return figure


def slices(search: Search) -> Figure | None:
    """The score over each key alone; the ranges that a key has under different conditions by colour."""
    keys = search.keys
    if not keys or len(search.complete) < 3:
        return None
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = page(max(5.6, 3.4 * columns), 2.9 * rows + 0.7, _slices_title(search))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, key in zip(grid.flat, keys, strict=False):
        _slice(axes, key, search)
    for axes in grid.flat[len(keys) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel(search.metric)
    return figure


def importances(search: Search) -> Figure | None:
    """PED-ANOVA: how much each parameter decides whether a trial is among the best."""
    found = importance(search)
    if not found:
        return None
    names = list(found)
    top, share = names[0], found[names[0]]
    front = " who is on the Pareto front" if len(search.metrics) > 1 else ""
    figure = page(
        8, 1.3 + 0.42 * len(names), f"{top} decides most{front}: {share:.0%} of the importance (PED-ANOVA)"
    )
    axes = figure.add_subplot()
    axes.grid(axis="y", visible=False)
    bars = axes.barh(
        names[::-1], [found[name] for name in names[::-1]], color=[GREY] * (len(names) - 1) + [BLUE]
    )
    axes.bar_label(bars, [f"{found[name]:.0%}" for name in names[::-1]], padding=4, color=INK)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.set_xlim(0, max(found.values()) * 1.12)
    return figure


def pruning(search: Search) -> Figure | None:
    """Score after each epoch of every trial, and where the pruned ones ended."""
    if max((len(trial.intermediate_values) for trial in search.scored), default=0) < 2:
        return None
    figure = page(8, 4.4, _pruning_title(search))
    axes = figure.add_subplot()
    axes.set(xlabel="epochs trained", ylabel=search.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    looks: dict[str, dict[str, Any]] = {
        "complete": {"color": BLUE, "linewidth": 1, "alpha": 0.55},
        "pruned": {"color": "#888888", "linewidth": 1, "marker": "o", "markersize": 4, "zorder": 3},
        "best": {"color": ORANGE, "linewidth": 2.4, "zorder": 4},
    }
    for kind, trials in (("complete", search.complete), ("pruned", search.pruned), ("best", [search.best])):
        curves = [sorted(trial.intermediate_values.items()) for trial in trials if trial is not None]
        for place, points in enumerate(curve for curve in curves if curve):
            look = looks[kind] | {"label": kind if place == 0 else None, "markevery": [len(points) - 1]}
            axes.plot(*zip(*points, strict=True), **look)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def pareto(search: Search) -> Figure | None:
    """The first objective against each of the others, with the front."""
    front = (
        sorted(search.study.best_trials, key=lambda trial: trial.values[0]) if len(search.metrics) > 1 else []
    )
    if not front:
        return None
    numbers = {trial.number for trial in front}
    others = [trial for trial in search.complete if trial.number not in numbers]
    title = (
        f"{len(front)} of {len(search.complete)} trials are on the Pareto front: none is better in everything"
    )
    figure = page(max(6.4, 4.6 * (len(search.metrics) - 1)), 4.6, title)
    row = figure.subplots(1, len(search.metrics) - 1, squeeze=False)[0]
    for place, axes in enumerate(row, start=1):
        axes.scatter(*_pair(others, place), color=GREY, s=24, label="dominated")
        axes.plot(
            *_pair(front, place), "o-" if len(row) == 1 else "o", color=BLUE, linewidth=1, label="front"
        )
        for trial in front:
            axes.annotate(
                str(trial.number), (trial.values[place], trial.values[0]), (5, 4), textcoords="offset points",
                fontsize=8, color=INK,
            )  # fmt: skip
        better = [_better(search, at) for at in (place, 0)]
        axes.set(xlabel=f"{search.metrics[place]} ({better[0]})", ylabel=f"{search.metric} ({better[1]})")
        values = [trial.values[place] for trial in search.complete]
        if min(values) > 0 and max(values) > 30 * min(values):
            axes.set_xscale("log")
    row[0].legend()
    return figure


FIGURES: dict[str, Callable[[Search], Figure | None]] = {
    "history": history,
    "importances": importances,
    "slices": slices,
    "parallel": parallel,
    "contour": contour,
    "pruning": pruning,
    "pareto": pareto,
}
"""In the order of the report."""


def _history_title(search: Search, best: FrozenTrial) -> str:
    pruned = sum(trial.user_attrs.get("state") == "pruned" for trial in search.trials)
    some = f" ({pruned} pruned)" if pruned else ""
    return f"Best {search.metric} {search.score(best):.4f} in trial {best.number}; {len(search.trials)} trials{some}"


def _slices_title(search: Search) -> str:
    best = search.best
    ringed = "" if best is None else f"; ringed: the best (trial {best.number})"
    low, high = search.span
    far = (
        "; hollow: off the page"
        if any(not low <= search.score(one) <= high for one in search.complete)
        else ""
    )
    below = "; on the axis: pruned" if search.pruned else ""
    return f"{search.metric} by key{ringed}{far}{below}"


def _pruning_title(search: Search) -> str:
    epochs = [max(trial.intermediate_values, default=0) for trial in search.scored]
    pruned = len(search.pruned)
    saved = 1 - sum(epochs) / (max(epochs) * len(epochs))
    if pruned == 0:
        return f"No trial of {len(epochs)} was pruned"
    return f"{pruned} of {len(epochs)} trials pruned: {saved:.0%} of the epochs saved"


def _rug(axes: Axes, places: ArrayLike, label: str, **look: Any) -> None:
    """Marks on the axis, for what has no score that could stand beside the others."""
    if np.size(places):
        line = axes.get_xaxis_transform()
        axes.plot(places, np.full(np.shape(places), 0.025), linestyle="", transform=line, label=label, **look)


def _points(
    axes: Axes,
    x: NDArray[Any],
    trials: Sequence[FrozenTrial],
    search: Search,
    color: str,
    label: str,
    far: str = "",
) -> None:
    """A dot a trial; a hollow triangle at the edge for a score so far off that it is not on the page."""
    low, high = search.span
    scores = np.array([search.score(trial) for trial in trials])
    inside = (low <= scores) & (scores <= high)
    axes.plot(x[inside], scores[inside], "o", color=color, markersize=4.5, alpha=0.8, label=label)
    edge = "v" if search.maximize else "^"
    look: Any = {"color": color, "markersize": 5, "markerfacecolor": "none", "label": far}
    if not inside.all():
        axes.plot(x[~inside], scores[~inside].clip(low, high), edge, **look)


def _focus(axes: Axes, search: Search) -> None:
    low, high = search.span
    room = high - low
    axes.set_ylim(low - 0.15 * room, high + 0.06 * room)


def _heights(keys: Sequence[Key], trial: FrozenTrial, search: Search) -> NDArray[np.float64]:
    """0..1 on each axis and on that of the score; below them where there is none."""
    score = float(norm(search)(search.score(trial))) if is_complete(trial) else math.nan
    return np.nan_to_num([*(key.height(trial) for key in keys), score], nan=-0.13)


def _ribbon(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(points, 2): a smooth line through the axes at x = 0, 1, 2 …, level where it crosses one."""
    x = np.linspace(0, len(heights) - 1, 24 * (len(heights) - 1) + 1)
    left = np.minimum(x.astype(int), len(heights) - 2)
    part = x - left
    return np.stack(
        [x, heights[left] + (heights[left + 1] - heights[left]) * part**2 * (3 - 2 * part)], axis=1
    )


def _column(axes: Axes, column: int, label: str, heights: Sequence[float], texts: Sequence[str]) -> None:
    axes.plot([column, column], [0, 1], color=INK, linewidth=1, zorder=3)
    axes.text(column, 1.07, label, ha="center", fontsize=9.5, fontweight="bold", color=INK)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.75}
    for height, text in zip(heights, texts, strict=True):
        axes.plot([column - 0.02, column], [height, height], color=INK, linewidth=1, zorder=3)
        axes.text(column + 0.03, height, text, va="center", fontsize=8.5, color=INK, bbox=box, zorder=4)


def _slice(axes: Axes, key: Key, search: Search) -> None:
    spread = np.random.default_rng(0)
    _focus(axes, search)
    axes.set_xlabel(key.label)
    places, texts = key.ticks
    is_crowded = sum(map(len, texts)) > 26
    axes.set_xticks(places, texts, rotation=30 if is_crowded else 0, ha="right" if is_crowded else "center")
    low, high = key.limits
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    for colour, name in zip(BRANCHES * len(key.ranges), key.ranges, strict=False):
        mine = [trial for trial in search.complete if key.name(trial) == name]
        jitter = spread.uniform(-0.16, 0.16, len(mine)) if key.choices else np.zeros(len(mine))
        x = np.array([key.place(trial) for trial in mine]) + jitter
        label = name.partition(" (")[2].rstrip(")")
        _points(axes, x, mine, search, color=colour, label=label)
        pruned = [key.place(trial) for trial in search.pruned if key.name(trial) == name]
        shift = spread.uniform(-0.3, 0.3, len(pruned)) if key.choices else 0
        _rug(axes, np.array(pruned) + shift, "", color=colour, marker="|", alpha=0.45)
        if search.best in mine:
            ring(axes, float(x[mine.index(search.best)]), search.score(search.best))
    if len(key.ranges) > 1:
        place: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        axes.legend(**place, ncols=2, fontsize=8, handletextpad=0.1, columnspacing=0.8)


def _pair(trials: Sequence[FrozenTrial], place: int) -> tuple[list[float], list[float]]:
    return [trial.values[place] for trial in trials], [trial.values[0] for trial in trials]


def _better(search: Search, place: int) -> str:
    return "more is better" if search.study.directions[place].name == "MAXIMIZE" else "less is better"
