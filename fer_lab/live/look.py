"""One frame at a time: find the faces, cut them as in training, ask the net, follow and smooth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fer_lab.live.crop import face_square
from fer_lab.live.detect import Detector
from fer_lab.live.faces import Face, Net, Pixels, Told
from fer_lab.live.track import Tracker


class Look:
    """`detector` finds faces; a `tracker` numbers them across frames (and smooths what is told, if it was made to); `align`
    turns faces so that their eyes are level."""

    def __init__(
        self, net: Net, detector: Detector, tracker: Tracker | None = None, align: bool = True
    ) -> None:
        self.net, self.detector, self.tracker, self.align = net, detector, tracker, align

    def __call__(self, pixels: Pixels) -> list[Told]:
        faces = self.detector(pixels)
        return self.told(faces, self.ask(self.squares(pixels, faces)))

    def squares(self, pixels: Pixels, faces: Sequence[Face]) -> NDArray[np.uint8]:
        """(B, channels, size, size)."""
        net = self.net
        if not faces:
            return np.empty((0, net.channels, net.size, net.size), np.uint8)
        return np.stack([face_square(pixels, one, net, self.align) for one in faces])

    def ask(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, O)."""
        if not len(squares):
            return np.empty((0, len(self.net.classes) + 2 * self.net.affect), np.float32)
        return self.net.tell(squares)

    def told(self, faces: Sequence[Face], answers: NDArray[np.float32]) -> list[Told]:
        """The frame's faces with what was told of them; frames come in their order."""
        classes = len(self.net.classes)
        found = [
            Told(place, face, answer[:classes], answer[classes:] if self.net.affect else None)
            for place, (face, answer) in enumerate(zip(faces, answers, strict=True))
        ]
        return found if self.tracker is None else self.tracker(found)
