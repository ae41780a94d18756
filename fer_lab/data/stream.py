"""Epochs over a data set that may not fit into memory: an order that a disk likes, and images that are read ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch
from torch import Tensor

from fer_lab.data.shards import Images

BLOCK_BYTES = 2**23
"""Images that lie together on the disk; large enough to be read at full speed."""

WINDOW_BLOCKS = 128
"""Blocks out of which images are drawn at a time: 1 GiB, from 128 places, so that a set stored class by class mixes."""

READ_BYTES = 2**27
"""Images that are read at once, in the order of the disk; twice as many are in memory."""

LARGE_BYTES = 2**33
"""Images of more than 8 GiB are read by parts on every machine: FER2013 at 48 pixels takes 0.1, AffectNet at 224 44."""

T = TypeVar("T")


def is_large(images: Images) -> bool:
    return images.nbytes > LARGE_BYTES


def rows_of(size: int, images: Images) -> int:
    """How many images make `size` bytes."""
    return max(1, size * len(images) // images.nbytes)


def shuffled(rows: Tensor, block: int, generator: torch.Generator) -> Tensor:
    """A random order (N,) of places in `rows`: blocks of so many rows at random, those of a window shuffled together."""
    order = torch.randperm(len(rows), generator=generator)
    turn = torch.randperm(int(rows.max()) // block + 1, generator=generator)
    window = turn[rows[order] // block] // WINDOW_BLOCKS
    return order[torch.argsort(window, stable=True)]


def read_ahead(images: Images, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The images of each batch of rows; several batches are read at once, while those before them are used."""
    for group, rows, found in ahead(read(images, batches, rows_of(READ_BYTES, images))):
        yield from (found[torch.searchsorted(rows, batch)] for batch in group)


def read(
    images: Images, batches: Sequence[Tensor], at_once: int
) -> Iterator[tuple[Sequence[Tensor], Tensor, Tensor]]:
    """Batches of about `at_once` rows together, those rows sorted, and their images."""
    count = max(1, at_once // max(1, max(map(len, batches), default=1)))
    for start in range(0, len(batches), count):
        group = batches[start : start + count]
        rows = torch.unique(torch.cat(list(group)))
        yield group, rows, torch.from_numpy(images[rows.numpy()])


def ahead(source: Iterator[T]) -> Iterator[T]:
    """What `source` yields, each made by another thread while the one before it is used; its errors come here."""
    ended = object()
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as thread:
        waiting = thread.submit(next, source, ended)
        while (one := waiting.result()) is not ended:
            waiting = thread.submit(next, source, ended)
            yield cast(T, one)
