"""The square of a picture that holds the face: all of it, what a detector finds, or the box the data set gives.

The detector finds all 213 faces of JAFFE, and 190 of its drawn stand-in's: there, add data.bad=skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import DataError, Item
from fer_lab.data.images import BadImage, grey

if TYPE_CHECKING:
    import cv2

CROP_VERSION = 2
"""Raise it when the same picture gives another crop: caches of crops are then rebuilt."""

CROPS = ("none", "haar", "box")
DETECTION_SIDE = 512
"""Faces are looked for on a copy whose longer side is at most this: quick, and a face that fills less than a
twentieth of the picture (the cascade's window is 24 pixels) is no face to learn from."""

SCALE_STEP = 1.1
NEIGHBOURS = (5, 3, 1)
"""How many overlapping hits make a face; fewer are asked for only where that finds none."""

LARGEST_SQUARE = 4
"""Longer sides of the picture that a square may be wide; a box that asks for more is a slip of the pen, and the
reflections that fill the square would take all memory."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """`kind` none leaves the picture as it is, haar takes the largest face of OpenCV's frontal cascade, box the
    item's own box; `margin` moves each edge of that square outwards by so much of its side.

    Where the square reaches over the border of the picture, the picture is reflected.
    """

    kind: str = "none"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in CROPS:
            raise DataError(f"data.crop={self.kind!r}; choices: {', '.join(CROPS)}")
        if not isinstance(self.margin, int | float) or not 0 <= self.margin <= 2:
            raise DataError(f"data.margin={self.margin!r}; expected a share of the face's side in 0..2")

    @property
    def label(self) -> str:
        """What tells its caches from those of whole pictures; empty for none, which has no margin either."""
        return "" if self.kind == "none" else f"-{self.kind}{self.margin:g}v{CROP_VERSION}"

    def __call__(self, pixels: NDArray[np.uint8], item: Item) -> NDArray[np.uint8]:
        """(side, side) or (side, side, 3); raises BadImage where there is no face."""
        if self.kind == "none":
            return pixels
        box = largest_face(grey(pixels)) if self.kind == "haar" else item.box
        if box is None:
            raise BadImage("no face found" if self.kind == "haar" else "no face box")
        return cut(pixels, box, self.margin)

    def check(self, name: str, items: Sequence[Item]) -> None:
        """Refuses, before a picture is read, what every picture would fail for."""
        if self.kind == "haar":
            cascade()
        if self.kind == "box" and not any(item.box for item in items):
            raise DataError(f"data.crop=box, but {name} gives no face boxes; choices: none, haar")


def cut(pixels: NDArray[np.uint8], box: Box, margin: float) -> NDArray[np.uint8]:
    """The square about the middle of `box`, as wide as its longer side and a margin on either edge.

    Raises BadImage where the middle lies outside the picture or the square is far larger than it.
    """
    left, top, width, height = box
    rows, columns = pixels.shape[:2]
    across, down = left + width / 2, top + height / 2
    if width < 1 or height < 1 or not 0 <= across < columns or not 0 <= down < rows:
        raise BadImage("face box outside the picture")
    side = max(1, round(max(width, height) * (1 + 2 * margin)))
    if side > LARGEST_SQUARE * max(rows, columns):
        raise BadImage("face box far larger than the picture")
    left, top = left + (width - side) // 2, top + (height - side) // 2
    over = [
        (max(0, -start), max(0, start + side - length)) for start, length in ((top, rows), (left, columns))
    ]
    if any(map(any, over)):
        pixels = np.pad(pixels, over + [(0, 0)] * (pixels.ndim - 2), mode="reflect")
    top, left = top + over[0][0], left + over[1][0]
    return pixels[top : top + side, left : left + side]


def largest_face(pixels: NDArray[np.uint8]) -> Box | None:
    """The largest face that the cascade finds in (H, W) grey pixels; of equal ones the topmost, then leftmost."""
    finder = cascade()
    import cv2

    shrink = max(1.0, max(pixels.shape) / DETECTION_SIDE)
    if shrink > 1:
        height, width = (max(1, round(length / shrink)) for length in pixels.shape)
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    for neighbours in NEIGHBOURS:
        found = finder.detectMultiScale(pixels, scaleFactor=SCALE_STEP, minNeighbors=neighbours)
        if len(found):
            boxes = np.asarray(found).tolist()
            best = max(boxes, key=lambda box: (box[2] * box[3], -box[1], -box[0]))
            left, top, width, height = (round(length * shrink) for length in best)
            return left, top, width, height
    return None


@cache
def cascade() -> cv2.CascadeClassifier:
    """OpenCV's frontal face cascade, on one thread: the processes that decode share the cores already."""
    try:
        import cv2
    except ImportError:
        raise DataError("data.crop=haar needs OpenCV: pip install fer_lab[faces]") from None
    if not hasattr(cv2, "CascadeClassifier"):
        raise DataError(
            f"data.crop=haar needs OpenCV 4, which has the cascades; here is {cv2.__version__}: "
            "pip install fer_lab[faces]"
        )
    cv2.setNumThreads(1)
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_default.xml"))
