"""The same face from frame to frame: one number for it, and what is told of it smoothed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray

from fer_lab.live.detect import overlap
from fer_lab.live.faces import Told

OVERLAP = 0.3
"""Intersection over union from which on two boxes are of one face."""

NEAR = 0.6
"""Share of the larger box's side by which middles may be apart where boxes overlap less (a quick movement)."""

GROWTH = 1.6
PATIENCE = 15
"""Frames for which a face may be missed and still be the same."""


@dataclass
class _Track:
    number: int
    told: Told
    missed: int = 0


class Tracker:
    """Numbers faces from 0 in the order in which they appear; a number is never given to another face.

    `smooth` is the share of the past in what is told: probabilities and affect are moving averages of each face's own.
    """

    def __init__(self, smooth: float = 0.0) -> None:
        self.smooth = smooth
        self.reset()

    def reset(self) -> None:
        """Another source follows: numbers start again."""
        self.tracks: list[_Track] = []
        self.given = 0

    def __call__(self, seen: list[Told]) -> list[Told]:
        """The faces of the next frame, in the same order, with their numbers."""
        before = dict(self._matches(seen))
        found = []
        for place, told in enumerate(seen):
            track = before.get(place)
            if track is None:
                track = _Track(self.given, told)
                self.given += 1
                self.tracks.append(track)
            else:
                told = self._smoothed(told, track.told)
            track.told, track.missed = told._replace(face_id=track.number), -1
            found.append(track.told)
        for track in self.tracks:
            track.missed += 1
        self.tracks = [track for track in self.tracks if track.missed <= PATIENCE]
        return found

    def _matches(self, seen: list[Told]) -> Iterator[tuple[int, _Track]]:
        """Place in the frame and track, best pairs first, each once."""
        pairs = [
            (closeness, place, track)
            for place, told in enumerate(seen)
            for track in self.tracks
            if (closeness := likeness(told, track.told)) > 0
        ]
        places, tracks = set(), set()
        for _, place, track in sorted(pairs, key=lambda pair: (-pair[0], pair[2].missed, pair[2].number)):
            if place not in places and track.number not in tracks:
                places.add(place)
                tracks.add(track.number)
                yield place, track

    def _smoothed(self, now: Told, past: Told) -> Told:
        if not self.smooth:
            return now
        mixed = self._mixed(now.probabilities, past.probabilities)
        total = mixed.sum()
        affect = now.affect
        if affect is not None and past.affect is not None:
            affect = self._mixed(affect, past.affect)
        return now._replace(probabilities=mixed / total if total > 0 else mixed, affect=affect)

    def _mixed(self, now: NDArray[np.float32], past: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.smooth * past + (1 - self.smooth) * now, np.float32)


def likeness(told: Told, before: Told) -> float:
    """1 to 2 for boxes that overlap enough, 0 to 1 for those that are only near, 0 for two faces."""
    one, other = told.face.box, before.face.box
    share = overlap(one, other)
    if share >= OVERLAP:
        return 1 + share
    sides = max(one[2:]), max(other[2:])
    if max(sides) > GROWTH * min(sides):
        return 0.0
    across = (one[0] + one[2] / 2) - (other[0] + other[2] / 2)
    down = (one[1] + one[3] / 2) - (other[1] + other[3] / 2)
    return max(0.0, 1 - hypot(across, down) / (NEAR * max(sides)))
