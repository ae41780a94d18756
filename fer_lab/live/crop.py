"""The square with a face as the net saw faces in training."""

from __future__ import annotations

from math import atan2, cos, degrees, sin

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.crop import cut
from fer_lab.data.images import grey, square
from fer_lab.live.faces import Face, Net, Pixels

LEAST_TURN, LARGEST_TURN = 3.0, 45.0
"""Degrees. Below, the turn may be the eye finder's own error (1 degree in the median, up to 3 in 19 faces of 20, on the
astronaut's and on drawn faces turned by -20 to 20); above, it found something else."""


def face_square(pixels: Pixels, face: Face, net: Net, align: bool = True) -> NDArray[np.uint8]:
    """(channels, size, size): what data.crop and data.images make of the same box, turned where `align` and both eyes are
    known, so that they are level. Where nobody looked for faces (no score), the picture's centre square."""
    if face.score is None:
        return square(pixels, net.size, net.channels)
    near, box = around(pixels, face.box, net.margin)
    turn = tilt(face) if align else 0.0
    if LEAST_TURN < abs(degrees(turn)) <= LARGEST_TURN:
        if net.channels == 1:
            near = grey(near)
        return square(turned(near, box, net.margin, turn), net.size, net.channels)
    return square(cut(near, box, net.margin), net.size, net.channels)


def tilt(face: Face) -> float:
    """Radians by which the right one of the eyes is lower, seen from their middle; 0 where they are not known."""
    if face.eyes is None:
        return 0.0
    (x, y), (other_x, other_y) = face.eyes
    return atan2(other_y - y, other_x - x)


def around(
    pixels: Pixels, box: tuple[int, int, int, int], margin: float
) -> tuple[Pixels, tuple[int, int, int, int]]:
    """As much of the picture as the square and its reflections show, and the box in it: the rest need not be copied."""
    left, top, width, height = box
    reach = 2 * round(max(width, height) * max(1.0, 1 + 2 * margin))
    first, above = max(0, left - reach), max(0, top - reach)
    part = pixels[above : top + height + reach, first : left + width + reach]
    return part, (left - first, top - above, width, height)


def turned(
    pixels: NDArray[np.uint8], box: tuple[int, int, int, int], margin: float, turn: float
) -> NDArray[np.uint8]:
    """The square of `cut`, turned by so many radians about its middle, reflected at the picture's borders."""
    import cv2

    left, top, width, height = box
    side = max(1, round(max(width, height) * (1 + 2 * margin)))
    middle = (side - 1) / 2
    across, down = left + (width - side) // 2 + middle, top + (height - side) // 2 + middle
    over, up = cos(turn), sin(turn)
    back = np.array(
        [[over, -up, across - over * middle + up * middle], [up, over, down - up * middle - over * middle]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(pixels, back, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(found, np.uint8)
