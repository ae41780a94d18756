"""FER2013: 35,887 grey faces of 48x48, as one of three csv files or as folders of jpg files.

Usage is the challenge's: Training 28,709 (train), PublicTest 3,589 (validation), PrivateTest 3,589 (test).
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import EXPRESSIONS, DataError, Item
from fer_lab.data.fer2013_csv import CSV_NAMES, Table
from fer_lab.data.files import existing_root, pictures, stamp_of
from fer_lab.data.folder import SPLITS, filed
from fer_lab.data.images import decode

OFFICIAL = {"train": 28709, "validation": 3589, "test": 3589}
MISSING = (
    "FER2013 comes from Kaggle, 'Challenges in Representation Learning: Facial Expression Recognition "
    "Challenge' (icml_face_data.csv, or fer2013.csv in its tar), or as folders train/ and test/ of jpg files; "
    "unpack it and set data.root=PATH of the folder that holds them"
)


class Fer2013:
    """`root` holds fer2013.csv, icml_face_data.csv, Kaggle's train.csv, or the folders; or is their parent."""

    name = "fer2013"
    classes = EXPRESSIONS[:7]
    channels = 1
    official = OFFICIAL

    def __init__(self, root: str | None) -> None:
        self.root = root

    def items(self) -> list[Item]:
        items = self._table.items() if self._table else self._filed_items()
        _compare(self.root, Counter(item.usage for item in items))
        return items

    def stamp(self) -> str:
        return self._table.stamp() if self._table else stamp_of(pictures(self._place, depth=2), self.name)

    def content(self, item: Item) -> bytes:
        return self._table.row(item.name) if self._table else (self._place / item.name).read_bytes()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        return self._table.pixels(item.name) if self._table else decode(self.content(item), item.name)

    @cached_property
    def _place(self) -> Path:
        """The csv file, or the folder of folders."""
        root = existing_root(self.root, MISSING)
        if root.is_file():
            return root
        nested = root / "fer2013"
        for path in (folder / name for folder in (root, nested) for name in CSV_NAMES):
            if path.is_file():
                return path
        split = any(child.name.lower() in SPLITS for child in root.iterdir())
        return nested if nested.is_dir() and not split else root

    @cached_property
    def _table(self) -> Table | None:
        return Table(self._place) if self._place.suffix.lower() == ".csv" else None

    def _filed_items(self) -> list[Item]:
        names = [picture.name for picture in pictures(self._place, depth=2)]
        if not names:
            raise DataError(
                f"data.root={self.root} holds neither {', '.join(CSV_NAMES)} nor pictures. {MISSING}"
            )
        found = [_item(name, usage, shown) for name, usage, shown in filed(names)]
        if any(item.usage == "test" for item in found) and not any(
            item.usage == "validation" for item in found
        ):
            warnings.warn(
                f"the file names of FER2013 in {self.root} do not tell PublicTest from PrivateTest: "
                "all of test/ is the test split and there is no official validation split",
                stacklevel=3,
            )
        return found


def _item(name: str, usage: str | None, shown: str) -> Item:
    """A prefix such as PublicTest_ tells more than the folder test/."""
    prefix = name.rpartition("/")[2].partition("_")[0].lower()
    if shown not in Fer2013.classes:
        raise DataError(
            f"{name} is filed under {shown}, which FER2013 does not have; its classes are "
            f"{', '.join(Fer2013.classes)}; read a re-labelled copy with data=folder"
        )
    return Item(name, Fer2013.classes.index(shown), usage=SPLITS.get(prefix, usage))


def _compare(root: str | None, found: Counter[str | None]) -> None:
    if found != OFFICIAL:
        have = ", ".join(f"{usage or 'no usage'} {count:,}" for usage, count in found.items())
        release = ", ".join(f"{usage} {count:,}" for usage, count in OFFICIAL.items())
        warnings.warn(
            f"FER2013 in {root} has {have}; the release has {release}: results will not compare with published ones",
            stacklevel=3,
        )
