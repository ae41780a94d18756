"""How Hopper's kernels cut a layer into boxes: which box, how many tiles, what shared memory, what they refuse.

No Triton in here, so that whoever only chooses a tile needs none.

A tile's `pixels` are a box of images x rows x columns of the convolution's output; the copy engine fetches the same
box of the input, moved by the tap, and fills what lies outside with zeros: that is the padding.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from kernels.geometry import Layer, Precision, item_size
from kernels.tiles import CHIPS, HOPPER, ROW_BYTES, Tile

SHARED_LIMIT = CHIPS[HOPPER].shared
"""Bytes that one program may have."""
PROCESSOR_SHARED = 233_472
"""Bytes that the programs of one processor have in all, of which each costs 1024 more than it asks for."""
RESERVED = 1_024
SLACK = 1_024
"""Bytes for barriers, alignment, and what the compiler keeps for the worker warp."""
MOST_PROGRAMS = 3
"""That share a processor, where they are small."""
REGISTERS = 65_536
"""Of a processor."""
OTHER_REGISTERS = 32
"""Of a multiplying thread, beside its sums; with less the assembler gives up."""
HALO_COLUMNS = 8
"""A row of the row-halo kernel's box is 8 pixels x 128 bytes: one swizzle pattern, so a matrix may begin at any row."""
BATCH = 64
"""From here on a box does not depend on the batch; and where none is given."""


class Box(NamedTuple):
    """What a tile covers of the convolution's output, before pooling; powers of two."""

    images: int
    rows: int
    columns: int


class Memory(NamedTuple):
    """What a tile needs of a processor."""

    buffers: int
    """Slots that finished outputs wait in for the copy engine, ROW_BYTES of filters each."""
    programs: int
    """That share one processor."""
    bytes: int
    """Of shared memory per program, within SLACK."""


def powers(limit: int) -> list[int]:
    return [1 << power for power in range(limit.bit_length())]


@cache
def choose_box(layer: Layer, tile: Tile, batch: int) -> Box:
    """The box of `tile.pixels` that needs the fewest tiles; of those, the one that reads the fewest pixels.

    A pooled box has whole windows and at most 8 columns: a window's four sums then lie within one warp. A batch counts
    as the power of two below it, and at most as BATCH, so that a layer has few boxes: each is a program to compile.
    """
    if tile.kind == "halo":
        return Box(1, tile.pixels // HALO_COLUMNS, HALO_COLUMNS)
    batch = min(1 << batch.bit_length() - 1, BATCH)
    boxes = [
        Box(tile.pixels // (rows * columns), rows, columns)
        for rows in powers(tile.pixels)
        for columns in powers(tile.pixels // rows)
        if not layer.pool or (rows > 1 and 1 < columns <= HALO_COLUMNS)
    ]
    reach = layer.kernel - 1

    def cost(box: Box) -> tuple[int, int]:
        return tile_count(layer, tile, box, batch), box.images * (box.rows + reach) * (box.columns + reach)

    return min(boxes, key=cost)


def tile_count(layer: Layer, tile: Tile, box: Box, batch: int) -> int:
    pixels = -(-batch // box.images) * -(-layer.rows // box.rows) * -(-layer.columns // box.columns)
    return pixels * (layer.filters // tile.filters)


def stage_bytes(tile: Tile) -> int:
    """Of one slot of the ring: input pixels and weights."""
    if tile.kind == "halo":
        return (tile.pixels + 2 * HALO_COLUMNS + 3 * tile.filters) * ROW_BYTES
    return (tile.pixels + tile.filters) * ROW_BYTES


@cache
def memory(layer: Layer, tile: Tile, precision: Precision) -> Memory:
    """As many programs per processor as have a slot for outputs and registers for their sums: one then computes while
    the other stores. No or fewer buffers: too much for even one program."""
    parts = tile.filters * item_size(precision) // ROW_BYTES
    buffer = tile.pixels // (4 if layer.pool else 1) * ROW_BYTES
    ring = tile.stages * stage_bytes(tile)
    sums = tile.pixels * tile.filters // (32 * tile.warps)
    programs = MOST_PROGRAMS
    while True:
        limit = min(SHARED_LIMIT, PROCESSOR_SHARED // programs - RESERVED)
        buffers = min(parts, (limit - SLACK - ring) // buffer)
        if programs == 1 or (buffers > 0 and registers(tile, programs) >= sums + OTHER_REGISTERS):
            return Memory(buffers, programs, ring + buffers * buffer)
        programs -= 1


def registers(tile: Tile, programs: int) -> int:
    """Per thread of `programs` at once, a multiple of 8. The copying warp, and the three that complete its group, hand
    over what they do not need once they run, but the assembler counts with this for all."""
    return min(REGISTERS // (32 * (tile.warps + 4) * programs) // 8 * 8, 248)


def faults(layer: Layer, tile: Tile, precision: Precision) -> list[str]:
    """Why this tile does not compute this layer; nothing if it does."""
    halo = tile.kind == "halo"
    channels = ROW_BYTES // item_size(precision)
    checks = [
        (precision == "float32", "float32 in full (float16, bfloat16, tf32)"),
        (layer.stride != 1, f"stride {layer.stride} (1)"),
        (halo and (layer.kernel, layer.padding) != (3, 1), "other than 3x3 with padding 1 with row reuse"),
        (layer.channels % channels != 0, f"{layer.channels} input channels (a multiple of {channels})"),
        (layer.filters % tile.filters != 0, f"{layer.filters} filters in blocks of {tile.filters}"),
        (tile.channels != channels, f"{tile.channels} channels at a time ({channels})"),
        (tile.filters not in (64, 128, 256), f"{tile.filters} filters at a time (64, 128, 256)"),
        (tile.warps not in (4, 8), f"{tile.warps} warps (4, 8)"),
        (tile.pixels not in (64, 128, 256), f"{tile.pixels} pixels at a time (64, 128, 256)"),
        (tile.pixels < 16 * tile.warps, f"{tile.pixels} pixels for {tile.warps} warps (16 each)"),
        (tile.pixels * tile.filters > 4096 * tile.warps, "more than 128 sums per thread"),
        (tile.stages < 2, "one stage (2 or more)"),
        (layer.pool and min(layer.output) < 1, "pooling of images smaller than its window"),
    ]
    found = [fault for wrong, fault in checks if wrong]
    if not found and memory(layer, tile, precision).buffers < 1:
        found.append(f"{tile.stages} stages of {stage_bytes(tile)} bytes ({SHARED_LIMIT} bytes in all)")
    return found
