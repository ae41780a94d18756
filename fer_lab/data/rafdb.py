"""RAF-DB, its basic expressions: 15,339 faces from the net, each labelled by about forty people.

Usage is the release's: train 12,271 and test 3,068; split=official carves validation out of train.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import EXPRESSIONS, DataError, Item, expression
from fer_lab.data.files import (
    described,
    differences,
    existing_root,
    first_existing,
    near,
    opened,
    pictures,
    stamp_of,
    totals,
)
from fer_lab.data.folder import SPLITS
from fer_lab.data.images import BadImage, decode

NATIVE = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
"""The labels 1 to 7."""

CANONICAL = {str(place): EXPRESSIONS.index(name) for place, name in enumerate(NATIVE, 1)}
OFFICIAL = {
    "train": dict(zip(NATIVE, (1290, 281, 717, 4772, 1982, 705, 2524), strict=True)),
    "test": dict(zip(NATIVE, (329, 74, 160, 1185, 478, 162, 680), strict=True)),
}
LISTS = ("EmoLabel/list_patition_label.txt", "list_patition_label.txt")
"""The release's own spelling."""

IMAGES = ("aligned", "original")
ALIGNED_SIDE = 100
MISSING = (
    "RAF-DB is given out for research on request at http://www.whdeng.cn/raf/model1.html; unpack its basic/ "
    "(EmoLabel/ and Image/) or a copy with folders train/1..7 and test/1..7, and set data.root=PATH. Drawn "
    "stand-in: python -m fer_lab.data.draw rafdb data/rafdb_drawn, then data.root=data/rafdb_drawn"
)


class RafDb:
    """`root` is basic/, its parent, or the parent of train/1..7 and test/1..7.

    `images`: aligned (100x100, the face alone) or original (the whole photograph; data.crop=box cuts the face by
    the release's own box). Copies in folders have the one kind they have.
    """

    name = "rafdb"
    classes = EXPRESSIONS[:7]
    channels = 3
    official = OFFICIAL

    def __init__(self, root: str | None, images: str = "aligned") -> None:
        if images not in IMAGES:
            raise DataError(f"data.source.images={images!r}; choices: {', '.join(IMAGES)}")
        self.root, self.images = root, images

    def items(self) -> list[Item]:
        items = self._listed(self._list) if self._list else self._filed()
        found = {usage: Counter[str]() for usage in OFFICIAL}
        for item in items:
            found.setdefault(str(item.usage), Counter())[self.classes[item.label]] += 1
        if differ := differences(found, OFFICIAL):
            warnings.warn(
                f"RAF-DB in {self.root} has {len(items):,} faces, the release 15,339 ({', '.join(differ[:7])}"
                f"{' …' if differ[7:] else ''}): results will not compare with published ones",
                stacklevel=2,
            )
        return items

    def stamp(self) -> str:
        files = pictures(self._place, depth=2)
        lists = [described(self._list)] if self._list else []
        boxes = totals(str(self._boxes)) if self.images == "original" and self._boxes else None
        return stamp_of([*files, *lists], self.name, self.images, str(self._list), boxes)

    def content(self, item: Item) -> bytes:
        return (self._place / item.name).read_bytes()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        pixels = decode(self.content(item), item.name)
        if self._list and self.images == "aligned" and pixels.shape[:2] != (ALIGNED_SIDE, ALIGNED_SIDE):
            height, width = pixels.shape[:2]
            raise BadImage(f"{width}x{height} pixels, expected {ALIGNED_SIDE}x{ALIGNED_SIDE}")
        return pixels

    @cached_property
    def _near(self) -> list[Path]:
        return near(existing_root(self.root, MISSING))

    @cached_property
    def _list(self) -> Path | None:
        """The release's list of names and labels; without it the folders tell."""
        return first_existing(place / name for place in self._near for name in LISTS)

    @cached_property
    def _place(self) -> Path:
        """What the names of items are below: the folder of the listed pictures, or that of train/ and test/."""
        if self._list:
            base = self._list.parent.parent if self._list.parent.name == "EmoLabel" else self._list.parent
            kind = self.images
            found = first_existing(base / name for name in (f"Image/{kind}/{kind}", f"Image/{kind}", kind))
            if found is None:
                raise DataError(f"{base} has no Image/{kind}/; unpack {kind}.zip there. {MISSING}")
            return found
        for place in self._near:
            if any(child.name.lower() in SPLITS for child in place.iterdir() if child.is_dir()):
                return place
        raise DataError(f"data.root={self.root} holds neither {LISTS[0]} nor train/1..7. {MISSING}")

    def _listed(self, path: Path) -> list[Item]:
        """Lines `train_00001.jpg 5`; the aligned picture is train_00001_aligned.jpg."""
        items: list[Item] = []
        problems: list[str] = []
        for number, line in enumerate(lines_of(path), 1):
            if not line.strip():
                continue
            match = re.fullmatch(r"(train|test)_(\S+?)(\.\w+)\s+([1-7])", line.strip())
            if match is None:
                problems.append(f"line {number} is {line.strip()!r}")
                continue
            usage, serial, suffix, label = match.groups()
            stem = f"{usage}_{serial}"
            name = f"{stem}_aligned{suffix}" if self.images == "aligned" else f"{stem}{suffix}"
            items.append(Item(name, CANONICAL[label], usage=usage, box=self._box(stem)))
        if problems:
            more = f"; {len(problems) - 1} more such lines" if problems[1:] else ""
            raise DataError(
                f"{path.name} {problems[0]}{more}; expected `train_00001.jpg 5` with labels 1..7 "
                f"({NATIVE[0]} … {NATIVE[-1]})"
            )
        return items

    def _box(self, stem: str) -> tuple[int, int, int, int] | None:
        """Annotation/boundingbox/train_00001_boundingbox.txt: left, top, right and bottom of the original picture."""
        if self.images == "aligned" or self._boxes is None:
            return None
        try:
            text = (self._boxes / f"{stem}_boundingbox.txt").read_text("ascii")
            left, top, right, bottom = (round(float(word)) for word in text.split()[:4])
        except (OSError, ValueError):
            return None
        return left, top, right - left, bottom - top

    @cached_property
    def _boxes(self) -> Path | None:
        base = [place for place in self._near if (place / LISTS[0]).is_file()]
        return first_existing(
            place / name for place in base for name in ("Annotation/boundingbox", "boundingbox")
        )

    def _filed(self) -> list[Item]:
        found = [picture.name for picture in pictures(self._place, depth=2)]
        meanings = {folder: _meaning(folder) for folder in {name.rpartition("/")[0] for name in found}}
        if strange := sorted(
            folder or "(the root itself)" for folder, known in meanings.items() if not known
        ):
            raise DataError(
                f"RAF-DB in {self.root} has pictures in {', '.join(strange[:10])}; expected train/1..7 and test/1..7 "
                f"({NATIVE[0]} … {NATIVE[-1]}), or their names"
            )
        known = ((name, meanings[name.rpartition("/")[0]]) for name in found)
        return [Item(name, meaning[1], usage=meaning[0]) for name, meaning in known if meaning]


def lines_of(path: Path) -> list[str]:
    with opened(path) as file:
        return file.read().splitlines()


def _meaning(folder: str) -> tuple[str, int] | None:
    """Usage and label of a folder such as train/5 or test/happiness."""
    *above, last = PurePosixPath(folder).parts or ("",)
    usage = SPLITS.get(above[0].lower()) if len(above) == 1 else None
    try:
        label = CANONICAL[last] if last in CANONICAL else RafDb.classes.index(expression(last))
    except (DataError, ValueError):
        return None
    return (usage, label) if usage else None
