"""Hopper's 3x3 convolution that reads its input three times instead of nine, for layers of few filters.

With 64 filters the loop of `persistent` waits for the L2 cache: each box of pixels is multiplied by little, and read
nine times. Here a slot of the ring holds a box of rows x 8 columns with the row above it and the row below it, and the
weights of the three taps of one column of the window. The same pixels serve those three taps: the box of tap r begins
r rows further down. A row of 8 pixels x 128 bytes is one whole pattern of the swizzle, 1024 bytes, so a matrix may
begin at any row.

All else, the ring's order too, is as in `persistent`; here a step is three multiplications, and the ones before them
have ended when no more than three are under way.
"""

from __future__ import annotations

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from kernels import persistent
from kernels.boxes import HALO_COLUMNS, Box
from kernels.geometry import Layer, Precision
from kernels.persistent import (
    advance,
    allocate_blocks,
    largest_of_windows,
    load_bias,
    make_barriers,
    place,
    store,
)
from kernels.tiles import Tile


@gluon.jit
def place_column(step, CHANNEL_STEPS: gl.constexpr, BLOCK_CHANNELS: gl.constexpr):
    """First channel that a step of a tile's sum reads, its column of the window, and the first of the weights' terms
    of that column's upper tap. Columns first: they read almost the same pixels."""
    channel = step // 3 * BLOCK_CHANNELS
    column_tap = step % 3
    return channel, column_tap, column_tap * CHANNEL_STEPS * BLOCK_CHANNELS + channel


@gluon.jit
def produce(
    input_descriptor,
    edge_descriptor,
    weight_descriptor,
    rows,
    weights,
    full,
    empty,
    tiles,
    ROW_TILES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    FILTER_TILES: gl.constexpr,
    CHANNEL_STEPS: gl.constexpr,
):
    """One warp: fills the ring."""
    STAGES: gl.constexpr = full.shape[0]
    BOX: gl.constexpr = input_descriptor.block_type.shape
    EDGE: gl.constexpr = edge_descriptor.block_type.shape
    BLOCK: gl.constexpr = weight_descriptor.block_type.shape
    ROWS: gl.constexpr = BOX[1] + EDGE[1]
    BYTES: gl.constexpr = (
        input_descriptor.block_type.nbytes
        + edge_descriptor.block_type.nbytes
        + 3 * weight_descriptor.block_type.nbytes
    )
    slot = 0
    phase = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        image, row, column, filter = place(
            tile, ROW_TILES, COLUMN_TILES, FILTER_TILES, BOX[0], BOX[1], BOX[2], BLOCK[0]
        )
        for step in range(3 * CHANNEL_STEPS):
            channel, column_tap, term = place_column(step, CHANNEL_STEPS, BOX[3])
            top = row - 1
            left = column + column_tap - 1
            ready = full.index(slot)
            upper = rows.index(slot * ROWS)._reinterpret(rows.dtype, BOX, input_descriptor.layout)
            lower = rows.index(slot * ROWS + BOX[1])._reinterpret(rows.dtype, EDGE, edge_descriptor.layout)
            mbarrier.wait(empty.index(slot), phase)
            mbarrier.expect(ready, BYTES)
            tma.async_copy_global_to_shared(input_descriptor, [image, top, left, channel], ready, upper)
            tma.async_copy_global_to_shared(
                edge_descriptor, [image, top + BOX[1], left, channel], ready, lower
            )
            for row_tap in gl.static_range(3):
                first = term + row_tap * 3 * CHANNEL_STEPS * BOX[3]
                tma.async_copy_global_to_shared(
                    weight_descriptor, [filter, first], ready, weights.index(slot * 3 + row_tap)
                )
            slot, phase = advance(slot, phase, STAGES)


@gluon.jit
def consume(
    output_descriptor,
    bias_pointer,
    rows,
    weights,
    outputs,
    full,
    empty,
    tiles,
    ROW_TILES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    FILTER_TILES: gl.constexpr,
    BOX_ROWS: gl.constexpr,
    STEPS: gl.constexpr,
    RELU: gl.constexpr,
    POOL: gl.constexpr,
    ROUND: gl.constexpr,
):
    """All other warps, together: multiply what is in the ring, and store."""
    STAGES: gl.constexpr = full.shape[0]
    COLUMNS: gl.constexpr = rows.shape[1]
    CHANNELS: gl.constexpr = rows.shape[2]
    FILTERS: gl.constexpr = weights.shape[1]
    PIXELS: gl.constexpr = BOX_ROWS * COLUMNS
    TERMS: gl.constexpr = 256 // rows.dtype.primitive_bitwidth
    LAYOUT: gl.constexpr = weights.layout
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, FILTERS, TERMS])
    slot = 0
    phase = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        image, row, column, filter = place(
            tile, ROW_TILES, COLUMN_TILES, FILTER_TILES, 1, BOX_ROWS, COLUMNS, FILTERS
        )
        sums = load_bias(bias_pointer, filter, SUMS, PIXELS, FILTERS)
        before = 0  # not `slot`: see persistent.consume
        for step in range(STEPS):
            mbarrier.wait(full.index(slot), phase)
            for row_tap in gl.static_range(3):
                first = rows.index(slot * (BOX_ROWS + 2) + row_tap)
                box = first._reinterpret(rows.dtype, [PIXELS, CHANNELS], LAYOUT)
                sums = warpgroup_mma(
                    box, weights.index(slot * 3 + row_tap).permute([1, 0]), sums, is_async=True
                )
            sums = warpgroup_mma_wait(3, deps=(sums,))
            mbarrier.arrive(empty.index(before), pred=step > 0)
            before = slot
            slot, phase = advance(slot, phase, STAGES)
        sums = warpgroup_mma_wait(0, deps=(sums,))
        mbarrier.arrive(empty.index(before))
        if POOL:
            sums = largest_of_windows(sums, COLUMNS)
            row = row // 2
            column = column // 2
        store(sums, output_descriptor, outputs, image, row, column, filter, LAYOUT, RELU, ROUND)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tiles"])
def halo_kernel(
    input_descriptor,
    edge_descriptor,
    weight_descriptor,
    output_descriptor,
    bias_pointer,
    tiles,
    ROW_TILES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    FILTER_TILES: gl.constexpr,
    CHANNEL_STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    BUFFERS: gl.constexpr,
    RELU: gl.constexpr,
    POOL: gl.constexpr,
    ROUND: gl.constexpr,
):
    """As persistent_kernel, for 3x3 taps with padding 1. Blocks of the descriptors: 1 x rows x 8 x 128 bytes of the
    input, 1 x 2 x 8 x 128 bytes of it, filters x 128 bytes, 1 x rows x 8 x 128 bytes of the output, or a quarter of
    that with POOL."""
    ROWS: gl.constexpr = input_descriptor.block_type.shape[1]
    COLUMNS: gl.constexpr = input_descriptor.block_type.shape[2]
    CHANNELS: gl.constexpr = input_descriptor.block_type.shape[3]
    rows = gl.allocate_shared_memory(
        input_descriptor.dtype, [STAGES * (ROWS + 2), COLUMNS, CHANNELS], weight_descriptor.layout
    )
    weights = allocate_blocks(weight_descriptor, STAGES * 3)
    outputs = allocate_blocks(output_descriptor, BUFFERS)
    full, empty = make_barriers(STAGES)
    gl.warp_specialize(
        [
            (consume, (
                output_descriptor, bias_pointer, rows, weights, outputs, full, empty, tiles,
                ROW_TILES, COLUMN_TILES, FILTER_TILES, ROWS, 3 * CHANNEL_STEPS, RELU, POOL, ROUND,
            )),
            (produce, (
                input_descriptor, edge_descriptor, weight_descriptor, rows, weights, full, empty, tiles,
                ROW_TILES, COLUMN_TILES, FILTER_TILES, CHANNEL_STEPS,
            )),
        ],
        [1],
        [24],
    )  # fmt: skip


KERNEL = halo_kernel


def constants(layer: Layer, tile: Tile, precision: Precision, box: Box) -> dict[str, Any]:
    """Every constant of the kernel by its name."""
    every = persistent.constants(layer, tile, precision, box)
    return {name: value for name, value in every.items() if name not in ("KERNEL_SIDE", "PADDING")}


def blocks(layer: Layer, tile: Tile, precision: Precision, box: Box) -> dict[str, list[int]]:
    """What each descriptor copies at a time."""
    every = persistent.blocks(layer, tile, precision, box)
    edge = [1, 2, HALO_COLUMNS, every["input_descriptor"][-1]]
    return {"input_descriptor": every["input_descriptor"], "edge_descriptor": edge, **every}
