"""The tuner's part in the benchmark: the layers of a cell are tuned before anything of it is timed."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from kernels import tiles, tune
from kernels.benchmark.clock import DeviceLostError
from kernels.benchmark.contest import Facts
from kernels.geometry import Layer, Precision
from kernels.tiles import Key


def tune_layers(layers: Iterable[Layer], batch: int, precision: Precision) -> Facts:
    """Tunes on this GPU what was not tuned before and keeps it in `tiles.TUNED`. Says for how many of the layers there is a tuned tile
    now, and the seconds that it took. Raises DeviceLostError where a kernel hangs."""
    device = torch.device("cuda", torch.cuda.current_device())
    machine = torch.cuda.get_device_name(device), *tiles.versions()
    keys = [Key(*machine, precision, batch, layer) for layer in layers]
    begin = time.perf_counter()
    try:
        tune.tune_all(untuned(keys, device), device, tiles.TUNED)
    except SystemExit as error:  # the tuner ends everything then
        raise DeviceLostError(str(error)) from error
    left = untuned(keys, device)
    seconds = round(time.perf_counter() - begin, 1)
    return {"seconds": seconds, "tuned": sum(key not in left for key in keys), "layers": len(keys)}


def untuned(keys: Iterable[Key], device: torch.device) -> list[Key]:
    """Each once: a net repeats layers."""
    known, capability = tiles.tuned(tiles.TUNED), tiles.capability_of(device)
    return [key for key in dict.fromkeys(keys) if tiles.lookup(known, key, capability) is None]
