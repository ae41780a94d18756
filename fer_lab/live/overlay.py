"""Where the net looked, as a picture to lay over the one it looked at."""

from __future__ import annotations

from io import BytesIO
from math import cos, degrees, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_lab.live.crop import LARGEST_TURN, LEAST_TURN, tilt
from fer_lab.live.faces import Face, Net

SHOWN_SIDE = 1280
"""Pixels of the longer side from which on pictures for the page are shrunk: no screen shows more of them."""

HEAT = np.array([(60, 20, 120), (150, 40, 130), (225, 80, 80), (252, 160, 60), (250, 240, 130)], np.float32)
"""From cold to hot, each clearly lighter than the one before."""

OPACITY = 0.75


def laid_over(
    heat: NDArray[np.float32], shape: tuple[int, ...], face: Face, net: Net, align: bool
) -> NDArray[np.uint8]:
    """RGBA of a picture's `shape` (H, W), at most SHOWN_SIDE wide and high: the map `heat` (S, S) in 0..1 lies where
    live.crop cut the face, turned as there; what is cold is transparent."""
    height, width = shape
    shrink = max(1.0, max(shape) / SHOWN_SIDE)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    steps = width / size[0], height / size[1]
    placed = Image.fromarray(heat.astype(np.float32)).transform(
        size,
        Image.Transform.AFFINE,
        inverse(len(heat), shape, face, net.margin, align, steps),
        Image.Resampling.BILINEAR,
    )
    return coloured(np.asarray(placed).clip(0, 1))


def inverse(
    side: int, shape: tuple[int, ...], face: Face, margin: float, align: bool, steps: tuple[float, float]
) -> tuple[float, ...]:
    """(a, b, c, d, e, f): the map's place is (a x + b y + c, d x + e y + f) for a place of the shown picture, whose
    pixels are `steps` of the picture's."""
    left, top, width, height = face.box
    if face.score is None:
        width = height = reach = min(shape)
        left, top = (shape[1] - width) // 2, (shape[0] - height) // 2
    else:
        reach = max(1, round(max(width, height) * (1 + 2 * margin)))
    across, down = left + (width - reach) // 2 + reach / 2, top + (height - reach) // 2 + reach / 2
    turn = tilt(face) if align and face.score is not None else 0.0
    turn = turn if LEAST_TURN < abs(degrees(turn)) <= LARGEST_TURN else 0.0
    scale = side / reach
    over, up = scale * cos(turn), scale * sin(turn)
    return (
        *(over * steps[0], up * steps[1], side / 2 - over * across - up * down),
        *(-up * steps[0], over * steps[1], side / 2 + up * across - over * down),
    )


def coloured(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W) in 0..1 -> RGBA (H, W, 4)."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(heat, stops, HEAT[:, channel]) for channel in range(3)]
    return np.stack([*channels, 255 * OPACITY * np.sqrt(heat)], -1).round().astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Of (H, W, 3 or 4) pixels, shrunk to SHOWN_SIDE."""
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
