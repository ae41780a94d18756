"""Any pictures sorted into folders by expression: root/<split>/<class>/* or root/<class>/*."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import EXPRESSIONS, DataError, Item, expression
from fer_lab.data.files import existing_root, pictures, stamp_of
from fer_lab.data.images import decode

SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "publictest": "validation",
    "test": "test", "testing": "test", "privatetest": "test",
}  # fmt: skip
MISSING = (
    "data=folder needs data.root=PATH of a folder with one folder per expression, "
    "<class>/* or <split>/<class>/* (splits: train, validation, test)"
)


class Filed(NamedTuple):
    """A picture by the folders it lies in."""

    name: str
    usage: str | None
    expression: str


def filed(names: list[str]) -> Iterator[Filed]:
    """Usage and expression of paths like `split/class/file` or `class/file`, by name and synonym.

    Raises DataError that lists every folder that is neither, and the choices.
    """
    known: dict[str, tuple[str | None, str] | None] = {}
    for name in names:
        folder = name.rpartition("/")[0]
        if folder not in known:
            known[folder] = _meaning(folder)
    if strange := [
        repr(folder or "(the root itself)") for folder, meaning in known.items() if meaning is None
    ]:
        raise DataError(
            f"cannot tell the expression of the pictures in {', '.join(strange[:10])}; "
            f"folders are <class>/ or <split>/<class>/ with classes {', '.join(EXPRESSIONS)} (or synonyms) "
            "and splits train, validation, test; rename or move them, or name another data.root"
        )
    for name in names:
        meaning = known[name.rpartition("/")[0]]
        if meaning is not None:
            yield Filed(name, *meaning)


def _meaning(folder: str) -> tuple[str | None, str] | None:
    *above, last = folder.split("/")
    try:
        shown = expression(last)
    except DataError:
        return None
    if not above:
        return None, shown
    usage = SPLITS.get(above[0].lower())
    return (usage, shown) if usage is not None and len(above) == 1 else None


class Folder:
    """Classes are those present, in canonical order.

    `subject`: a regular expression searched in each file's name, whose group 1 is the person, so that
    splits can keep people apart; a file it does not match is an error.
    """

    name = "folder"
    channels = 3

    def __init__(self, root: str | None, subject: str | None = None) -> None:
        self.root, self.subject = root, subject

    @cached_property
    def classes(self) -> tuple[str, ...]:
        present = {picture.expression for picture in filed(self._names())}
        return tuple(shown for shown in EXPRESSIONS if shown in present)

    def items(self) -> list[Item]:
        self.__dict__.pop("classes", None)  # the files may have changed since
        found = list(filed(self._names()))
        label = {shown: place for place, shown in enumerate(self.classes)}
        return [Item(name, label[shown], self._person(name), usage) for name, usage, shown in found]

    def stamp(self) -> str:
        return stamp_of(pictures(self._root, depth=2), self.name, self.subject)

    def content(self, item: Item) -> bytes:
        return (self._root / item.name).read_bytes()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        return decode(self.content(item), item.name)

    @cached_property
    def _root(self) -> Path:
        return existing_root(self.root, MISSING)

    def _names(self) -> list[str]:
        names = [picture.name for picture in pictures(self._root, depth=2)]
        if not names:
            raise DataError(f"data.root={self.root} holds no pictures. {MISSING}")
        return names

    def _person(self, name: str) -> str | None:
        if self.subject is None:
            return None
        match = re.search(self.subject, name.rpartition("/")[2])
        if match is None or not match.groups():
            raise DataError(
                f"data.source.subject={self.subject!r} finds no group 1 in {name}; "
                "write a pattern such as '^([^_]+)_' that fits every file name, or null"
            )
        return match.group(1)
