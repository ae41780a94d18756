"""Which kernel computes a layer, and in tiles of what size: candidates, a model of their costs, and what was tuned.

The model knows how long a tile's arithmetic and its reads from the L2 cache take, and how many tiles each processor
gets. It orders candidates; what is best is measured (`python -m kernels.tune`) and kept in `tuned/`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from itertools import product
from math import ceil, gcd
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch

from kernels.geometry import Layer, Precision, item_size

Kind = Literal["implicit", "stem", "split", "persistent", "halo"]
"""implicit: pointers, anywhere (weights by TMA where `descriptor`). stem: up to 4 channels. split: few pixels, the sum
over several programs. persistent, halo: Hopper's, in Gluon."""

KINDS: tuple[Kind, ...] = get_args(Kind)
MODULES: dict[Kind, str] = {
    "implicit": "kernels.implicit",
    "stem": "kernels.stem",
    "split": "kernels.split",
    "persistent": "kernels.hopper",
    "halo": "kernels.hopper",
}
HOPPER_ONLY = ("persistent", "halo")


class Tile(NamedTuple):
    """A program computes `pixels` x `filters` outputs, `channels` of the sum at a time."""

    kind: Kind
    pixels: int
    filters: int
    channels: int
    warps: int = 4
    stages: int = 3
    splits: int = 1
    descriptor: bool = False


def describe(tile: Tile) -> str:
    """implicit 128x256x64 w8 s3 tma: pixels x filters x channels, warps, stages."""
    splits = f" /{tile.splits}" if tile.splits > 1 else ""
    shape = f"{tile.pixels}x{tile.filters}x{tile.channels}"
    return f"{tile.kind} {shape} w{tile.warps} s{tile.stages}{splits}{' tma' if tile.descriptor else ''}"


def interpreting() -> bool:
    """Whether Triton runs kernels with its interpreter, on a CPU: decided before triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def module(kind: Kind) -> ModuleType:
    """Imported when it is asked for: it needs triton, which only Linux has."""
    return import_module(MODULES[kind])


# --- devices ------------------------------------------------------------------------------------------------------

Capability = tuple[int, int]
"""As torch.cuda.get_device_capability says it. (9, 4) is AMD's gfx942, and stands for all of AMD's."""
AMD: Capability = (9, 4)
HOPPER: Capability = (9, 0)


class Chip(NamedTuple):
    """`shared`: bytes that a program may have. `flops`: 16-bit, a second, of all processors. `cache`, `memory`: bytes a
    second. Rates are from data sheets and order tiles, no more."""

    shared: int
    processors: int
    flops: float
    cache: float
    memory: float


CHIPS: dict[Capability, Chip] = {
    (8, 0): Chip(166912, 108, 280e12, 4.5e12, 1.5e12),  # A100
    (8, 6): Chip(101376, 84, 130e12, 2.5e12, 0.8e12),  # RTX 3090, A10
    (8, 9): Chip(101376, 128, 250e12, 4.5e12, 0.9e12),  # RTX 4090, L4
    HOPPER: Chip(232448, 132, 790e12, 9.0e12, 3.0e12),  # H100
    AMD: Chip(65536, 304, 700e12, 9.0e12, 4.0e12),  # MI300X
}
UNKNOWN = Chip(65536, 64, 100e12, 2.0e12, 0.5e12)
"""Any other device: tiles that fit into the least shared memory there is."""


def capability_of(device: torch.device) -> Capability:
    """A CPU's, which only interprets, is (8, 0)."""
    if device.type != "cuda":
        return (8, 0)
    return AMD if torch.version.hip else torch.cuda.get_device_capability(device)


# --- what a device can run ----------------------------------------------------------------------------------------

STEM_TERMS = 32
"""Terms of a stem's sum at a time, at the most."""


def shared_bytes(tile: Tile, precision: Precision, capability: Capability = HOPPER) -> int:
    """Of shared memory, at the most: what the loop's stages read, or the outputs on their way out.

    Hopper multiplies what lies in shared memory, so all stages have a place there; elsewhere the one that is multiplied
    is in registers."""
    outputs = tile.pixels * tile.filters * item_size(precision)
    if tile.kind == "stem":  # its loop is unrolled
        return max(outputs, step_bytes(tile, precision))
    if tile.kind in HOPPER_ONLY:  # outputs have their own place, where there is some left
        return tile.stages * step_bytes(tile, precision)
    is_hopper = capability >= HOPPER and capability != AMD
    slots = tile.stages if is_hopper else max(1, tile.stages - 1)
    return max(outputs, slots * step_bytes(tile, precision))


def step_bytes(tile: Tile, precision: Precision) -> int:
    """That a step of the loop reads."""
    if tile.kind in HOPPER_ONLY:
        return _boxes().stage_bytes(tile)
    return (tile.pixels + tile.filters) * tile.channels * item_size(precision)


def _boxes() -> ModuleType:
    """How Hopper's kernels cut layers. It needs `Tile`, so it is not imported before there is one."""
    return import_module("kernels.boxes")


def steps(tile: Tile, layer: Layer, precision: Precision) -> int:
    """Of the loop over the sum, all splits together."""
    if tile.kind == "stem":
        return ceil(layer.taps * layer.channels / tile.channels)
    taps = layer.kernel if tile.kind == "halo" else layer.taps  # three of a column at a time
    return taps * ceil(layer.channels / tile.channels) * (3 if precision == "float32" else 1)


def fits(tile: Tile, layer: Layer, precision: Precision, capability: Capability) -> bool:
    """Whether the device can run the tile, and the tile's kernel the layer."""
    if tile.kind in HOPPER_ONLY:
        return capability == HOPPER and not layer.is_stem and not _boxes().faults(layer, tile, precision)
    has_descriptors = capability >= HOPPER and capability != AMD
    return (
        (tile.kind == "stem") == layer.is_stem
        and shared_bytes(tile, precision, capability) <= CHIPS.get(capability, UNKNOWN).shared
        and has_registers(tile, layer, capability)
        and (has_descriptors or not tile.descriptor)
        and (tile.kind == "stem" or layer.channels % tile.channels == 0)
        and tile.splits <= steps(tile, layer, precision)
        and (tile.pixels >= 32 or not layer.pool or tile.kind != "implicit")
    )


def has_registers(tile: Tile, layer: Layer, capability: Capability) -> bool:
    """Whether a thread's sums leave room for the rest: half of the 256 registers. What takes more of them was found by
    compiling, with Triton 3.6.0 and 3.7.1 (`kernels.matrix`)."""
    sums = tile.pixels * tile.filters // (tile.warps * (64 if capability == AMD else 32))
    if (
        tile.kind == "stem" and layer.taps * layer.channels > STEM_TERMS
    ):  # addresses of several blocks at once
        return sums <= 32 and tile.pixels <= 16 * tile.warps
    if capability == AMD:  # its compiler reads the partial sums of all splits at once
        return sums * tile.splits <= 128
    return sums <= 128


# --- candidates and the model -------------------------------------------------------------------------------------

CANDIDATES = 16
BEST_OF_EACH = 3
"""So many of each kind of kernel are candidates, even where the model thinks little of them."""

SHAPES: dict[Kind, tuple[tuple[int, int, int], ...]] = {
    "implicit": (
        (128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (256, 64, 8), (128, 64, 4),
        (64, 128, 4), (64, 64, 4), (128, 32, 4), (64, 32, 4), (64, 16, 4), (32, 64, 4),
    ),
    "split": ((16, 64, 4), (32, 64, 4), (64, 64, 4), (16, 128, 4), (32, 128, 4), (64, 128, 4)),
    "stem": ((256, 64, 8), (128, 64, 8), (128, 64, 4), (64, 64, 4), (128, 128, 8), (64, 32, 4), (64, 16, 4)),
    "persistent": ((128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (256, 64, 8), (128, 64, 4)),
    "halo": ((256, 128, 8), (256, 64, 8), (128, 256, 8), (128, 128, 8), (128, 64, 8), (128, 64, 4)),
}  # fmt: skip
"""(pixels, filters, warps)."""
STAGES: dict[Kind, tuple[int, ...]] = {
    "implicit": (3, 4),
    "split": (4, 3, 6),
    "stem": (1,),
    "persistent": (4, 3, 5, 6),
    "halo": (2, 3),
}
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
ROW_BYTES = 128
"""Of a pixel's or a filter's channels at a time: a row of shared memory with the widest swizzle, so one copy and one
matrix descriptor where there are such."""

EDGE = 1e-6
"""Seconds from a program's start to its first product and from its last to its end, while its processor idles."""


def tilings(
    layer: Layer, precision: Precision, capability: Capability, kinds: Iterable[Kind] = KINDS
) -> Iterator[Tile]:
    """All that fit, in order of preference where the model sees no difference."""
    channels = STEM_TERMS if layer.is_stem else gcd(layer.channels, ROW_BYTES // item_size(precision))
    for kind in kinds:
        stages = (2, 3) if capability == AMD and kind != "stem" else STAGES[kind]
        splits = SPLITS if kind == "split" else (1,)
        descriptors = (True, False) if kind in ("implicit", "split") else (False,)
        least = min(filters for _, filters, _ in SHAPES[kind])
        for shape, stage, count, descriptor in product(SHAPES[kind], stages, splits, descriptors):
            pixels, filters, warps = shape
            tile = Tile(kind, pixels, filters, channels, warps, stage, count, descriptor)
            if filters < max(2 * layer.filters, 2 * least) and fits(tile, layer, precision, capability):
                yield tile


def programs(tile: Tile, layer: Layer, batch: int) -> int:
    """Tiles, times the programs that share one."""
    if tile.kind in HOPPER_ONLY:
        box = _boxes().choose_box(layer, tile, batch)
        return _boxes().tile_count(layer, tile, box, batch)
    rows, columns = (2 * side for side in layer.output) if layer.pool else (layer.rows, layer.columns)
    return ceil(batch * rows * columns / tile.pixels) * ceil(layer.filters / tile.filters) * tile.splits


def cost(
    tile: Tile,
    layer: Layer,
    batch: int,
    precision: Precision,
    capability: Capability,
    processors: int | None = None,
) -> float:
    """Seconds, by a model: each processor computes its programs one after the other, each as long as the longer of its
    arithmetic and its reads; the whole at least as long as device memory takes. `processors`: None for the chip's."""
    chip = CHIPS.get(capability, UNKNOWN)
    rounds = ceil(programs(tile, layer, batch) / (processors or chip.processors))
    share = ceil(steps(tile, layer, precision) / tile.splits)
    taps = layer.kernel if tile.kind == "halo" else 1
    # a matrix instruction of few columns takes as long as one of 32: it waits for its other operand
    products = max(tile.pixels, 32) * max(tile.filters, 32) * tile.channels * taps * share
    arithmetic = products * item_size(precision) * chip.processors / chip.flops
    reads = share * step_bytes(tile, precision) * chip.processors / chip.cache
    computing = rounds * max(arithmetic, reads) + edges(tile, layer, precision, capability, rounds)
    memory = layer.bytes(batch, precision) / chip.memory
    return max(computing, memory) + min(computing, memory) / 8  # they overlap, but not all of the time


def edges(tile: Tile, layer: Layer, precision: Precision, capability: Capability, rounds: int) -> float:
    """Seconds of a processor in which nothing is multiplied."""
    chip = CHIPS.get(capability, UNKNOWN)
    # a second program on the same processor works while the first idles
    resident = min(2, chip.shared // shared_bytes(tile, precision, capability))
    seconds = EDGE * ceil(rounds / resident)
    if tile.splits > 1:  # partial sums: everyone writes one, the last to come reads all
        partial = 4 * tile.pixels * tile.filters
        seconds += EDGE + (rounds + tile.splits) * partial * chip.processors / chip.cache
    if layer.pool and tile.kind == "implicit" and tile.pixels != 32 * tile.warps:
        seconds += EDGE  # a window's pixels lie in several warps
    return seconds


def candidates(layer: Layer, batch: int, precision: Precision, capability: Capability) -> list[Tile]:
    """What is worth measuring, most promising first: the best of each kind of kernel, and the best of all."""

    def modelled(tile: Tile) -> float:
        return cost(tile, layer, batch, precision, capability)

    ordered = sorted(tilings(layer, precision, capability), key=modelled)
    kinds = {(tile.kind, tile.descriptor) for tile in ordered}
    chosen = {
        tile
        for kind in kinds
        for tile in [tile for tile in ordered if (tile.kind, tile.descriptor) == kind][:BEST_OF_EACH]
    }
    others = [tile for tile in ordered if tile not in chosen]
    chosen.update(others[: max(0, CANDIDATES - len(chosen))])
    return [tile for tile in ordered if tile in chosen]


def heuristic(
    layer: Layer, batch: int, precision: Precision, capability: Capability, processors: int | None = None
) -> Tile:
    """The model's choice, for what was not tuned. Never one of Hopper's own kernels: only where they were measured."""
    return min(
        tilings(layer, precision, capability, [kind for kind in KINDS if kind not in HOPPER_ONLY]),
        key=lambda tile: cost(tile, layer, batch, precision, capability, processors),
    )


# --- what was tuned -----------------------------------------------------------------------------------------------

TUNED = Path(__file__).parent / "tuned"


class Key(NamedTuple):
    """What a measured choice holds for."""

    device: str
    triton: str
    torch: str
    precision: Precision
    batch: int
    layer: Layer


def versions() -> tuple[str, str]:
    """Triton's and torch's, without what was built into the latter (`+cu128`)."""
    import triton

    return triton.__version__, torch.__version__.partition("+")[0]


def tuned(folder: Path = TUNED) -> dict[Key, Tile]:
    """All that `kernels.tune` has written there. A file that is none of its own is left out, with a warning."""
    found: dict[Key, Tile] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found |= read_tuned(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{path} is not a file of kernels.tune ({error!r}); it is not used", stacklevel=2)
    return found


def read_tuned(path: Path) -> dict[Key, Tile]:
    content: dict[str, Any] = json.loads(path.read_text())
    machine = content["device"], content["triton"], content["torch"]
    return {
        Key(*machine, entry["precision"], entry["batch"], Layer(**entry["layer"])): Tile(**entry["tile"])
        for entry in content["tiles"]
    }


_tuned = cache(tuned)


def forget_tuned() -> None:
    """What was read before: something was tuned since."""
    _tuned.cache_clear()
    _measured.cache_clear()


def choose(layer: Layer, batch: int, precision: Precision, device: torch.device) -> Tile:
    """The tile to launch: what was measured on such a device with these versions, else the model's choice.

    A CPU interprets: there the tiles are those of a device of few processors, since large ones are quicker then."""
    if device.type != "cuda":
        return _heuristic(layer, batch, precision, capability_of(device), INTERPRETED_PROCESSORS)
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    measured = _measured(layer, batch, precision, device)
    if measured is not None and selfcheck(measured, layer, batch, precision, device):
        return measured
    return _modelled(layer, batch, precision, device)


INTERPRETED_PROCESSORS = 4
_heuristic = cache(heuristic)


@cache
def _measured(layer: Layer, batch: int, precision: Precision, device: torch.device) -> Tile | None:
    key = Key(torch.cuda.get_device_name(device), *versions(), precision, batch, layer)
    return lookup(_tuned(), key, capability_of(device))


def lookup(known: dict[Key, Tile], key: Key, capability: Capability) -> Tile | None:
    """Nothing where nothing was measured, or where what was no longer fits: kernels change."""
    tile = known.get(key)
    return tile if tile and fits(tile, key.layer, key.precision, capability) else None


def selfcheck(tile: Tile, layer: Layer, batch: int, precision: Precision, device: torch.device) -> bool:
    """Whether the tile may be used. Nothing interprets Hopper's own kernels, so they are tested on the device itself,
    once; the others were tested elsewhere."""
    if tile.kind not in HOPPER_ONLY:
        return True
    with torch.cuda.device(device):
        return module(tile.kind).selfcheck(layer, tile, precision, batch)


@cache
def _modelled(layer: Layer, batch: int, precision: Precision, device: torch.device) -> Tile:
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return heuristic(layer, batch, precision, capability_of(device), processors)
