"""JAFFE: 213 grey pictures of seven expressions posed by ten women, labelled by their file names."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_lab.data.faces import EXPRESSIONS, LABELS, DataError, Item, expression
from fer_lab.data.files import described, existing_root, pictures, stamp_of
from fer_lab.data.images import decode

STEM = re.compile(r"(KA|KL|KM|KR|MK|NA|NM|TM|UY|YM)\.(AN|DI|FE|HA|NE|SA|SU)(\d)\.(\d+)", re.IGNORECASE)
SUFFIXES = (".tiff", ".tif", ".png", ".jpg", ".jpeg")
"""Best first, for folders that hold a picture twice."""

RATED = ("happiness", "sadness", "surprise", "anger", "disgust", "fear")
"""The columns HAP SAD SUR ANG DIS FEA of the ratings, means of 1 (not at all) to 5 (very much)."""

RATING = re.compile(r"\d+((?:\s+[\d.]+){6})\s+([A-Z]{2})-((?:AN|DI|FE|HA|NE|SA|SU)\d)\s*")
OFFICIAL = {"AN": 30, "DI": 29, "FE": 32, "HA": 31, "NE": 30, "SA": 31, "SU": 30}
MISSING = (
    'JAFFE ("The Japanese Female Facial Expression (JAFFE) Dataset", Lyons, Kamachi & Gyoba) is given out '
    "for research on request at https://zenodo.org/records/3451524; unpack it and set data.root=PATH. "
    "Drawn stand-in with the same names, counts and formats: "
    "python -m fer_lab.data.draw jaffe data/jaffe_drawn, then data.root=data/jaffe_drawn"
)


class Jaffe:
    """`root` is a flat folder or has one folder per class; .tiff or re-encoded; other files are ignored.

    `ratings`: the path of the table `# HAP SAD SUR ANG DIS FEA PIC`, whose means become votes (see `shares`) for
    `labels` other than majority; the labels themselves stay what was posed.
    """

    name = "jaffe"
    classes = EXPRESSIONS[:7]
    channels = 1
    official: ClassVar = {None: {expression(code): count for code, count in OFFICIAL.items()}}

    def __init__(self, root: str | None, ratings: str | None = None, labels: str | None = None) -> None:
        if ratings is not None and labels == LABELS[0]:
            raise DataError(
                f"data.source.ratings changes nothing with data.labels={labels}: add data.labels=crossentropy (their "
                "shares) or probability (one drawn from them each epoch), or leave the ratings out"
            )
        self.root, self.ratings = root, ratings

    def items(self) -> list[Item]:
        best: dict[str, str] = {}
        names = self._names()
        for name in sorted(names, key=lambda name: (SUFFIXES.index(_suffix(name)), name)):
            best.setdefault(PurePosixPath(name).stem.upper(), name)
        if not best:
            raise DataError(f"data.root={self.root} holds no file named like KA.AN1.39.tiff. {MISSING}")
        self._compare(Counter(stem.split(".")[1][:2] for stem in best), len(names) - len(best))
        votes = self._votes(best)
        found = (_item(stem, name, votes.get(_picture(stem))) for stem, name in best.items())
        return sorted(found, key=lambda item: item.name)

    def stamp(self) -> str:
        files = [picture for picture in pictures(self._root, depth=2) if _is_jaffe(picture.name)]
        ratings = [described(Path(self.ratings).expanduser())] if self.ratings else []
        return stamp_of([*files, *ratings], self.name)

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

    def _votes(self, stems: dict[str, str]) -> dict[str, tuple[float, ...]]:
        """By picture, like KA.AN1; says which have none."""
        if self.ratings is None:
            return {}
        votes = read_ratings(Path(self.ratings).expanduser())
        if unrated := sorted(stem for stem in stems if _picture(stem) not in votes):
            warnings.warn(
                f"{self.ratings} has no ratings of {len(unrated)} pictures ({', '.join(unrated[:5])} …): "
                "they keep what was posed",
                stacklevel=3,
            )
        return votes

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


def read_ratings(path: Path) -> dict[str, tuple[float, ...]]:
    """Shares of the seven classes by picture; the second table (fear excluded) has a column less and is passed over."""
    if not path.is_file():
        raise DataError(f"data.source.ratings={path} does not exist; name JAFFE's table of ratings, or null")
    found: dict[str, tuple[float, ...]] = {}
    for line in path.read_text("latin-1").splitlines():
        if match := RATING.fullmatch(line.strip()):
            means = [float(word) for word in match[1].split()]
            if not all(1 <= mean <= 5 for mean in means):
                raise DataError(f"{path.name} has the line {line.strip()!r}; expected means of 1 to 5")
            found.setdefault(f"{match[2]}.{match[3]}", shares(means))
    if not found:
        raise DataError(f"{path} has no line like `1 2.87 2.52 2.10 1.97 1.97 2.06 KM-NE1`")
    return found


def shares(means: Sequence[float]) -> tuple[float, ...]:
    """Each mean's excess over 1 (not at all), and for neutral what the largest excess leaves to 4, over their sum."""
    excess = {name: mean - 1 for name, mean in zip(RATED, means, strict=True)}
    excess["neutral"] = 4 - max(excess.values())
    total = sum(excess.values())
    return tuple(excess[name] / total for name in Jaffe.classes)


def _picture(stem: str) -> str:
    """KA.AN1 of KA.AN1.39."""
    return stem.rpartition(".")[0]


def _item(stem: str, name: str, votes: tuple[float, ...] | None) -> Item:
    subject, code = stem.split(".")[:2]
    return Item(name, EXPRESSIONS.index(expression(code[:2])), subject, votes=votes)


def _is_jaffe(name: str) -> bool:
    return _suffix(name) in SUFFIXES and STEM.fullmatch(PurePosixPath(name).stem) is not None


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
