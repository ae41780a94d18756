"""What was seen, in short: counts, and a line for each followed face."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lab.live.faces import Net, Seen, Told
from fer_lab.live.rows import DIGITS, Row, append, csv_lines, printable

FORGOTTEN = 300
"""Frames that were looked at, after which a face that is not in them will not come again under its number: its line is written then."""


@dataclass
class Counts:
    frames: int = 0
    faces: int = 0
    without: int = 0
    faults: int = 0

    def add(self, seen: Seen) -> None:
        self.frames += 1
        self.faces += len(seen.faces)
        self.faults += bool(seen.frame.fault)
        self.without += not seen.faces and not seen.frame.fault


@dataclass
class _Track:
    source: str
    first: float
    last: float
    last_look: int
    sums: NDArray[np.float64]
    frames: int = 0
    labels: Counter[int] = field(default_factory=Counter)


class Tracks:
    """tracks.csv in `folder`: each followed face with its time, its commonest expression and its means.

    A line is written when its face is gone for good, so that memory does not grow with the video.
    """

    def __init__(self, folder: Path, net: Net) -> None:
        self.path, self.net = folder / "tracks.csv", net
        self.tracks: dict[int, _Track] = {}
        self.looks = 0
        self.file = FileIO(self.path, "w")
        means = (*(f"p_{name}" for name in net.classes), "valence", "arousal")
        header = ("source", "face_id", "frames", "first_s", "last_s", "label", "label_share", *means)
        append(self.file, csv_lines([header]))

    def add(self, seen: Seen) -> None:
        """The next frame of a source; `end` comes before the next source."""
        self.looks += 1
        for told in seen.faces:
            self._add_face(seen, told)
        if self.looks % FORGOTTEN == 0:
            left = [one for one, track in self.tracks.items() if track.last_look < self.looks - FORGOTTEN]
            self._write(left)

    def _add_face(self, seen: Seen, told: Told) -> None:
        values = [told.probabilities, *([] if told.affect is None else [told.affect])]
        track = self.tracks.get(told.face_id)
        time = seen.frame.time_s or 0.0
        if track is None:
            sums = np.zeros(sum(map(len, values)))
            track = self.tracks[told.face_id] = _Track(seen.frame.source, time, time, 0, sums)
        track.last, track.last_look, track.frames = time, self.looks, track.frames + 1
        track.sums += np.concatenate(values)
        if len(told.probabilities):
            track.labels[int(told.probabilities.argmax())] += 1

    def end(self) -> None:
        """Of a source."""
        self._write(list(self.tracks))

    def _write(self, numbers: list[int]) -> None:
        append(self.file, csv_lines(self._row(number, self.tracks.pop(number)) for number in sorted(numbers)))

    def _row(self, number: int, track: _Track) -> Row:
        best, count = track.labels.most_common(1)[0] if track.labels else (None, 0)
        label = ("", "") if best is None else (self.net.classes[best], round(count / track.frames, DIGITS))
        means = (track.sums / track.frames).round(DIGITS).tolist() + [""] * (0 if self.net.affect else 2)
        times = (round(track.first, DIGITS), round(track.last, DIGITS))
        return (printable(track.source), number, track.frames, *times, *label, *means)

    def close(self) -> Path:
        with self.file:
            self.end()
        return self.path
