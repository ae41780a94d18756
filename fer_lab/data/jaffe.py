"""JAFFE: 213 grey pictures of seven expressions posed by ten women, labelled by their file names."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_lab.data.faces import EXPRESSIONS, DataError, Item, expression
from fer_lab.data.files import existing_root, pictures, stamp_of
from fer_lab.data.images import decode

STEM = re.compile(r"(KA|KL|KM|KR|MK|NA|NM|TM|UY|YM)\.(AN|DI|FE|HA|NE|SA|SU)(\d)\.(\d+)", re.IGNORECASE)
SUFFIXES = (".tiff", ".tif", ".png", ".jpg", ".jpeg")
"""Best first, for folders that hold a picture twice."""

OFFICIAL = {"AN": 30, "DI": 29, "FE": 32, "HA": 31, "NE": 30, "SA": 31, "SU": 30}
MISSING = (
    'JAFFE ("The Japanese Female Facial Expression (JAFFE) Dataset", Lyons, Kamachi & Gyoba) is given out '
    "for research on request at https://zenodo.org/records/3451524; unpack it and set data.root=PATH. "
    "Drawn stand-in with the same names, counts and formats: "
    "python -m fer_lab.data.draw jaffe data/jaffe_drawn, then data.root=data/jaffe_drawn"
)


class Jaffe:
    """`root` is a flat folder or has one folder per class; .tiff or re-encoded; other files are ignored."""

    name = "jaffe"
    classes = EXPRESSIONS[:7]
    channels = 1

    def __init__(self, root: str | None) -> None:
        self.root = root

    def items(self) -> list[Item]:
        best: dict[str, str] = {}
        names = self._names()
        for name in sorted(names, key=lambda name: (SUFFIXES.index(_suffix(name)), name)):
            best.setdefault(PurePosixPath(name).stem.upper(), name)
        if not best:
            raise DataError(f"data.root={self.root} holds no file named like KA.AN1.39.tiff. {MISSING}")
        self._compare(Counter(stem.split(".")[1][:2] for stem in best), len(names) - len(best))
        return sorted((_item(stem, name) for stem, name in best.items()), key=lambda item: item.name)

    def stamp(self) -> str:
        files = [picture for picture in pictures(self._root, depth=2) if _is_jaffe(picture.name)]
        return stamp_of(files, self.name)

    def content(self, item: Item) -> bytes:
        return (self._root / item.name).read_bytes()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        """Grey (H, W), as 23 of the files are palettes of greys and re-encodes are often RGB."""
        pixels = decode(self.content(item), item.name)
        return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))

    @cached_property
    def _root(self) -> Path:
        return existing_root(self.root, MISSING)

    def _names(self) -> list[str]:
        return [picture.name for picture in pictures(self._root, depth=2) if _is_jaffe(picture.name)]

    def _compare(self, found: Counter[str], copies: int) -> None:
        if copies:
            warnings.warn(f"JAFFE in {self.root}: {copies} second copies of a picture left out", stacklevel=3)
        if found != OFFICIAL:
            differ = [f"{code} {found[code]} not {n}" for code, n in OFFICIAL.items() if found[code] != n]
            warnings.warn(
                f"JAFFE in {self.root} has {sum(found.values())} pictures, the release has 213 "
                f"({', '.join(differ)}): results will not compare with published ones",
                stacklevel=3,
            )


def _item(stem: str, name: str) -> Item:
    subject, code = stem.split(".")[:2]
    return Item(name, EXPRESSIONS.index(expression(code[:2])), subject)


def _is_jaffe(name: str) -> bool:
    return _suffix(name) in SUFFIXES and STEM.fullmatch(PurePosixPath(name).stem) is not None


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
