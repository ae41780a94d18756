"""Every picture decoded once into a memory map, keyed by content and shared by runs and workers.

    folder/stamps/FINGERPRINT.json    what the files looked like from outside -> the cache they gave
    folder/NAME-SIZExCHANNELS-KEY/    images.npy (N, C, size, size) uint8, index.json;
                                      images-00000.npy, images-00001.npy … where one would pass 1 GiB

Untouched files are known by the stamp alone; touched or copied ones by their bytes (the key).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from fer_lab.data import decoding
from fer_lab.data.crop import Crop
from fer_lab.data.faces import DataError, Index, Item, Source, columns, digest
from fer_lab.data.images import DECODER_VERSION
from fer_lab.data.shards import SHARD_BYTES, Images, open_images

CACHE_VERSION = 1
READ_TICK = 200  # files between two steps of the bar, which cost more than a small file
POLICIES = ("error", "skip")
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Cache:
    """`images` (N, C, size, size) uint8, read only by `images[rows]`, aligned with `index`; `skipped` names and reasons."""

    images: Images
    index: Index
    skipped: tuple[tuple[str, str], ...]


def open_cache(
    source: Source,
    size: int,
    channels: int,
    folder: str | Path,
    bad: str = "error",
    workers: int | None = None,
    progress: bool = True,
    crop: str = "none",
    margin: float = 0.0,
    shard_bytes: int = SHARD_BYTES,
) -> Cache:
    """The decoded pictures of a data set, from an earlier run where its files are the same.

    `bad`: "error" refuses a data set with unusable pictures, "skip" leaves them out and tells which.
    `workers`: processes that decode; 0 is this one, None as many as the work is worth.
    `shard_bytes`: how large a file of images may grow when they are decoded.
    `crop`: none, haar or box, widened by `margin` (fer_lab.data.crop); a picture without a face is unusable.
    Raises DataError for a missing data set, unusable pictures, or a disk without room.
    """
    if bad not in POLICIES:
        raise DataError(f"data.bad={bad!r}; choices: {', '.join(POLICIES)}")
    place = Path(folder).expanduser().absolute()
    shelf = _Shelf(source, size, channels, place, progress, Crop(crop, margin), shard_bytes)
    cache = shelf.known()
    if cache is None:
        with shelf.locked():
            cache = shelf.known() or shelf.build(workers)
    if bad == "error" and cache.skipped:
        raise DataError(complaint(source.name, cache.skipped, len(cache.index) + len(cache.skipped)))
    return cache


def complaint(name: str, skipped: Sequence[tuple[str, str]], total: int) -> str:
    """Counts per reason, up to ten names, and what to do."""
    reasons = Counter(reason for _, reason in skipped)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    lines = [f"{len(skipped)} of the {total} pictures of {name} cannot be used: {counts}"]
    lines += [f"  {picture}: {reason}" for picture, reason in skipped[:10]]
    if len(skipped) > 10:
        lines.append(f"  … and {len(skipped) - 10} more")
    lines.append("Leave them out with data.bad=skip, or repair or remove the files.")
    return "\n".join(lines)


def refuse_repeated(name: str, items: Sequence[Item]) -> None:
    """A picture that is two items would stand on both sides of a split."""
    repeated = [item for item, count in Counter(item.name for item in items).items() if count > 1]
    if repeated:
        more = f" … and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        raise DataError(
            f"{len(repeated)} of the pictures of {name} are named more than once: {', '.join(repeated[:3])}{more}; "
            "name each once, in its list or its folders"
        )


class _Shelf:
    """The place of one data set at one size in the cache folder."""

    def __init__(
        self,
        source: Source,
        size: int,
        channels: int,
        folder: Path,
        progress: bool,
        crop: Crop,
        shard_bytes: int,
    ) -> None:
        self.source, self.folder, self.progress, self.shard_bytes = source, folder, progress, shard_bytes
        self.size, self.channels, self.crop = size, channels, crop
        self.label = f"{source.name}{crop.label}-{size}x{channels}"
        self.settings = f"{self.label} decoder {DECODER_VERSION} cache {CACHE_VERSION}"
        self.stamp = source.stamp()
        self.note = folder / "stamps" / f"{digest(self.settings, self.stamp)[:32]}.json"

    def known(self) -> Cache | None:
        """The cache these files gave when they last looked like this."""
        try:
            return _opened(self.folder / json.loads(self.note.read_text("utf-8"))["cache"])
        except (OSError, ValueError, KeyError):
            return None  # absent, or cut short by a full disk: built again

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.note.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{self.label}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(
                f"another process is decoding {self.label}; waiting to reuse it", file=sys.stderr, flush=True
            )
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def build(self, workers: int | None) -> Cache:
        """To be called under the lock, so that every temporary folder found is a dead builder's."""
        for stale in self.folder.glob(f"{self.label}-*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        items = self.source.items()
        if not items:
            raise DataError(f"{self.source.name} holds no pictures; check data.root")
        refuse_repeated(self.source.name, items)
        self.crop.check(self.source.name, items)
        place = self.folder / f"{self.label}-{self._key(items)[:16]}"
        cache = _opened_or_none(place)
        if cache is None:
            self._decode(items, place, decoding.worth(len(items)) if workers is None else workers)
            if self.source.stamp() != self.stamp:
                shutil.rmtree(place, ignore_errors=True)
                raise DataError(f"the files of {self.source.name} changed while they were read; start again")
            cache = _opened(place)
        _write_json(self.note, {"cache": place.name})
        return cache

    def _key(self, items: Sequence[Item]) -> str:
        total = hashlib.sha256(repr((self.settings, self.source.classes)).encode())
        with self._bar("reading", len(items)) as advance:
            for number, item in enumerate(items, 1):
                try:
                    data = self.source.content(item)
                except OSError as error:
                    data = repr(error).encode()
                total.update(f"{item!r} {len(data)} ".encode())
                total.update(data)
                if number % READ_TICK == 0:
                    advance(READ_TICK)
        return total.hexdigest()

    def _decode(self, items: Sequence[Item], place: Path, workers: int) -> None:
        building = place.with_name(f"{place.name}.tmp")
        try:
            building.mkdir(parents=True)
            _check_room(self.folder, len(items) * self.channels * self.size**2)
            bad: dict[int, str] = {}
            with self._bar("decoding", len(items)) as advance:
                for path, rows in self._files(building, len(items)):
                    found = self._decode_file(path, items[rows.start : rows.stop], workers, advance)
                    bad |= {rows.start + row: reason for row, reason in found.items()}
            skipped = [(items[row].name, reason) for row, reason in bad.items()]
            if len(bad) == len(items):
                raise DataError(complaint(self.source.name, skipped, len(items)))
            kept = [item for row, item in enumerate(items) if row not in bad]
            index = Index.of(self.source.name, self.source.classes, kept)
            _write_index(building / "index.json", index, _digest(index, open_images(building)), skipped)
            if place.exists():
                shutil.rmtree(place)  # found unreadable above
            building.rename(place)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _files(self, folder: Path, count: int) -> Iterator[tuple[Path, range]]:
        """Where the rows go: one file, or as many shards as they need."""
        size = max(1, self.shard_bytes // (self.channels * self.size**2))
        if count <= size:
            yield folder / "images.npy", range(count)
            return
        for number, start in enumerate(range(0, count, size)):
            yield folder / f"images-{number:05}.npy", range(start, min(start + size, count))

    def _decode_file(
        self, path: Path, items: Sequence[Item], workers: int, advance: Advance
    ) -> dict[int, str]:
        """Writes the usable pictures among `items`; returns the rows and faults of the others."""
        shape = (len(items), self.channels, self.size, self.size)
        np.lib.format.open_memmap(path, "w+", np.uint8, shape).flush()
        bad = dict(decoding.fill(self.source, items, path, workers, advance, self.crop))
        if len(bad) == len(items):
            path.unlink()
        elif bad:
            _compact(path, np.array([row for row in range(len(items)) if row not in bad]))
        return bad

    @contextmanager
    def _bar(self, verb: str, total: int) -> Iterator[Advance]:
        if not self.progress:
            yield lambda count: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{verb} {self.label}", total=total)
            yield lambda count: bar.advance(task, count)


def _opened(place: Path) -> Cache:
    """Raises OSError, ValueError or KeyError where the folder is absent or was cut short."""
    facts = json.loads((place / "index.json").read_text("utf-8"))
    images = open_images(place)
    index = Index(
        name=facts["name"],
        classes=tuple(facts["classes"]),
        names=tuple(facts["names"]),
        labels=np.array(facts["labels"], dtype=np.int64),
        subjects=tuple(facts["subjects"]),
        usages=tuple(facts["usages"]),
        digest=facts["digest"],
        votes=columns(facts.get("votes") or [None], len(facts["classes"])),
        affect=columns(facts.get("affect") or [None], 2),
    )
    if len(images) != len(index):
        raise ValueError(f"{place} holds {len(images)} images of {len(index)} items")
    return Cache(images, index, tuple((name, reason) for name, reason in facts["skipped"]))


def _opened_or_none(place: Path) -> Cache | None:
    try:
        return _opened(place)
    except (OSError, ValueError, KeyError):
        return None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:  # a memory map on a full disk would end the process without a word
        raise DataError(
            f"the image cache needs {needed / 1e9:.2f} GB but {folder} has {free / 1e9:.2f} GB free; "
            "make room, choose another cache folder, or a smaller data.size"
        )


def _compact(path: Path, kept: NDArray[np.int64]) -> None:
    """Move the kept rows together and cut the file behind them; no second copy on the disk."""
    images = np.lib.format.open_memmap(path, "r+")
    offset, shape = images.offset, (len(kept), *images.shape[1:])
    for start, stop in _pieces(len(kept), images):
        rows = kept[start:stop]
        images[start : start + len(rows)] = images[rows]
    images.flush()
    del images
    with path.open("r+b") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        if file.tell() != offset:
            raise RuntimeError(f"numpy wrote a header of {file.tell()} bytes where {offset} were")
        file.truncate(offset + int(np.prod(shape)))


def _pieces(rows: int, images: Images) -> Iterator[tuple[int, int]]:
    """Runs of rows of about 16 MB."""
    step = max(1, 2**24 // int(np.prod(images.shape[1:])))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _digest(index: Index, images: Images) -> str:
    facts: list[object] = [index.classes, index.names, index.labels.tolist()]
    facts += [one for one in (listed(index.votes), listed(index.affect)) if one is not None]
    total = hashlib.sha256(json.dumps(facts).encode())
    for start, stop in _pieces(len(images), images):
        total.update(images[start:stop].tobytes())
    return total.hexdigest()


def _write_index(path: Path, index: Index, content: str, skipped: Sequence[tuple[str, str]]) -> None:
    facts: dict[str, Any] = {
        "name": index.name,
        "classes": index.classes,
        "digest": content,
        "skipped": skipped,
        "names": index.names,
        "labels": index.labels.tolist(),
        "subjects": index.subjects,
        "usages": index.usages,
        "votes": listed(index.votes),
        "affect": listed(index.affect),
    }
    _write_json(path, facts)


def listed(values: NDArray[np.float32] | None) -> list[list[float] | None] | None:
    """Rows as JSON has them: an undefined one is null."""
    if values is None:
        return None
    return [None if np.isnan(row).any() else [float(number) for number in row] for row in values]


def _write_json(path: Path, content: object) -> None:
    """Whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content), "utf-8")
    draft.replace(path)
