"""Contact sheets: copies side by side, as pictures that stand inside the page that shows them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_lab.data.faces import USAGES, Index
from fer_lab.data.shards import Images
from fer_lab.data.splits import Split
from fer_lab.evaluation.audits import Group

SIDE = 72  # pixels that a picture in a sheet has at most
FACES = 12  # of a larger group


@dataclass(frozen=True)
class Face:
    name: str
    label: str
    part: str
    picture: str  # a data: address


@dataclass(frozen=True)
class Card:
    """One group; `more` of its faces are not shown."""

    faces: Sequence[Face]
    score: float
    disagrees: bool
    more: int


@dataclass(frozen=True)
class Sheet:
    """`cards` of `total` groups."""

    title: str
    words: str
    cards: Sequence[Card]
    total: int


def sheets(
    groups: Sequence[Group], index: Index, split: Split, images: Images, limits: Sequence[int]
) -> list[Sheet]:
    """Groups that cross the parts of the split and those that do not, each with and without conflicting labels.

    `limits` are the most cards of each of the four; those whose faces are least alike come first.
    """
    parts = parts_of(index, split)
    rows = {name: row for row, name in enumerate(index.names)}
    kinds: list[list[Group]] = [[], [], [], []]
    for group in sorted(groups, key=lambda one: one.score):
        met = {parts[rows[name]] for name in group.names} - {""}
        if met:
            kinds[(len(met) == 1) + 2 * (not group.disagrees)].append(group)
    return [
        Sheet(
            title, words, [card(one, rows, parts, images) for one in kinds[place][:limit]], len(kinds[place])
        )
        for (place, title, words), limit in zip(SHEETS, limits, strict=True)
        if kinds[place]
    ]


SHEETS = (
    (0, "Across parts, labels conflict", "What trains is judged by copies of it, and not all of them have the same label."),
    (2, "Across parts", "What trains, chooses and tests are copies of each other: to know them again is enough."),
    (1, "Within one part, labels conflict", "At least one of the labels of each group is wrong."),
    (3, "Within one part", "One face, counted several times."),
)  # fmt: skip


def parts_of(index: Index, split: Split) -> Mapping[int, str]:
    """The part of each row; "" of rows that the split leaves out."""
    found = dict.fromkeys(range(len(index)), "")
    for usage in USAGES:
        found |= dict.fromkeys(getattr(split, usage).tolist(), usage)
    return found


def card(group: Group, rows: Mapping[str, int], parts: Mapping[int, str], images: Images) -> Card:
    shown = [rows[name] for name in group.names[:FACES]]
    pictures = images[np.array(shown)]
    faces = [
        Face(name, label, parts[row] or "left out", address(picture))
        for name, label, row, picture in zip(group.names, group.labels, shown, pictures, strict=False)
    ]
    return Card(faces, group.score, group.disagrees, len(group.names) - len(faces))


def address(picture: NDArray[np.uint8]) -> str:
    """(C, H, W) as a data: address of a JPEG of at most SIDE pixels."""
    whole = Image.fromarray(
        np.ascontiguousarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0))
    )
    whole.thumbnail((SIDE, SIDE))
    kept = BytesIO()
    whole.save(kept, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode()
