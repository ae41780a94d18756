"""What a share of right answers says where only the share and the number of faces are known."""

from __future__ import annotations

import math

from fer_lab.evaluation.uncertainty import Interval

NORMAL = 1.959963984540054
"""Half the width of a standard normal's 95%."""


def wilson(share: float, count: int) -> Interval:
    """95% interval of a share of `count` faces (Wilson 1927): inside 0..1 for any share, unlike the textbook's."""
    centre = (share + NORMAL**2 / (2 * count)) / (1 + NORMAL**2 / count)
    half = math.sqrt(share * (1 - share) / count + NORMAL**2 / (4 * count**2))
    half *= NORMAL / (1 + NORMAL**2 / count)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def difference(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """95% interval of first - second from theirs (Newcombe 1998, method 10). Too wide, never too narrow, where both
    were taken on the same faces; a side without an interval of its own counts as exact."""
    below = math.hypot(*gaps(first, of_first.low, second, of_second.high))
    above = math.hypot(*gaps(first, of_first.high, second, of_second.low))
    return Interval(first - second - below, first - second + above)


def gaps(first: float, bound: float, second: float, other: float) -> tuple[float, float]:
    return tuple(  # type: ignore[return-value]
        0.0 if math.isnan(end) else end - value for value, end in ((first, bound), (second, other))
    )


def same_share(first: float, second: float, of_first: int, of_second: int) -> float:
    """Two-sided p that two shares, of so many faces each, are equal: the pooled z-test of two proportions."""
    pooled = (first * of_first + second * of_second) / (of_first + of_second)
    error = math.sqrt(pooled * (1 - pooled) * (1 / of_first + 1 / of_second))
    return 1.0 if error == 0 else math.erfc(abs(first - second) / error / math.sqrt(2))
