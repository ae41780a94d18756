"""What the live part speaks of: frames, faces in them, and what a net tells of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(H, W, 3), RGB."""


class LiveError(ValueError):
    """A source, a detector or a place to write that cannot be used; the text says what to do."""


class Frame(NamedTuple):
    """A picture, or one of a video's or a camera's: `source` as the user knows it, `number` from 0 in its source,
    `time_s` since its beginning (None of a picture). Where there are no `pixels`, `fault` says why."""

    source: str
    number: int
    time_s: float | None
    pixels: Pixels | None
    fault: str = ""


class Face(NamedTuple):
    """`box` (left, top, width, height) in pixels of the frame, inside it or over its border; `score` is the detector's own
    (haar: overlapping hits; yunet: 0..1; None where nobody looked). `eyes` are the two centres, ((x, y) of the one
    further left in the picture, then the other), where both were found."""

    box: tuple[int, int, int, int]
    score: float | None = None
    eyes: tuple[tuple[float, float], tuple[float, float]] | None = None


class Told(NamedTuple):
    """A face and what the net tells of it: `probabilities` (K,) in the order of the net's classes (K = 0 where it tells none),
    `affect` valence and arousal (2,) in -1..1. `face_id` is the track's where faces are followed, else the place in the frame."""

    face_id: int
    face: Face
    probabilities: NDArray[np.float32]
    affect: NDArray[np.float32] | None


class Seen(NamedTuple):
    """A frame with its faces: none where none was found, or where the frame has a fault."""

    frame: Frame
    faces: tuple[Told, ...]


class Net(NamedTuple):
    """A trained net as the live part needs it; who makes one (fer_lab.nets) knows the run or the file it came from.

    `tell` takes pixels (B, channels, size, size) uint8 and gives (B, O) float32: probabilities of `classes`, calibrated
    where a temperature is known, then, where `affect`, valence and arousal. It may be called from any thread, one at a
    time. A face is cut as in training: `margin` moves each edge of the detector's square outwards by so much of its side;
    `guessed` where the net learned from whole pictures or its data set's own boxes, and nobody compared those with a
    detector's squares.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    channels: int
    affect: bool
    margin: float
    guessed: bool
    tell: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
