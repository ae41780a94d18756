"""AffectNet as first given out: photographs of any size, and csv files with a face box and 68 landmarks a row.

The box is what data.crop=box cuts out. As in the newer release, its validation set is reported as `test`.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.affectnet import (
    TRAIN_COUNTS,
    Annotation,
    checked,
    chosen_classes,
    items_of,
)
from fer_lab.data.faces import EXPRESSIONS, DataError, Item
from fer_lab.data.files import described, existing_root, first_existing, near, opened, stamp_of, totals
from fer_lab.data.images import decode

COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)
LISTS = {"training.csv": "train", "validation.csv": "test"}
IMAGES = "Manually_Annotated_Images"
VALIDATION_COUNTS = dict.fromkeys(EXPRESSIONS, 500)
MISSING = (
    "The first release of AffectNet has training.csv, validation.csv and the folder Manually_Annotated_Images (or "
    "its numbered folders); put them into one folder and set data.root=PATH of it (train_set/ and val_set/: "
    "data=affectnet). Drawn stand-in: python -m fer_lab.data.draw affectnet_old data/affectnet_old_drawn, then "
    "data.root=data/affectnet_old_drawn"
)


class AffectNetOld:
    """`root` holds the csv files and the pictures, or folders with them. `classes`: 8, or 7 without contempt.

    Files that the lists name and the disk has not are among the unusable pictures (data.bad).
    """

    name = "affectnet_old"
    channels = 3

    def __init__(self, root: str | None, classes: int = 8) -> None:
        self.root, self.classes = root, chosen_classes(classes)

    def items(self) -> list[Item]:
        official = {"train": TRAIN_COUNTS, "test": VALIDATION_COUNTS}
        return items_of(self._annotations(), self.classes, self.root, official)

    @property
    def official(self) -> dict[str, dict[str, int]]:
        parts = {"train": TRAIN_COUNTS, "test": VALIDATION_COUNTS}
        return {usage: {name: counts[name] for name in self.classes} for usage, counts in parts.items()}

    def stamp(self) -> str:
        lists = [described(path) for path in self._lists]
        return stamp_of(lists, self.name, self.classes, totals(str(self._place)))

    def content(self, item: Item) -> bytes:
        return (self._place / item.name).read_bytes()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        return decode(self.content(item), item.name)

    @cached_property
    def _near(self) -> list[Path]:
        """Two folders deep: the archives hold Manually_Annotated/Manually_Annotated_Images."""
        root = existing_root(self.root, MISSING)
        return [place for child in near(root) for place in ([root] if child == root else near(child))]

    @cached_property
    def _lists(self) -> list[Path]:
        found = [first_existing(place / name for place in self._near) for name in LISTS]
        if found[0] is None:
            raise DataError(f"data.root={self.root} holds no training.csv. {MISSING}")
        return [path for path in found if path]

    @cached_property
    def _place(self) -> Path:
        """What the paths of the lists are below: the first folder that has one of their first hundred."""
        names = [row[0] for row, _ in zip(rows_of(self._lists[0]), range(100), strict=False)]
        places = [place for place in self._near if place.name.startswith(IMAGES)] + self._near
        for place in places:
            if any((place / name).is_file() for name in names):
                return place
        raise DataError(
            f"none of the first {len(names)} pictures of {self._lists[0]} ({names[0] if names else 'no row'} …) "
            f"lies in {self.root} or {IMAGES}/. {MISSING}"
        )

    def _annotations(self) -> Iterator[Annotation]:
        seen: set[str] = set()
        copies = 0
        for path in self._lists:
            for number, row in enumerate(rows_of(path), 1):
                one = annotation(row, LISTS[path.name], f"{path.name} row {number}")
                if one.name in seen:
                    copies += 1
                else:
                    seen.add(one.name)
                    yield one
        if copies:
            warnings.warn(
                f"AffectNet in {self.root}: {copies:,} rows that name a picture again left out", stacklevel=4
            )


def rows_of(path: Path) -> Iterator[list[str]]:
    """The rows below the header, which training.csv may not have."""
    with opened(path) as file:
        for number, row in enumerate(csv.reader(file)):
            if row and not (number == 0 and row[0].strip().lower() == COLUMNS[0].lower()):
                yield row


def annotation(row: list[str], usage: str, where: str) -> Annotation:
    if len(row) != len(COLUMNS):
        raise DataError(f"{where} has {len(row)} columns; expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
    try:
        shown = checked(*(word.strip() for word in row[-3:]))
    except ValueError as error:
        raise DataError(f"{where} has {error}") from None
    name = row[0].strip().replace("\\", "/")
    return Annotation(name, usage, *shown, box=box_of(row[1:5]))


def box_of(words: list[str]) -> tuple[int, int, int, int] | None:
    """None where there is none: the release writes NULL or negative numbers then."""
    try:
        left, top, width, height = (round(float(word)) for word in words)
    except ValueError:
        return None
    return (left, top, width, height) if width > 0 and height > 0 else None
