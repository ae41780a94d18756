"""How well valence and arousal are told, over a whole split: CCC, PCC, RMSE and SAGR, and how far each could move.

`predicted` and `true` are (N, 2), valence and arousal in -1..1; a true value that is nan is left out, each dimension
for itself. Moments are divided by n (Lin 1989, Biometrics 45:255); torchmetrics divides by n - 1, which is the same for
PCC and nearly so for CCC. A figure that the values do not define is nan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fer_lab.evaluation.uncertainty import Interval, group_members, percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

DIMENSIONS = ("valence", "arousal")
ROUNDING = 1e-15
"""A variance below it is that of a constant, computed."""
MANY = 2000
"""Faces above which dots would hide each other."""
BLUE, GREY, INK = "#0072B2", "#B8B8B8", "#333333"


def affect_metrics(predicted: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """ccc, pcc (Pearson), rmse and sagr (share of equal signs, zero being one of three), each of the two
    dimensions (`ccc_valence`, …) and as their mean (`ccc`)."""
    sums = _sums(predicted, true).sum(0)
    return {name: float(value) for name, value in _figures(sums).items()}


def quick_affect_metrics(predicted: ArrayLike, true: ArrayLike) -> dict[str, float]:
    """Those that every validation epoch logs."""
    names = ("ccc", "ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal")
    found = affect_metrics(predicted, true)
    return {name: found[name] for name in names}


def bootstrap_affect(
    predicted: ArrayLike,
    true: ArrayLike,
    groups: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of every figure of `affect_metrics`, over images or over `groups` (subjects).

    Every figure follows from sums over the images, so a resample is a row of weights times the sums of each image
    or group.
    """
    sums = _sums(predicted, true)  # (N, 2, S)
    members = group_members(len(sums), groups)
    if len(members) < 2:
        return dict.fromkeys(_figures(sums.sum(0)), Interval(float("nan"), float("nan")))
    each = sums if groups is None else np.stack([sums[rows].sum(0) for rows in members])
    generator, count = np.random.default_rng(seed), len(members)
    drawn = np.concatenate(
        [_weights(generator, size, count) @ each.reshape(count, -1) for size in _pieces(resamples)]
    )
    values = _figures(drawn.reshape(resamples, *sums.shape[1:]))
    return {name: percentiles(value, level) for name, value in values.items()}


def _pieces(resamples: int, size: int = 100) -> list[int]:
    """So many at a time: the weights of all at once would not fit in a cache, or in memory."""
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _weights(generator: np.random.Generator, resamples: int, count: int) -> NDArray[np.float64]:
    """(resamples, count): how often each of `count` was drawn in `count` draws."""
    drawn = generator.integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(float)


def _sums(predicted: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """(N, 2, 8): 1, x, y, x², y², xy, (x - y)² and whether the signs agree; all 0 where `true` is undefined.

    x and y are taken from the mean truth, so that little is lost in the differences of squares.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] != len(DIMENSIONS) or len(x) == 0:
        raise ValueError(
            f"predicted {x.shape} with true {y.shape}: expected (N, 2) each, valence and arousal, N at least 1"
        )
    if np.isnan(x).any():
        raise ValueError(f"{np.isnan(x).any(1).sum()} of {len(x)} predictions are nan: the net has diverged")
    known = ~np.isnan(y)
    y = np.where(known, y, 0.0)
    agree, centre = np.sign(x) == np.sign(y), y.sum(0) / known.sum(0).clip(1)
    x, y = x - centre, y - centre
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y, (x - y) ** 2, agree)
    return np.stack(columns, axis=-1) * known[..., None]


def _figures(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Of (…, 2, 8) sums: (…) a figure."""
    with np.errstate(invalid="ignore", divide="ignore"):  # nan is what we say of the undefined
        x, y, xx, yy, xy, error, agree = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
        variance_x, variance_y = _variance(x, xx), _variance(y, yy)
        covariance = xy - x * y
        deviations = np.sqrt(variance_x * variance_y)
        correlation = np.clip(covariance / deviations, -1, 1)  # of near constants rounding could lead beyond
        found = {
            "ccc": 2 * covariance / (variance_x + variance_y + (x - y) ** 2),
            "pcc": np.where(deviations > 0, correlation, np.nan),
            "rmse": np.sqrt(error),
            "sagr": agree,
        }
        named = {name: value.mean(-1) for name, value in found.items()}
    for position, dimension in enumerate(DIMENSIONS):
        named |= {f"{name}_{dimension}": value[..., position] for name, value in found.items()}
    return named


def _variance(mean: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
    variance = square - mean * mean
    return np.where(variance < ROUNDING, 0.0, variance)


def circumplex(predicted: ArrayLike, true: ArrayLike) -> Figure:
    """Where the faces lie in Russell's circle of valence and arousal, true and as told, and how the two agree.

    Dots where they can be told apart, else how many there are of them.
    """
    from matplotlib.figure import Figure

    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    scores, known = affect_metrics(x, y), ~np.isnan(y).any(1)
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    said = " and ".join(f"{scores[f'ccc_{name}']:.2f} for {name}" for name in DIMENSIONS)
    title = f"CCC {said} ({known.sum():,} faces)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    places = figure.subplots(1, 4)
    for axes, values, name in ((places[0], y[known], "true"), (places[1], x[known], "predicted")):
        _cloud(axes, values[:, 0], values[:, 1])
        axes.add_patch(_circle())
        axes.set(xlabel="valence", ylabel="arousal", title=name)
    for axes, position, name in zip(places[2:], (0, 1), DIMENSIONS, strict=True):
        defined = ~np.isnan(y[:, position])
        _cloud(axes, y[defined, position], x[defined, position])
        axes.axline((0, 0), slope=1, color=INK, linewidth=0.8)
        axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
        axes.set_title(f"RMSE {scores[f'rmse_{name}']:.2f}, SAGR {scores[f'sagr_{name}']:.0%}")
    return figure


def _cloud(axes: Axes, across: NDArray[np.float64], up: NDArray[np.float64]) -> None:
    if len(across) > MANY:
        axes.hexbin(across, up, gridsize=30, extent=(-1, 1, -1, 1), bins="log", cmap="Blues", mincnt=1)
    else:
        axes.scatter(across, up, s=8, alpha=0.5, color=BLUE, linewidths=0)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)


def _circle() -> Circle:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1, fill=False, color=GREY, linewidth=0.8)
