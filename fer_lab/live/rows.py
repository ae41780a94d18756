"""One row per face, written as soon as it is known: what is in the file is complete up to the moment of a kill."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO, StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from fer_lab.live.faces import Net, Seen, Told

Row = Sequence[Any]
"""Values in the order of `columns`; None where there is nothing to say."""

BEFORE = ("source", "frame", "time_s", "face_id", "x", "y", "w", "h", "det_score", "label", "confidence")
AFTER = ("valence", "arousal", "status", "error")
DIGITS = 6
"""Of what a net or a clock tells."""

BATCH = 10_000
"""Rows of a journal that become parquet at once."""


def columns(net: Net) -> tuple[str, ...]:
    return (*BEFORE, *(f"p_{name}" for name in net.classes), *AFTER)


def rows_of(seen: Seen, net: Net) -> Iterator[Row]:
    """A row for each face; one with the status no_face or error where there is none."""
    frame = seen.frame
    time_s = None if frame.time_s is None else round(frame.time_s, DIGITS)
    where = (printable(frame.source), frame.number, time_s)
    empty = (None,) * (len(BEFORE) - len(where) + len(net.classes) + 2)
    if frame.fault:
        yield (*where, *empty, "error", printable(frame.fault))
    elif not seen.faces:
        yield (*where, *empty, "no_face", None)
    for told in seen.faces:
        yield (*where, *face_values(told, net), "ok", None)


def face_values(told: Told, net: Net) -> Iterator[Any]:
    """From face_id to arousal."""
    score, shares = told.face.score, [round(share, DIGITS) for share in told.probabilities.tolist()]
    yield from (told.face_id, *told.face.box, None if score is None else round(score, DIGITS))
    best = shares.index(max(shares)) if shares else None
    yield from (None, None) if best is None else (net.classes[best], shares[best])
    yield from shares
    yield from (
        (None, None) if told.affect is None else (round(value, DIGITS) for value in told.affect.tolist())
    )


def printable(words: str) -> str:
    """Names of files need not be text; what is not stands as \\udc.. in it."""
    return words.encode("utf-8", "backslashreplace").decode()


def in_one_line(words: str) -> str:
    """For people to read: no signs that end a line or steer a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in words)


def append(file: FileIO, text: str) -> None:
    """Whole or not at all: what a full disk takes a part of is taken back before the OSError is raised."""
    start, rest = file.tell(), memoryview(text.encode())
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(file.seek(start))
        raise


def csv_lines(rows: Iterable[Row]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class Rows(ABC):
    """predictions.* in `folder`: begun with the header, ended by `close`, which returns the file with all rows."""

    suffix: str

    def __init__(self, folder: Path, net: Net) -> None:
        self.path, self.columns = folder / f"predictions.{self.suffix}", columns(net)
        self.file = FileIO(self.path, "w")
        append(self.file, self.header())

    def write(self, rows: Iterable[Row]) -> None:
        append(self.file, self.lines(rows))

    def header(self) -> str:
        return ""

    @abstractmethod
    def lines(self, rows: Iterable[Row]) -> str:
        """The rows as text."""

    def close(self) -> Path:
        self.file.close()
        return self.path


class Csv(Rows):
    suffix = "csv"

    def header(self) -> str:
        return self.lines([self.columns])

    def lines(self, rows: Iterable[Row]) -> str:
        return csv_lines(rows)


class Jsonl(Rows):
    suffix = "jsonl"

    def lines(self, rows: Iterable[Row]) -> str:
        return "".join(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n" for row in rows)


class Parquet(Jsonl):
    """A parquet file cannot be read before it ends: until then the rows are in predictions.jsonl."""

    def close(self) -> Path:
        journal = super().close()
        made = as_parquet(journal, self.columns)
        journal.unlink()
        return made


FORMATS: dict[str, type[Rows]] = {"csv": Csv, "jsonl": Jsonl, "parquet": Parquet}


def as_parquet(journal: Path, names: Sequence[str]) -> Path:
    """The rows of a .jsonl as .parquet beside it, whole or not at all."""
    import pyarrow as arrow
    from pyarrow.parquet import ParquetWriter

    texts, wholes = ("source", "label", "status", "error"), ("frame", "face_id", "x", "y", "w", "h")
    schema = arrow.schema(
        (name, arrow.string() if name in texts else arrow.int64() if name in wholes else arrow.float64())
        for name in names
    )
    path = journal.with_suffix(".parquet")
    part = path.with_name(path.name + ".part")
    try:
        with journal.open(encoding="utf-8") as lines, ParquetWriter(part, schema) as writer:
            while rows := [json.loads(line) for line in islice(lines, BATCH)]:
                writer.write_batch(arrow.RecordBatch.from_pylist(rows, schema))
        return part.replace(path)
    finally:
        part.unlink(missing_ok=True)
