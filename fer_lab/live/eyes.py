"""The two eyes of a face that a cascade found: a plausible pair, or none."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.crop import cascade

if TYPE_CHECKING:
    import cv2

Pair = tuple[tuple[float, float], tuple[float, float]]

SMALLEST = 60
"""Pixels of a face's side below which its eyes, a fifth of that, are too few pixels for the cascade."""

FACE_SIDE = 100
"""Eyes are looked for on a copy of the face that is so wide at most: quick, and as exact as on one twice as wide."""

SIZES = (0.2, 0.36)
"""Shares of the box's width that the cascade's square about an eye may have."""

SCALE_STEP, NEIGHBOURS = 1.15, 2

UPPER = (0.15, 0.6)
"""The part of the box's height in which eyes are looked for."""

APART = (0.25, 0.6)
"""Shares of the box's width that two eyes may be apart."""

LEVEL = 0.25
"""Share of the box's height by which one may be higher than the other."""


def find_eyes(plain: NDArray[np.uint8], box: tuple[int, int, int, int]) -> Pair | None:
    """Centres of the eyes in pixels of the (H, W) grey picture, the one further left first; None where no plausible pair
    is found."""
    import cv2

    left, top, width, height = box
    if min(width, height) < SMALLEST:
        return None
    from_row, to_row = (max(0, top + round(height * share)) for share in UPPER)
    part = plain[from_row:to_row, max(0, left) : left + width]
    shrink = max(1.0, width / FACE_SIDE)
    if min(part.shape) < 2 * shrink:
        return None
    copy = np.ascontiguousarray(part)
    if shrink > 1:
        size = (round(part.shape[1] / shrink), round(part.shape[0] / shrink))
        copy = np.asarray(cv2.resize(copy, size, interpolation=cv2.INTER_AREA), np.uint8)
    smallest, largest = ((round(width / shrink * share),) * 2 for share in SIZES)
    found = eye_cascade().detectMultiScale(
        copy, scaleFactor=SCALE_STEP, minNeighbors=NEIGHBOURS, minSize=smallest, maxSize=largest
    )
    centres = [
        (max(0, left) + (x + w / 2) * shrink, from_row + (y + h / 2) * shrink)
        for x, y, w, h in np.asarray(found).tolist()
    ]
    return plausible(centres, box)


def plausible(centres: list[tuple[float, float]], box: tuple[int, int, int, int]) -> Pair | None:
    """The most level of the pairs that may be eyes."""
    left, _, width, height = box
    middle = left + width / 2
    pairs = [
        (one, other)
        for one, other in combinations(sorted(centres), 2)
        if one[0] < middle < other[0]
        and APART[0] * width <= other[0] - one[0] <= APART[1] * width
        and abs(one[1] - other[1]) <= LEVEL * height
    ]
    return min(pairs, key=lambda pair: abs(pair[0][1] - pair[1][1]), default=None)


@cache
def eye_cascade() -> cv2.CascadeClassifier:
    cascade()  # says what to install, and keeps OpenCV on one thread
    import cv2

    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / "haarcascade_eye.xml"))
