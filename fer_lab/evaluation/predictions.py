"""Predictions as a run wrote them: one row a face, read back without the net that made them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

AFFECT = ("valence", "arousal")


class Predictions(NamedTuple):
    """`values` (N, K | 2 | K + 2): probabilities of `classes` and then, where the run tells them, valence and arousal.

    `labels` are the names of the true expressions.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    values: NDArray[np.float32]


def read_predictions(path: Path) -> Predictions:
    """What fer_lab.evaluate wrote as USAGE_predictions.csv."""
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    told = [place for place, name in enumerate(head) if name.startswith("p_") or name in AFFECT]
    return Predictions(
        names=tuple(row[head.index("name")] for row in rows),
        labels=tuple(row[head.index("label")] for row in rows),
        classes=tuple(name.removeprefix("p_") for name in head if name.startswith("p_")),
        values=np.array([[float(row[place]) for place in told] for row in rows], dtype=np.float32),
    )
