"""The files that a user names: one, a folder of them, or a pattern."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from fer_lab.data.images import SUFFIXES
from fer_lab.live.faces import LiveError

Kind = Literal["picture", "video"]

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv",
    ".mjpeg", ".mjpg", ".y4m", ".ivf", ".nut", ".mxf", ".rm",
)
# fmt: on
PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"P5", b"P6", b"\0\0\0\x0cjP  ")
VIDEO_STARTS = (b"\x1aE\xdf\xa3", b"FLV\1", b"OggS", b"0&\xb2u", b"\0\0\1\xba", b"\0\0\1\xb3", b"YUV4MPEG2")
"""Matroska, Flash, Ogg, Windows Media, MPEG program and elementary streams, raw frames."""


class Source(NamedTuple):
    """A file to look at. `name` is how results call it: below the folder or the pattern that the user gave."""

    name: str
    path: Path
    kind: Kind


class Sources(list[Source]):
    """Sorted by name; `ignored` counts the other files that lay among them."""

    ignored: int = 0


def listed(spec: str) -> Sources:
    """Pictures and videos of a file, of a folder (all below it, but nothing hidden) or of a pattern (with **).

    Raises LiveError where there are none. A file that is named alone is taken whatever it is; whether it can be read,
    its frames tell.
    """
    if not spec.strip() or "\0" in spec:
        raise LiveError(
            f"source={spec!r}; name a picture, a video, a folder, a pattern such as 'shots/**/*.jpg' or camera:0"
        )
    try:
        found = _found(spec, Path(spec).expanduser())
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder that is closed, ~nobody
        raise LiveError(f"source={shown(spec)}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        others = f" ({found.ignored:,} other files)" if found.ignored else ""
        raise LiveError(
            f"source={spec}: no picture and no video there{others}; expected files such as .jpg, .png, .mp4, .avi"
        )
    return found


def _found(spec: str, path: Path) -> Sources:
    if path.is_dir():
        return _chosen(path, _below(path))
    if os.path.lexists(path):
        return Sources([Source(shown(path.name), path, kind(path) or "picture")])
    if glob.has_magic(spec):
        paths = glob.iglob(str(path), recursive=True)  # noqa: PTH207  (pathlib's takes hidden files)
        return _chosen(_fixed_part(path), _once(map(Path, paths)), by_suffix=False)
    raise LiveError(f"source={shown(spec)}: there is no such file or folder{_near(path)}")


def kind(path: Path) -> Kind | None:
    """By the file's first bytes, else by its suffix; only regular files are opened. None where neither tells."""
    suffix = path.suffix.lower()
    by_suffix: Kind | None = (
        "picture" if suffix in SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None
    )
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return by_suffix
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return by_suffix
    if suffix in (".mjpeg", ".mjpg"):
        return "video"  # begins like any JPEG
    return _by_content(path, head) or by_suffix


def shown(name: str) -> str:
    """A file's name as text, another one for each: bytes that are no UTF-8 as \\xNN, a backslash as two."""
    return os.fsencode(name).replace(b"\\", rb"\\").decode("utf-8", "backslashreplace")


def _by_content(path: Path, head: bytes) -> Kind | None:
    if head.startswith(b"GIF8"):
        return "video" if _several(path) else "picture"
    if head.startswith(b"RIFF"):
        return "video" if head[8:12] == b"AVI " else None  # PyAV reads no WebP that moves
    if head[4:8] == b"ftyp":
        return "picture" if head[8:12] in (b"avif", b"mif1", b"heic") else "video"
    if head.startswith(b"\x89PNG") and b"acTL" in head:
        return "video"
    if head.startswith(VIDEO_STARTS):
        return "video"
    return "picture" if head.startswith(PICTURE_STARTS) else None


def _several(path: Path) -> bool:
    """Whether a GIF has more than one frame; no where it is broken, as its decoder then tells."""
    from PIL import Image

    try:
        with Image.open(path, formats=("GIF",)) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged files make Pillow raise nearly anything
        return False


def _chosen(root: Path, paths: Iterable[Path], by_suffix: bool = True) -> Sources:
    """Those of the files that are pictures or videos, and of folders those that look like one."""
    found, ignored = [], 0
    for path in paths:
        named = path.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES
        if not named and path.is_dir():
            continue
        told = kind(path) if named or not by_suffix else None
        if told is None:
            ignored += 1
        else:
            found.append(Source(shown(path.relative_to(root).as_posix()), path, told))
    sources = Sources(sorted(found))
    sources.ignored = ignored
    return sources


def _once(paths: Iterable[Path]) -> Iterable[Path]:
    """Each file by its shortest path: `**` comes by a file twice where it stands twice, or where a link leads back."""
    real = cache(os.path.realpath)
    shortest_last = sorted(paths, key=lambda path: (-len(path.parts), path))
    return {(real(path.parent), path.name): path for path in shortest_last}.values()


def _below(root: Path) -> Iterable[Path]:
    """Files at any depth; links to folders are followed once each, so that none leads in circles. Folders that may not be
    entered, and paths that are too long, are passed over."""
    waiting, been = [str(root)], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        with suppress(OSError):
            facts = os.stat(folder)  # noqa: PTH116  (of a path with a thousand parts, pathlib takes long)
            if (facts.st_dev, facts.st_ino) in been:
                continue
            been.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if os.path.isdir(entry.path):  # noqa: PTH112  (entry.is_dir raises where links go in circles)
                        waiting.append(entry.path)
                    else:
                        yield Path(entry.path)


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first part with a wildcard."""
    parts = pattern.parts
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _near(path: Path) -> str:
    """A hint at names like the one that is missing."""
    parent = next((folder for folder in path.parents if folder.is_dir()), Path())
    missing = path.relative_to(parent).parts[0] if path.is_relative_to(parent) else path.name
    names = [one.name for one in parent.iterdir() if not one.name.startswith(".")]
    close = get_close_matches(missing, names, cutoff=0.6)
    return (
        f"; near: {', '.join(shown(str(parent / name)) for name in close)}"
        if close
        else f" (looked in {parent.absolute()})"
    )
