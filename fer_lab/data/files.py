"""Picture files under a root: one quick listing gives both the names and the stamp of a data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from fer_lab.data.faces import DataError, digest
from fer_lab.data.images import SUFFIXES


class Picture(NamedTuple):
    """A file as the directory describes it; `name` is its path below the root, with forward slashes."""

    name: str
    size: int
    modified: int
    changed: int


def existing_root(root: str | os.PathLike[str] | None, missing: str) -> Path:
    """The root as a path; raises DataError with `missing` (where the data set comes from) if there is none."""
    if root is None or not str(root).strip():
        raise DataError(f"data.root is not set. {missing}")
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"data.root={root} does not exist (looked in {Path.cwd()}). {missing}")
    return path


def pictures(root: Path, depth: int) -> list[Picture]:
    """Picture files at most `depth` folders below the root, sorted by name; hidden files are left out."""
    if not root.is_dir():
        raise DataError(f"data.root={root} is a file, not a folder; unpack it and name the folder it gives")
    return sorted(_walk(str(root), "", depth))


def stamp_of(files: Iterable[Picture], *settings: object) -> str:
    """Changes with any file's name, size, modification or change time, and with the settings."""
    return digest(repr(settings), repr(sorted(files)))


def _walk(folder: str, prefix: str, depth: int) -> Iterator[Picture]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if name[name.rfind(".") :].lower() in SUFFIXES and entry.is_file():
                facts = entry.stat()
                yield Picture(prefix + name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            elif depth > 0 and entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{name}/", depth - 1)


def described(path: Path) -> Picture:
    """A file that is no picture (a list of labels), as `pictures` describes those."""
    facts = path.stat()
    return Picture(path.name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def totals(folder: str) -> tuple[int, int, int]:
    """Number, bytes and change times of all files below, summed: what a stamp needs of a million of them."""
    number = size = changed = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                inside = totals(entry.path)
                number, size, changed = number + inside[0], size + inside[1], changed + inside[2]
            else:
                try:
                    facts = entry.stat()
                except FileNotFoundError:  # a link to nothing: it counts as itself
                    facts = entry.stat(follow_symlinks=False)
                number, size, changed = number + 1, size + facts.st_size, changed + facts.st_ctime_ns
    return number, size, changed


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A list of labels as text; raises DataError where it is no UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 text ({error}); take it as released, or save it as UTF-8"
        ) from None


def first_existing(places: Iterable[Path]) -> Path | None:
    return next((place for place in places if place.exists()), None)


def near(root: Path) -> list[Path]:
    """The root and the folders in it: archives are often unpacked into a folder of their own."""
    if not root.is_dir():
        raise DataError(f"data.root={root} is a file, not a folder; unpack it and name the folder it gives")
    return [root, *sorted(child for child in root.iterdir() if child.is_dir())]


def differences(found: Mapping[str, Counter[str]], official: Mapping[str, Mapping[str, int]]) -> list[str]:
    """`train happiness 7 not 4,772` for every count of a usage and a class that the release has otherwise."""
    return [
        f"{usage} {shown} {found[usage][shown]:,} not {count:,}"
        for usage, counts in official.items()
        for shown, count in counts.items()
        if found[usage][shown] != count
    ]
