"""Frames with faces as a look leaves them, made by hand."""

from __future__ import annotations

import numpy as np

from fer_lab.live.faces import Face, Frame, Net, Seen, Told

CLASSES = ("neutral", "happiness", "sadness")
BASE = Net("net", CLASSES, 8, 1, True, 0.0, False, lambda squares: np.empty((len(squares), 5), np.float32))
PLAIN = BASE._replace(affect=False)
AFFECT = BASE._replace(classes=())


def told(number: int, shares=(0.1, 0.7, 0.2), affect=(0.5, -0.25), box=(4, 5, 30, 30), score=12.0) -> Told:
    values = None if affect is None else np.array(affect, np.float32)
    return Told(number, Face(box, score), np.array(shares, np.float32), values)


def seen(number=0, faces=(), source="clip.mp4", time_s=0.0, pixels=None, fault="") -> Seen:
    return Seen(Frame(source, number, time_s, pixels, fault), tuple(faces))


def moving(frames: int, width: int = 161, height: int = 121):
    for number in range(frames):
        pixels = np.full((height, width, 3), 90, np.uint8)
        pixels[:, : number + 1] = (200, 40, 40)
        yield seen(
            number, [told(0, affect=None, box=(60, 40, 50, 50))], time_s=number**1.1 / 25, pixels=pixels
        )
