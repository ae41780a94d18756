"""Whether one net is better than another on the same faces: a paired test, Holm's correction, paired intervals.

Two figures of the same test faces are not independent: most faces are right or wrong for both nets, and only those
that one alone gets right say which is better (McNemar 1947). The faces of one person are not independent either: where
people are known, a person's sum of gains is what could as well have been the other net's (Fisher 1935). Who compares
many pairs finds a difference by luck, so the p of all pairs are corrected together (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.evaluation.uncertainty import Interval

FEW = 25
"""Discordant faces below which the exact binomial test replaces McNemar's chi-square."""
ALPHA = 0.05

Flags = NDArray[np.bool_]


class Duel(NamedTuple):
    """Two nets on so many `faces`. `only_first` faces are right for the first net alone; `difference` is the first's
    accuracy minus the second's, `interval` its 95% bootstrap interval, one pair at a time; `p` is McNemar's or, where
    `by_subject`, that of `sign_flip`, and `adjusted` Holm's."""

    first: str
    second: str
    faces: int
    only_first: int
    only_second: int
    difference: float
    interval: Interval
    p: float
    adjusted: float
    by_subject: bool = False

    @property
    def tied(self) -> bool:
        return self.adjusted >= ALPHA

    @property
    def sentence(self) -> str:
        chance = f"Holm p {written(self.adjusted)}{' over subjects' if self.by_subject else ''}"
        if self.tied:
            return f"{self.first} is tied with {self.second} ({chance})"
        better, worse, (low, high) = self.first, self.second, self.interval
        if self.difference < 0:
            better, worse, low, high = worse, better, -high, -low
        gap = f"{100 * abs(self.difference):.2f} points [{100 * low:.2f}, {100 * high:.2f}]"
        return f"{better} is better than {worse} by {gap} ({chance})"


def duels(right: Mapping[str, Flags], groups: Sequence[str] | None = None) -> list[Duel]:
    """Every pair of nets. `right` maps a net to whether it got each face right, (N,) in one order; `groups` names the
    subject of each face, where they are known: they are then what is tested, and what the intervals draw again."""
    pairs = list(combinations(right, 2))
    scores = [chance(right[first], right[second], groups) for first, second in pairs]
    found = []
    for (first, second), p, adjusted in zip(pairs, scores, holm(scores), strict=True):
        counts = discordant(right[first], right[second])
        gap = float(right[first].mean() - right[second].mean())
        interval = paired_interval(right[first], right[second], groups)
        faces, by_subject = len(right[first]), groups is not None
        found.append(Duel(first, second, faces, *counts, gap, interval, p, adjusted, by_subject))
    return found


def chance(first: Flags, second: Flags, groups: Sequence[str] | None = None) -> float:
    """Two-sided p that neither net is better: over subjects where `groups` names them, else over faces."""
    if groups is None:
        return mcnemar(*discordant(first, second))
    return sign_flip(sums_of(first, second, groups)[0])


def discordant(first: Flags, second: Flags) -> tuple[int, int]:
    """Faces that only the first, and that only the second net gets right."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p that both nets are equally often right: exact for few discordant faces, else chi-square."""
    from scipy.stats import binomtest, chi2

    total = only_first + only_second
    if total == 0:
        return 1.0
    if total < FEW:
        return float(binomtest(only_first, total).pvalue)
    return float(chi2.sf((only_first - only_second) ** 2 / total, df=1))


def sign_flip(sums: NDArray[np.int64]) -> float:
    """Two-sided p of the sum of `sums` (S,), one for each subject, if each could as well have the other sign.

    Exact for any number of subjects: sums are whole, so all 2^S outcomes are counted by their total. Of S subjects with
    a gain none is below 2 / 2^S.
    """
    sizes = np.abs(sums[sums != 0])
    reach = int(sizes.sum())
    chances = np.zeros(2 * reach + 1)  # of the totals -reach..reach
    chances[reach] = 1.0
    for size in sizes:  # what is rolled over an end is 0: no total so far lies beyond the sizes so far
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(int(sums.sum()))
    return min(1.0, float(chances[far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p of a family of tests, corrected: the i-th smallest times the number of tests not yet judged, never
    below the one before it, never above 1."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        floor = min(1.0, max(floor, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def paired_interval(
    first: Flags, second: Flags, groups: Sequence[str] | None = None, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """95% percentile bootstrap interval of the difference of two accuracies on the same faces.

    Drawn again are the faces or, with `groups`, whole subjects; nan where there is one subject or no face.
    """
    sums, sizes = sums_of(first, second, groups)
    if (members := len(sums)) < 2:
        return Interval(math.nan, math.nan)
    generator = np.random.default_rng(seed)
    kinds, place = np.unique(np.stack([sums, sizes]), axis=1, return_inverse=True)  # few, so a draw is cheap
    drawn = generator.multinomial(members, np.bincount(place.ravel()) / members, resamples)  # (R, kinds)
    low, high = np.quantile((drawn @ kinds[0]) / (drawn @ kinds[1]), [0.025, 0.975])
    return Interval(float(low), float(high))


def sums_of(
    first: Flags, second: Flags, groups: Sequence[str] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many more faces the first net gets right, and of how many: for each subject, or for each face."""
    gains = first.astype(np.int64) - second.astype(np.int64)
    if groups is None:
        return gains, np.ones_like(gains)
    _, owner = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.bincount(owner, gains).astype(np.int64), np.bincount(owner)


def ties(names: Sequence[str], pairs: Sequence[Duel]) -> dict[str, list[str]]:
    """For each net the others that it cannot be told from, in the order of `names`."""
    tied = {frozenset((pair.first, pair.second)) for pair in pairs if pair.tied}
    return {name: [other for other in names if frozenset((name, other)) in tied] for name in names}


def written(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
