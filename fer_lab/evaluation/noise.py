"""Faces whose label may be wrong, found by a net that has not learned from them.

Confident learning (Northcutt, Jiang & Chuang 2021), in our own words: a class's threshold is how sure the net is, on
average, of the faces labelled so. A face for which another class passes its own threshold, and passes it best, is
counted under both: off the diagonal of the confident joint. Those are the suspects. Not all of them are mislabelled:
some are hard faces, and a net that has learned the noise of its training faces repeats it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Suspects(NamedTuple):
    """Rows of faces, the least credible label first. `given` and `suggested` are class indices; `margins` the
    probability of the given class less that of the suggested one (-1..1); `share` of all labels is estimated wrong."""

    rows: NDArray[np.int64]
    given: NDArray[np.int64]
    suggested: NDArray[np.int64]
    margins: NDArray[np.float64]
    share: float


def suspects(labels: ArrayLike, probabilities: ArrayLike) -> Suspects:
    """Of `labels` (N,) under out-of-sample `probabilities` (N, K)."""
    labels, found = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    confident = confident_classes(labels, found)
    rows = np.flatnonzero((confident >= 0) & (confident != labels))
    margins = found[rows, labels[rows]] - found[rows, confident[rows]]
    order = np.argsort(margins, kind="stable")
    rows, margins = rows[order], margins[order]
    return Suspects(rows, labels[rows], confident[rows], margins, noise_share(labels, found))


def thresholds(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) mean probability of each class over the faces labelled so; of a class without faces inf, which none passes."""
    own = [probabilities[labels == k, k] for k in range(probabilities.shape[1])]
    return np.array([one.mean() if len(one) else np.inf for one in own])


def confident_classes(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) the likeliest class among those that pass their thresholds; -1 where none does."""
    passing = np.where(probabilities >= thresholds(labels, probabilities), probabilities, -1.0)
    return np.where(passing.max(1) >= 0, passing.argmax(1), -1)


def confident_joint(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """(K, K) counts: rows are the labels given, columns the classes that the net is confident of."""
    count = probabilities.shape[1]
    confident = confident_classes(labels, probabilities)
    sure = confident >= 0
    return np.bincount(labels[sure] * count + confident[sure], minlength=count**2).reshape(count, count)


def noise_share(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """The estimated share of wrong labels: the joint's rows brought to the number of faces labelled so, off the diagonal."""
    joint = confident_joint(labels, probabilities).astype(float)
    given = np.bincount(labels, minlength=len(joint))
    rows = joint.sum(1)
    off = np.divide(rows - joint.diagonal(), rows, out=np.zeros(len(joint)), where=rows > 0)
    return float((off * given).sum() / len(labels))
