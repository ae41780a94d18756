"""FER+: the faces of FER2013 judged again by ten people each (Barsoum et al. 2016), eight expressions.

The rules are those of the paper's own code. The label is the `majority`: single votes are outliers and fall away, and
the winner needs more than half of what is left. Faces that unknown or "not a face" win, that nobody wins, or that have
no image name are left out. With data.labels=crossentropy or probability, faces that nobody wins train nevertheless,
where their foremost expressions have more than half of the votes together (see `foremost`).
"""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import EXPRESSIONS, LABELS, DataError, Item
from fer_lab.data.fer2013_csv import USAGES, Table
from fer_lab.data.files import described, existing_root, first_existing, near, opened, pictures, stamp_of
from fer_lab.data.images import decode

COLUMNS = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)
"""FER+'s order of votes; its last two are no expressions."""

VOTES_NAME = "fer2013new.csv"
TABLE_NAMES = ("fer2013.csv", "icml_face_data.csv")
FOLDERS = {"FER2013Train": "train", "FER2013Valid": "validation", "FER2013Test": "test"}
OFFICIAL = {"train": 28709, "validation": 3589, "test": 3589}
LEAST_AGREEMENT = 0.4
"""Of FER+'s labels with FER2013's; rows that belong together agree in about two thirds."""

MISSING = (
    f"FER+ is {VOTES_NAME} of https://github.com/microsoft/FERPlus beside {' or '.join(TABLE_NAMES)} of FER2013 "
    f"(their rows belong together; FER2013 as folders has lost that order), or the folders {', '.join(FOLDERS)} "
    "with label.csv that its script writes; set data.root=PATH of the folder that holds them. Drawn stand-in: "
    "python -m fer_lab.data.draw ferplus data/ferplus_drawn, then data.root=data/ferplus_drawn"
)


class Row(NamedTuple):
    """A face and its judges; `name` is empty where the row has no image name."""

    name: str
    usage: str
    votes: tuple[int, ...]


class FerPlus:
    """`root` holds fer2013new.csv and FER2013's csv, or Microsoft's three folders; or is their parent.

    `labels` (LABELS) is what the faces train on; validation and test are always the majority's.
    """

    name = "ferplus"
    classes = EXPRESSIONS
    channels = 1
    official = OFFICIAL

    def __init__(self, root: str | None, labels: str = LABELS[0]) -> None:
        self.root, self.by_majority = root, labels == LABELS[0]

    def items(self) -> list[Item]:
        kept: list[Item] = []
        dropped: Counter[str] = Counter()
        usages: Counter[str] = Counter()
        for row in self._rows():
            usages[row.usage] += 1
            found = self._judged(row)
            if isinstance(found, Item):
                kept.append(found)
            else:
                dropped["not a face" if found == "NF" else found] += 1
        self._report(usages, dropped)
        return kept

    def _judged(self, row: Row) -> Item | str:
        """The face with its label and votes, or why it is left out."""
        winner = majority(row.votes) if row.name else "no image name"
        votes = shares(row.votes)
        if row.name and row.usage == "train" and not self.by_majority:
            votes = shares(foremost(row.votes))
            winner = EXPRESSIONS[votes.index(max(votes))] if votes else winner
        if winner not in EXPRESSIONS or not votes:
            return "no majority" if winner in EXPRESSIONS else winner
        return Item(row.name, EXPRESSIONS.index(winner), usage=row.usage, votes=votes)

    def stamp(self) -> str:
        if self._table:
            return stamp_of([described(self._votes)], *self._settings, self._table.stamp())
        lists = [described(path)._replace(name=str(path)) for path in self._lists()]
        return stamp_of([*pictures(self._place, depth=1), *lists], *self._settings)

    def content(self, item: Item) -> bytes:
        return self._table.row(item.name) if self._table else (self._place / item.name).read_bytes()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        return self._table.pixels(item.name) if self._table else decode(self.content(item), item.name)

    @property
    def _settings(self) -> tuple[str, ...]:
        """What chooses the faces; by majority as before there was a choice, so that caches are found again."""
        return (self.name,) if self.by_majority else (self.name, "foremost")

    @cached_property
    def _places(self) -> list[Path]:
        return near(existing_root(self.root, MISSING))

    @cached_property
    def _place(self) -> Path:
        """The folder of Microsoft's folders."""
        for place in self._places:
            if first_existing(place / name / "label.csv" for name in FOLDERS):
                return place
        raise DataError(f"data.root={self.root} holds no FER+. {MISSING}")

    @cached_property
    def _votes(self) -> Path:
        found = first_existing(place / VOTES_NAME for place in self._places)
        assert found is not None
        return found

    @cached_property
    def _table(self) -> Table | None:
        """FER2013's csv, where the votes lie beside it."""
        table = first_existing(place / name for name in TABLE_NAMES for place in self._places)
        votes = first_existing(place / VOTES_NAME for place in self._places)
        if (
            votes
            and not table
            and not first_existing(place / name for place in self._places for name in FOLDERS)
        ):
            raise DataError(f"data.root={self.root} holds {VOTES_NAME} without {TABLE_NAMES[0]}. {MISSING}")
        return Table(table) if table and votes else None

    def _lists(self) -> list[Path]:
        return [path for name in FOLDERS if (path := self._place / name / "label.csv").is_file()]

    def _rows(self) -> list[Row]:
        return self._aligned(self._table) if self._table else list(self._filed())

    def _aligned(self, table: Table) -> list[Row]:
        """The votes, each with the name of FER2013's row; raises DataError where the two do not belong together."""
        faces, rows = table.items(), list(read_votes(self._votes))
        agree = f"{self._votes} and {table.path} do not belong together"
        if len(faces) != len(rows):
            raise DataError(
                f"{agree}: {len(rows)} rows of votes for {len(faces)} faces; take both as released"
            )
        for number, (face, row) in enumerate(zip(faces, rows, strict=True), 1):
            if face.usage != row.usage:
                raise DataError(f"{agree}: row {number} is {row.usage} there and {face.usage} here")
        alike = [
            EXPRESSIONS[face.label] == majority(row.votes) for face, row in zip(faces, rows, strict=True)
        ]
        if len(alike) >= 100 and np.mean(alike) < LEAST_AGREEMENT:
            raise DataError(
                f"{agree}: their labels agree in {np.mean(alike):.0%} of the rows; take both as released, unsorted"
            )
        return [
            row._replace(name=face.name if row.name else "") for face, row in zip(faces, rows, strict=True)
        ]

    def _filed(self) -> Iterator[Row]:
        """Lines `fer0000000.png,"(0, 0, 48, 48)",4,0,…` of each label.csv; the face's place may be missing."""
        for path in self._lists():
            folder = path.parent.name
            for number, fields in enumerate(read_csv(path), 1):
                votes = fields[2:] if len(fields) == len(COLUMNS) + 2 else fields[1:]
                where = f"{folder}/label.csv line {number}"
                yield Row(f"{folder}/{fields[0]}", FOLDERS[folder], numbers(votes, where))

    def _report(self, usages: Counter[str], dropped: Counter[str]) -> None:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
        total = usages.total()
        if dropped:
            warnings.warn(
                f"FER+ in {self.root}: {dropped.total():,} of {total:,} faces left out ({reasons})",
                stacklevel=3,
            )
        if self._table and usages != OFFICIAL:
            have = ", ".join(f"{usage} {count:,}" for usage, count in usages.items())
            release = ", ".join(f"{usage} {count:,}" for usage, count in OFFICIAL.items())
            warnings.warn(
                f"FER+ in {self.root} has {have} rows; the release has {release}: "
                "results will not compare with published ones",
                stacklevel=3,
            )


def majority(votes: Sequence[int]) -> str:
    """The column that more than half of the votes chose, single votes left out; "no majority" without one."""
    counted = [count if count > 1 else 0 for count in votes]
    most = max(counted)
    if 2 * most <= sum(counted):
        return "no majority"
    return COLUMNS[counted.index(most)]


def foremost(votes: Sequence[int]) -> tuple[int, ...]:
    """The votes of up to three leading columns, ties together, until they have three quarters of all; zeros where that
    is not more than half, where ties make more than three, or where unknown or NF lead.

    Single votes are left out before; unknown and NF end the search.
    """
    left = [count if count > 1 else 0 for count in votes]
    total, taken, places = sum(left), [0] * len(left), 0
    valid = True
    while sum(taken) < 0.75 * total and places < 3 and valid:
        most = max(left)
        for place in [place for place, count in enumerate(left) if count == most]:
            if valid := COLUMNS[place] in EXPRESSIONS:
                taken[place], left[place], places = most, 0, places + 1
            else:
                if not any(taken):
                    return (0,) * len(left)
                break
    enough = 2 * sum(taken) > total and places <= 3
    return tuple(taken) if enough else (0,) * len(left)


def shares(votes: Sequence[int]) -> tuple[float, ...]:
    """What each of EXPRESSIONS has of the votes for an expression, single votes left out; empty where there are none."""
    counted = {name: count if count > 1 else 0 for name, count in zip(COLUMNS, votes, strict=True)}
    total = sum(counted[name] for name in EXPRESSIONS)
    if not total:
        return ()
    return tuple(counted[name] / total for name in EXPRESSIONS)


def read_votes(path: Path) -> Iterator[Row]:
    """The rows of fer2013new.csv; raises DataError for other columns, usages or votes."""
    rows = read_csv(path)
    header = [name.strip() for name in next(rows, [])]
    if sorted(header) != sorted(("Usage", "Image name", *COLUMNS)):
        raise DataError(
            f"{path} has the columns {', '.join(header)}; expected Usage, Image name, {', '.join(COLUMNS)}"
        )
    places = [header.index(name) for name in COLUMNS]
    usage, name = header.index("Usage"), header.index("Image name")
    for number, fields in enumerate(rows, 1):
        where = f"{path.name} row {number}"
        if len(fields) != len(header):
            raise DataError(f"{where} has {len(fields)} columns; expected {len(header)}")
        word = fields[usage].strip().lower().encode()
        if word not in USAGES:
            raise DataError(
                f"{where} has usage {fields[usage]!r}; expected Training, PublicTest, PrivateTest"
            )
        votes = numbers([fields[place] for place in places], where)
        yield Row(fields[name].strip(), USAGES[word], votes)


def read_csv(path: Path) -> Iterator[list[str]]:
    with opened(path) as file:
        yield from (fields for fields in csv.reader(file) if fields)


def numbers(votes: Sequence[str], where: str) -> tuple[int, ...]:
    """Votes as whole numbers; some copies of the lists have 4.0 for 4."""
    try:
        counts = tuple(int(float(vote)) for vote in votes)
    except ValueError:
        raise DataError(f"{where} has votes {', '.join(votes)}; expected whole numbers") from None
    if len(counts) != len(COLUMNS) or min(counts) < 0:
        raise DataError(
            f"{where} has {len(counts)} votes ({', '.join(votes)}); expected {len(COLUMNS)} from 0: {', '.join(COLUMNS)}"
        )
    return counts
