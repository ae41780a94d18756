"""Predictions as a run wrote them: one row a face, read back without the net that made them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import DataError

AFFECT = ("valence", "arousal")
TRUE_AFFECT = ("true_valence", "true_arousal")


class Predictions(NamedTuple):
    """`values` (N, K | 2 | K + 2): probabilities of `classes` and then, where the run tells them, valence and arousal.

    `labels` are the names of the true expressions; `true_affect` (N, 2) is nan where a face has none, and None where
    the table has no such columns.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    values: NDArray[np.float32]
    true_affect: NDArray[np.float64] | None

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        return self.values[:, : len(self.classes)] if self.classes else None

    @property
    def affect(self) -> NDArray[np.float32] | None:
        found = self.values[:, len(self.classes) :]
        return found if found.shape[1] else None


def read_predictions(path: Path, count: int | None = None) -> Predictions:
    """What fer_lab.evaluate wrote as USAGE_predictions.csv, of `count` faces where that is known.

    Raises DataError of a table that was cut short or changed.
    """
    text = path.read_text()
    head, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    classes = [name for name in head if name.startswith("p_")]
    told = [*classes, *(name for name in AFFECT if name in head)]
    try:
        if not text.endswith("\n") or not told or any(len(row) != len(head) for row in rows):
            raise ValueError("it was cut short")
        if count is not None and len(rows) != count:
            raise ValueError(f"it has {len(rows):,} faces, {count:,} were judged")
        if not rows:
            raise ValueError("it has no faces")
        values = numbers(rows, head, told)
        true_affect = numbers(rows, head, TRUE_AFFECT) if set(TRUE_AFFECT) <= set(head) else None
        if np.isnan(values).any():
            raise ValueError("a prediction is no number")
    except ValueError as error:
        raise DataError(
            f"{path} is not as the run wrote it ({error}); train the run again (rerun=true)"
        ) from None
    names, labels = (tuple(row[head.index(name)] for row in rows) for name in ("name", "label"))
    return Predictions(
        names,
        labels,
        tuple(name.removeprefix("p_") for name in classes),
        values.astype(np.float32),
        true_affect,
    )


def numbers(
    rows: list[list[str]], head: list[str], columns: tuple[str, ...] | list[str]
) -> NDArray[np.float64]:
    """(N, columns), nan where a cell is empty."""
    places = [head.index(name) for name in columns]
    return np.array([[float(row[place] or "nan") for place in places] for row in rows])
