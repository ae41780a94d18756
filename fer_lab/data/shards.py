"""The decoded pictures of a large data set in several files, as one array of which only rows are read."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 2**30


class Shards:
    """(N, C, size, size) uint8 in .npy files, memory-mapped; `images[rows]` is a copy of those rows.

    The pages behind a copy are given back at once: this process takes as much memory as it asks rows for.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise FileNotFoundError("a cache without images")
        self.parts = [np.load(path, mmap_mode="r") for path in paths]
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, rows: int | slice | NDArray[np.int64] | Sequence[int]) -> NDArray[np.uint8]:
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        flat = np.where(wanted < 0, wanted + len(self), wanted).reshape(-1)
        found = np.empty((len(flat), *self.shape[1:]), np.uint8)
        owners = np.searchsorted(self.starts, flat, side="right") - 1
        for owner in np.unique(owners):
            places = np.flatnonzero(owners == owner)
            places = places[np.argsort(flat[places])]  # as they lie on the disk
            found[places] = self.parts[owner][flat[places] - self.starts[owner]]
            release(self.parts[owner])
        return found.reshape(*wanted.shape, *self.shape[1:])

    def __array__(self, *_: object, **__: object) -> NDArray[np.uint8]:
        raise TypeError(f"{self.nbytes / 1e9:.1f} GB of images are read by rows: images[rows]")


Images = NDArray[np.uint8] | Shards
"""What a cache holds: one memory map, or several."""


def open_images(folder: Path) -> Images:
    """The images of a cache: one file or shards. Raises OSError or ValueError where they are missing or cut short."""
    whole = folder / "images.npy"
    # copy-on-write: torch refuses read-only arrays, and the file stays as it is
    return np.load(whole, mmap_mode="c") if whole.exists() else Shards(sorted(folder.glob("images-*.npy")))


def release(images: NDArray[np.uint8]) -> None:
    """Takes the pages of a memory map out of this process's memory; they are read again when they are wanted."""
    if isinstance(images.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        images.base.madvise(mmap.MADV_DONTNEED)
