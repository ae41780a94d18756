"""The csv files of FER2013: where each row lies, so that a process reads only the rows it decodes."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import EXPRESSIONS, DataError, Item, digest, expression
from fer_lab.data.images import BadImage, refuse_blank

CSV_NAMES = ("fer2013.csv", "icml_face_data.csv", "train.csv")
NATIVE = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The labels 0 to 6."""

CANONICAL = {str(label).encode(): EXPRESSIONS.index(expression(name)) for label, name in enumerate(NATIVE)}
USAGES = {b"training": "train", b"publictest": "validation", b"privatetest": "test"}
SIDE = 48


class Row(NamedTuple):
    start: int
    length: int
    label: int
    usage: str


class Table:
    """Rows are counted from 1 below the header; an item is named `fer2013.csv:17`.

    A file without the column Usage (Kaggle's train.csv) is all training.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> str:
        facts = self.path.stat()
        return digest(f"fer2013 {self.path.name} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}")

    def items(self) -> list[Item]:
        """Raises DataError that names rows with another label or usage, or with missing columns."""
        self.__dict__.pop("_places", None)  # the file may have changed since
        rows = self._read()
        self._places = np.array([(row.start, row.length) for row in rows], dtype=np.int64)
        return [
            Item(f"{self.path.name}:{number}", row.label, usage=row.usage)
            for number, row in enumerate(rows, 1)
        ]

    def row(self, name: str) -> bytes:
        start, length = self._places[int(name.rpartition(":")[2]) - 1]
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(length)

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """(48, 48) grey."""
        text = self.row(name).split(b",")[self._columns["pixels"]].strip(b'" \r\n')
        if text.translate(None, b"0123456789 "):
            raise BadImage("pixels that are not numbers")
        values = np.fromstring(text, dtype=np.int64, sep=" ")
        if values.size != SIDE * SIDE:
            raise BadImage(f"{values.size} pixels, expected {SIDE * SIDE}")
        if values.max() > 255:
            raise BadImage(f"pixel value {values.max()}, expected 0 to 255")
        pixels = values.astype(np.uint8).reshape(SIDE, SIDE)
        refuse_blank(pixels)
        return pixels

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """(N, 2) offset and length of each row in bytes."""
        return np.array([(row.start, row.length) for row in self._read()], dtype=np.int64)

    @cached_property
    def _columns(self) -> dict[str, int]:
        with self.path.open("rb") as file:
            header = file.readline().decode("utf-8-sig", "replace")
        columns = {name.strip(' "\r\n').lower(): place for place, name in enumerate(header.split(","))}
        if not {"emotion", "pixels"} <= columns.keys():
            raise DataError(
                f"{self.path} has the columns {', '.join(columns)}; expected emotion, pixels and Usage "
                "(Kaggle's test.csv has no labels and cannot be used)"
            )
        return columns

    def _read(self) -> list[Row]:
        columns = self._columns
        rows: list[Row] = []
        problems: list[str] = []
        with self.path.open("rb") as file:
            start = len(file.readline())
            for line in file:
                if line.strip():
                    try:
                        rows.append(_parse(line, start, columns))
                    except ValueError as error:
                        problems.append(f"row {len(rows) + len(problems) + 1} has {error}")
                start += len(line)
        if problems:
            more = (
                f"; {len(problems) - 1} more such rows: {'; '.join(problems[1:10])}" if problems[1:] else ""
            )
            raise DataError(f"{self.path.name} {problems[0]}{more}; correct or remove them in {self.path}")
        if "usage" not in columns and (self.path.parent / "test.csv").is_file():
            unused = self.path.parent / "test.csv"
            warnings.warn(
                f"{unused} has no labels and is not used; all of {self.path} is training", stacklevel=4
            )
        return rows


def _parse(line: bytes, start: int, columns: dict[str, int]) -> Row:
    fields = line.split(b",")
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} columns; expected {len(columns)}: {', '.join(columns)}")
    label = fields[columns["emotion"]].strip(b'" \r\n')
    if label not in CANONICAL:
        raise ValueError(
            f"label {label.decode(errors='replace')}; expected 0..6 ({NATIVE[0]} … {NATIVE[-1]})"
        )
    usage = "train"
    if "usage" in columns:
        word = fields[columns["usage"]].strip(b'" \r\n')
        if word.lower() not in USAGES:
            raise ValueError(
                f"usage {word.decode(errors='replace')!r}; expected Training, PublicTest, PrivateTest"
            )
        usage = USAGES[word.lower()]
    return Row(start, len(line), CANONICAL[label], usage)
