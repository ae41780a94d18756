"""AffectNet as given out since 2021: pictures of 224x224 with expression, valence and arousal in small npy files.

The release has no test set: its validation set is reported as `test`, and split=official carves validation out of
train. Valence and arousal are undefined where they are -2.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import EXPRESSIONS, DataError, Item
from fer_lab.data.files import Picture, differences, existing_root, near, pictures, stamp_of, totals
from fer_lab.data.images import decode

NATIVE = (*EXPRESSIONS, "none", "uncertain", "no face")
"""The labels 0 to 10: the canonical order and what is no expression."""

TRAIN_COUNTS = dict(zip(EXPRESSIONS, (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750), strict=True))
VALIDATION_COUNTS = dict.fromkeys(EXPRESSIONS, 500) | {"contempt": 499}
FOLDERS = {"train_set": "train", "val_set": "test"}
READERS = 16
"""Threads: they wait for the disk, or for a file server, and hardly compute."""

BATCH = 1000
LARGEST = 4096
"""Bytes read of an annotation; the release's are of about 150."""

UNDEFINED = "-2"
NPY_MAGIC = b"\x93NUMPY\x01\x00"
MISSING = (
    "AffectNet is given out by licence (Mollahosseini, Hasani & Mahoor; http://mohammadmahoor.com/affectnet/); unpack "
    "train_set/ and val_set/, each with images/ and annotations/, and set data.root=PATH of the folder that holds "
    "them (the older release with training.csv: data=affectnet_old). Drawn stand-in: "
    "python -m fer_lab.data.draw affectnet data/affectnet_drawn, then data.root=data/affectnet_drawn"
)


class Annotation(NamedTuple):
    """What was said of a picture; `expression` is one of NATIVE's places."""

    name: str
    usage: str
    expression: int
    valence: float
    arousal: float
    box: tuple[int, int, int, int] | None = None


class AffectNet:
    """`root` holds train_set/ and val_set/, or is their parent. `classes`: 8, or 7 to leave contempt out."""

    name = "affectnet"
    channels = 3

    def __init__(self, root: str | None, classes: int = 8) -> None:
        self.root, self.classes = root, chosen_classes(classes)

    def items(self) -> list[Item]:
        known = self._annotations()
        return items_of(known, self.classes, self.root, {"train": TRAIN_COUNTS, "test": VALIDATION_COUNTS})

    @property
    def official(self) -> dict[str, dict[str, int]]:
        parts = {"train": TRAIN_COUNTS, "test": VALIDATION_COUNTS}
        return {usage: {name: counts[name] for name in self.classes} for usage, counts in parts.items()}

    def stamp(self) -> str:
        labels = [totals(str(folder / "annotations")) for folder in self._folders]
        return stamp_of(
            [picture for folder in self._folders for picture in _images(folder)],
            *(self.name, self.classes, labels),
        )

    def content(self, item: Item) -> bytes:
        return (self._place / item.name).read_bytes()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        return decode(self.content(item), item.name)

    @cached_property
    def _place(self) -> Path:
        for place in near(existing_root(self.root, MISSING)):
            if (place / "train_set/images").is_dir():
                return place
        raise DataError(f"data.root={self.root} holds no train_set/images. {MISSING}")

    @property
    def _folders(self) -> list[Path]:
        return [folder for name in FOLDERS if (folder := self._place / name).is_dir()]

    def _annotations(self) -> Iterator[Annotation]:
        """Of every picture that has any, in the order of names."""
        missing = 0
        for folder in self._folders:
            names = [picture.name for picture in _images(folder)]
            stems = [name[: name.rfind(".")] for name in names]
            for name, values in zip(names, read_annotations(folder / "annotations", stems), strict=True):
                if values is None:
                    missing += 1
                else:
                    yield Annotation(f"{folder.name}/images/{name}", FOLDERS[folder.name], *values)
        if missing:
            warnings.warn(
                f"AffectNet in {self.root}: {missing:,} pictures without annotations left out", stacklevel=4
            )


def chosen_classes(count: int) -> tuple[str, ...]:
    if count not in (7, 8):
        raise DataError(f"data.source.classes={count}; choices: 7 (without contempt), 8")
    return EXPRESSIONS[:count]


def items_of(
    annotations: Iterable[Annotation],
    classes: tuple[str, ...],
    root: str | None,
    official: dict[str, dict[str, int]],
) -> list[Item]:
    """The faces that show one of `classes`; says how many do not, and where the counts are not the release's."""
    kept: list[Item] = []
    dropped: Counter[str] = Counter()
    found = {usage: Counter[str]() for usage in official}
    for one in annotations:
        shown = NATIVE[one.expression]
        if shown not in classes:
            dropped[shown] += 1
            continue
        found[one.usage][shown] += 1
        affect = None if -2 in (one.valence, one.arousal) else (one.valence, one.arousal)
        kept.append(Item(one.name, one.expression, usage=one.usage, affect=affect, box=one.box))
    if dropped:
        reasons = ", ".join(f"{count:,} {shown}" for shown, count in dropped.most_common())
        warnings.warn(f"AffectNet in {root}: {dropped.total():,} faces left out ({reasons})", stacklevel=3)
    wanted = {usage: {name: counts[name] for name in classes} for usage, counts in official.items()}
    if differ := differences(found, wanted):
        warnings.warn(
            f"AffectNet in {root} differs from the release ({', '.join(differ[:8])}{' …' if differ[8:] else ''}): "
            "results will not compare with published ones",
            stacklevel=3,
        )
    return kept


def read_annotations(folder: Path, stems: list[str]) -> Iterator[tuple[int, float, float] | None]:
    """Expression, valence and arousal of each stem, None where a file is absent; read by READERS threads."""

    def read(some: list[str]) -> list[tuple[int, float, float] | None]:
        return [read_one(f"{folder}/{stem}") for stem in some]

    batches = [stems[start : start + BATCH] for start in range(0, len(stems), BATCH)]
    with ThreadPoolExecutor(READERS) as threads:
        for values in threads.map(read, batches):
            yield from values


def read_one(stem: str) -> tuple[int, float, float] | None:
    shown, *affect = (word_of(f"{stem}_{kind}.npy") for kind in ("exp", "val", "aro"))
    if shown is None:
        return None
    try:
        return checked(shown, *(word or UNDEFINED for word in affect))
    except ValueError as error:
        raise DataError(f"{stem}_*.npy has {error}") from None


def word_of(path: str) -> str | None:
    """None where there is no such file. Plain system calls: Path.read_bytes takes three times as long."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return scalar(os.read(file, LARGEST), path)
    finally:
        os.close(file)


def checked(expression: str, valence: str, arousal: str) -> tuple[int, float, float]:
    """Numbers of the words in the files; raises ValueError with what was expected."""
    label = float(expression)
    if label != int(label) or not 0 <= label < len(NATIVE):
        raise ValueError(f"expression {expression}; expected 0..10 ({NATIVE[0]} … {NATIVE[-1]})")
    values = float(valence), float(arousal)
    for name, value in zip(("valence", "arousal"), values, strict=True):
        if value != -2 and not -1 <= value <= 1:
            raise ValueError(f"{name} {value:g}; expected -1..1, or -2 where it is undefined")
    return int(label), *values


def scalar(data: bytes, path: str) -> str:
    """The one value of an npy file, a text in the release, as a word; np.load takes ten times as long."""
    if not data.startswith(NPY_MAGIC):
        raise DataError(f"{path} is no npy file of version 1; unpack it again")
    end = len(NPY_MAGIC) + 2 + int.from_bytes(data[8:10], "little")
    try:
        kind = _kind(data[10:end])
    except (ValueError, SyntaxError, KeyError, TypeError):  # all that a broken header can be
        raise DataError(f"{path} has a broken header; unpack it again") from None
    if kind.hasobject or len(data) < end + kind.itemsize:
        raise DataError(
            f"{path} holds {kind} in {len(data)} bytes; expected one text or number, not a pickle"
        )
    return str(np.frombuffer(data, kind, count=1, offset=end)[0])


@cache
def _kind(header: bytes) -> np.dtype:
    """A handful of headers serve a million files."""
    from ast import literal_eval

    return np.dtype(literal_eval(header.decode("latin1"))["descr"])


def _images(folder: Path) -> list[Picture]:
    return pictures(folder / "images", depth=0)
