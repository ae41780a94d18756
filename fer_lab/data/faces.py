"""The label space, the index of a data set, and the batch that flows from the data to the net."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the processes that build the cache read this file and must not wait for torch
    from torch import Tensor

EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
"""Canonical order (AffectNet's); sets of seven classes use the first seven."""

SYNONYMS = {
    "neutral": "neutral", "ne": "neutral", "neutrality": "neutral",
    "happiness": "happiness", "happy": "happiness", "ha": "happiness", "joy": "happiness",
    "sadness": "sadness", "sad": "sadness", "sa": "sadness",
    "surprise": "surprise", "surprised": "surprise", "su": "surprise",
    "fear": "fear", "fearful": "fear", "afraid": "fear", "fe": "fear",
    "disgust": "disgust", "disgusted": "disgust", "di": "disgust",
    "anger": "anger", "angry": "anger", "an": "anger",
    "contempt": "contempt", "contemptuous": "contempt", "co": "contempt",
}  # fmt: skip

USAGES = ("train", "validation", "test")
TEST_VIEWS = ("none", "flip", "five", "ten")
"""What a prediction may be averaged over: the face, its mirror image, five crops, or those and theirs."""


LABELS = ("majority", "crossentropy", "probability")
"""What a face trains on where several judges labelled it: their choice, their shares, or one of them at random."""


class DataError(ValueError):
    """A data set that is missing, broken or asked for something it does not have; the text says what to do."""


def expression(name: str) -> str:
    """The canonical name of an expression, whatever spelling a data set uses.

    Raises DataError that lists the choices when no synonym fits.
    """
    word = name.strip().lower()
    if word in SYNONYMS:
        return SYNONYMS[word]
    near = get_close_matches(word, SYNONYMS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise DataError(f"{name!r} is not an expression{hint}; choices: {', '.join(EXPRESSIONS)}")


@dataclass(frozen=True)
class Item:
    """One labelled picture of a data set, before any pixel is read.

    `name` is unique in its data set (the path below the root, or `fer2013.csv:17`), `label` an index
    into the set's `classes`, `usage` one of USAGES where the data set has an official split. Where the data set says
    so: `votes`, the share of its judges that chose each class (they sum to 1); `affect`, valence and arousal in -1..1;
    `box`, the face as left, top, width and height in pixels of the picture.
    """

    name: str
    label: int
    subject: str | None = None
    usage: str | None = None
    votes: tuple[float, ...] | None = None
    affect: tuple[float, float] | None = None
    box: tuple[int, int, int, int] | None = None


class Source(Protocol):
    """A data set on disk (or drawn): what it holds, and the pixels of each item.

    Instances are pickled to the processes that build the cache, so they hold paths and numbers, not images.
    """

    name: str
    classes: tuple[str, ...]
    channels: int

    def items(self) -> list[Item]:
        """Every labelled picture, in an order that depends on the names alone."""

    def stamp(self) -> str:
        """A cheap text that changes whenever a file is added, removed or rewritten."""

    def content(self, item: Item) -> bytes:
        """The undecoded bytes of an item, for the content key of the cache."""

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        """(H, W) grey or (H, W, 3) RGB; raises fer_lab.data.images.BadImage with the reason."""


@dataclass(frozen=True)
class Index:
    """The usable items of a data set as columns, aligned with the rows of the image cache.

    `votes` (N, K) are shares of the judges, `affect` (N, 2) valence and arousal in -1..1, nan where undefined; None
    where the data set has none.
    """

    name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    subjects: tuple[str | None, ...] = ()
    usages: tuple[str | None, ...] = ()
    digest: str = field(default="", compare=False)
    votes: NDArray[np.float32] | None = field(default=None, compare=False)
    affect: NDArray[np.float32] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, name: str, classes: Sequence[str], items: Sequence[Item], digest: str = "") -> Index:
        return cls(
            name=name,
            classes=tuple(classes),
            names=tuple(item.name for item in items),
            labels=np.array([item.label for item in items], dtype=np.int64),
            subjects=tuple(item.subject for item in items),
            usages=tuple(item.usage for item in items),
            digest=digest,
            votes=columns([item.votes for item in items], width=len(classes)),
            affect=columns([item.affect for item in items], width=2),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_subjects(self) -> bool:
        return len(self.subjects) > 0 and all(subject is not None for subject in self.subjects)

    @property
    def has_usages(self) -> bool:
        return len(self.usages) > 0 and all(usage is not None for usage in self.usages)

    def subset(self, rows: NDArray[np.int64]) -> Index:
        return Index(
            self.name,
            self.classes,
            tuple(self.names[row] for row in rows),
            self.labels[rows],
            tuple(self.subjects[row] for row in rows),
            tuple(self.usages[row] for row in rows),
            self.digest,
            None if self.votes is None else self.votes[rows],
            None if self.affect is None else self.affect[rows],
        )

    def counts(self) -> dict[str, int]:
        """Number of items of each class, by name."""
        return {name: int((self.labels == label).sum()) for label, name in enumerate(self.classes)}


def columns(values: Sequence[Sequence[float] | None], width: int) -> NDArray[np.float32] | None:
    """(N, width) with nan where an item has none; None where no item has any."""
    if all(value is None for value in values):
        return None
    return np.array([[np.nan] * width if value is None else value for value in values], dtype=np.float32)


class Faces(NamedTuple):
    """A batch. `labels` are class indices (B,) or, of several judges or after mixup, probabilities (B, K)."""

    images: (
        Tensor  # (B, C, H, W) uint8 as cached; float in 0..1 once prepared; (V, B, C, H, W) test-time views
    )
    labels: Tensor
    positions: Tensor  # (B,) rows of the cache
    features: Tensor | None = None  # (B, …) a frozen backbone's output, in place of images
    affect: Tensor | None = None  # (B, 2) valence and arousal in -1..1, nan where undefined
    total: int | None = None  # faces in the total batch of which these are one process's share


def digest(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each with its length, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()
