"""How far a figure could move on other faces: percentile bootstrap over images, or over subjects.

Images of one person are not independent, so where subjects are known they are what is drawn again
(cluster bootstrap; Efron & Tibshirani 1993, Davison & Hinkley 1997 section 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fer_lab.data.faces import Index
from fer_lab.evaluation.metrics import BINS, confusion_metrics


class Interval(NamedTuple):
    """The bounds of a percentile interval; nan where the data cannot say (a single subject, an undefined figure)."""

    low: float
    high: float


def people_on(index: Index, rows: NDArray[np.int64]) -> list[str] | None:
    """Who is on each of these faces; None where the data set does not say, or all are one: of one person only the
    pictures can be drawn again."""
    if not index.has_subjects:
        return None
    found = [str(index.subjects[row]) for row in rows]
    return found if len(set(found)) > 1 else None


def bootstrap(
    metric: Callable[[NDArray[np.int64]], float],
    count: int,
    groups: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of any figure: `metric` gets the positions (0..count-1, with repeats) of one resample.

    It is called `resamples` times; for figures of a confusion matrix `bootstrap_confusion` is far faster.
    """
    return percentiles(resampled(metric, count, groups, resamples, seed), level)


def resampled(
    metric: Callable[[NDArray[np.int64]], float],
    count: int,
    groups: Sequence[str | None] | None,
    resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """(resamples,) the figure of each resample; all nan of a single group, which cannot say."""
    members = group_members(count, groups)
    if len(members) < 2:
        return np.full(resamples, np.nan)
    generator = np.random.default_rng(seed)
    values = np.empty(resamples)
    for row in range(resamples):
        drawn = generator.integers(len(members), size=len(members))
        values[row] = metric(drawn if groups is None else np.concatenate([members[one] for one in drawn]))
    return values


def bootstrap_confusion(
    labels: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    groups: Sequence[str | None] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of accuracy, balanced_accuracy, f1_macro, f1_weighted, kappa and mcc.

    `labels` and `predicted` are class indices (N,). Exactly the bootstrap over images or groups, but drawn
    as whole confusion matrices: counts of a resample of images are multinomial over the K² cells, those of
    groups a sum of the groups' matrices with multinomial weights.
    """
    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    members, size = group_members(len(labels), groups), classes**2
    cells = labels * classes + predicted
    generator = np.random.default_rng(seed)
    if groups is None:
        share = np.bincount(cells, minlength=size) / len(cells)
        drawn = generator.multinomial(len(cells), share, size=resamples)  # (R, K²)
    else:
        each = np.stack([np.bincount(cells[rows], minlength=size) for rows in members])  # (G, K²)
        drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples) @ each
    values = confusion_metrics(torch.from_numpy(drawn.reshape(resamples, classes, classes)))
    if len(members) < 2:
        return dict.fromkeys(values, Interval(float("nan"), float("nan")))
    return {name: percentiles(value.numpy(), level) for name, value in values.items()}


def bootstrap_probabilities(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], groups: Sequence[str | None] | None = None
) -> dict[str, Interval]:
    """Intervals of nll, brier and ece (2,000 resamples) and of auroc (300), from probabilities (N, K).

    A mean of absolute values grows with noise, and a resample is noisier than the faces it is drawn from: the resamples
    of ece are moved to have the figure itself as their median.
    """
    from scipy.stats import rankdata

    count, rows = len(labels), np.arange(len(labels))
    surprise = -np.log(np.clip(probabilities[rows, labels], 1e-12, None))
    distance = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1)
    confidence = probabilities.max(1)
    gap = confidence - (probabilities.argmax(1) == labels)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)

    def calibration_error(drawn: NDArray[np.int64]) -> float:
        return float(np.abs(np.bincount(place[drawn], gap[drawn], BINS)).sum() / len(drawn))

    def auroc(drawn: NDArray[np.int64]) -> float:
        """Mean over the classes present of Mann and Whitney's statistic, ties counted half."""
        hits = np.eye(probabilities.shape[1])[labels[drawn]]  # (N, K)
        positive = hits.sum(0)
        pairs = positive * (len(drawn) - positive)
        if len(drawn) == positive.max():
            return float("nan")
        wins = (rankdata(probabilities[drawn], axis=0) * hits).sum(0) - positive * (positive + 1) / 2
        return float(np.mean(wins[pairs > 0] / pairs[pairs > 0]))

    return {
        "nll": bootstrap(lambda drawn: float(surprise[drawn].mean()), count, groups),
        "brier": bootstrap(lambda drawn: float(distance[drawn].mean()), count, groups),
        "ece": centred(resampled(calibration_error, count, groups), calibration_error(rows)),
        "auroc": bootstrap(auroc, count, groups, resamples=300),
    }


def group_members(count: int, groups: Sequence[str | None] | None) -> list[NDArray[np.int64]]:
    """The positions of each group, or one position per item where there are none."""
    if count == 0:
        raise ValueError("no items: an interval of an empty split is undefined; check the split's sizes")
    if groups is None:
        return list(np.arange(count)[:, None])
    if len(groups) != count or any(group is None for group in groups):
        missing = sum(group is None for group in groups)
        raise ValueError(
            f"{len(groups)} groups, {missing} of them None, for {count} items: "
            "name the group of every item, or pass groups=None to draw images"
        )
    _, owner = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])


def centred(values: NDArray[np.float64], figure: float, level: float = 0.95) -> Interval:
    """The percentiles of a figure of 0 or more whose resamples are too large on the average, without that bias."""
    if np.isnan(values).all():
        return percentiles(values, level)
    low, high = percentiles(values - np.nanmedian(values) + figure, level)
    return Interval(max(low, 0.0), high)


def percentiles(values: NDArray[np.float64], level: float) -> Interval:
    """Of the resamples where the figure is defined."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
