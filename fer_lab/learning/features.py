"""A frozen backbone sees the same pictures in every epoch and run, so it looks at them once."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from fer_lab.data.faces import DataError, digest


@lru_cache(maxsize=2)  # trials of a sweep share their backbone, and these are a hundred megabytes to hash
def features_key(backbone: nn.Module, *settings: str) -> str:
    """Changes with any weight of the backbone and with any of `settings` (data digest, views, size, …)."""
    weights = (
        part
        for name, tensor in backbone.state_dict().items()
        for part in (name, tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    )
    return digest(*weights, repr(backbone), *settings)[:32]


def features_place(folder: Path, key: str) -> Path:
    """Where the features of `key` are, once they are computed."""
    return folder / "features" / key


def frozen_features(
    folder: Path, key: str, count: int, views: int, compute: Callable[[], Iterator[Tensor]]
) -> Tensor:
    """(count, views, …) float32 memory map of `key` below `folder`, computed by whoever comes first.

    `compute` yields the features of consecutive rows, (B, views, …) at a time. A build that is killed leaves
    nothing that a later one would take for whole.
    """
    place = features_place(folder, key)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            build(place, count, views, compute)
    array = np.load(place / "features.npy", mmap_mode="c")
    return torch.from_numpy(array)


def build(place: Path, count: int, views: int, compute: Callable[[], Iterator[Tensor]]) -> None:
    from rich.progress import track

    for stale in place.parent.glob(f"{place.name}.part*"):
        shutil.rmtree(stale, ignore_errors=True)
    part = place.with_suffix(f".part{os.getpid()}")
    part.mkdir()
    batches = compute()
    first = next(batches)
    shape = (count, views, *first.shape[2:])
    refuse_too_large(part, 4 * math.prod(shape))
    array = np.lib.format.open_memmap(part / "features.npy", "w+", np.float32, shape)
    row, steps = 0, -(-count // len(first))
    for batch in track(chain([first], batches), description="frozen features", total=steps, transient=True):
        array[row : row + len(batch)] = batch.float().cpu().numpy()
        row += len(batch)
    array.flush()
    shutil.rmtree(place, ignore_errors=True)
    part.rename(place)


def refuse_too_large(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > 0.9 * free:
        raise DataError(
            f"the frozen features take {size / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free; "
            "set cache_dir to a larger disk, fewer augment.views, or cache_features=false"
        )
