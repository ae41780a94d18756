"""Hopper's convolution as one matrix product: a warp copies, the others multiply, and each program computes many tiles.

The copy engine (TMA) writes the left side of the product into shared memory as the matrix units want it: a box of
images x rows x columns x channels of the NHWC image, moved by the tap. What lies outside of the image it fills with
zeros, which is the padding. So no thread computes an address, and the loop of the multiplying warps is a wait, the
multiplication, and the release of the slot that the one before it has read.

Written in Gluon and compiled for compute capability 9.0 alone; there is no interpreter for it. Tests run the PTX that
it is compiled to on an imitation of the processor (tests/kernels/ptx_machine.py); on a GPU `hopper.selfcheck` comes
before the first use.

The ring. A slot of the ring has two barriers: `full`, which one arrival (the producer's) and the last byte of its
copies complete, and `empty`, which one arrival (the consumers') completes. Both count their completions modulo 2. The
n-th use of a slot, n = 0, 1, …, is with parity p = n & 1:

    producer   waits for completion n - 1 of `empty` (parity p ^ 1; before the first use that is true of a new barrier),
               announces the bytes, which is the arrival at `full`, and starts the copies
    consumers  wait for completion n of `full` (parity p), start the multiplication, wait until the one before it has
               ended, all meet, and one of them arrives at `empty` of that one's slot

No deadlock. Both walk through the same tiles and steps, so their n-th uses are of the same slot and parity. The
producer waits only for slots of STAGES steps ago. The consumers hold back the release of at most one step, that of the
multiplication under way, and release it in the next step, or at the end of the tile, before they wait for anything
else of the producer's but the one slot of that next step; with two stages or more the producer has been given that
slot. No overrun either: neither can be two completions ahead of the other, since each needs the other's arrival for
the completion between, so parity is enough.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.boxes import Box, memory
from kernels.geometry import Layer, Precision, item_size
from kernels.tiles import ROW_BYTES, Tile


@gluon.jit
def advance(slot, phase, STAGES: gl.constexpr):
    """The next slot of the ring and the parity of its use, which changes where the ring begins again."""
    following = slot + 1
    wrapped = following == STAGES
    return gl.where(wrapped, 0, following), gl.where(wrapped, phase ^ 1, phase)


@gluon.jit
def place(
    tile,
    ROW_TILES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    FILTER_TILES: gl.constexpr,
    BOX_IMAGES: gl.constexpr,
    BOX_ROWS: gl.constexpr,
    BOX_COLUMNS: gl.constexpr,
    BLOCK_FILTERS: gl.constexpr,
):
    """First image, row, column and filter of a tile. Tiles of the same pixels follow each other: programs that run at
    the same time read them from the L2 cache."""
    filter = tile % FILTER_TILES * BLOCK_FILTERS
    box = tile // FILTER_TILES
    column = box % COLUMN_TILES * BOX_COLUMNS
    row = box // COLUMN_TILES % ROW_TILES * BOX_ROWS
    image = box // (COLUMN_TILES * ROW_TILES) * BOX_IMAGES
    return image, row, column, filter


@gluon.jit
def place_step(
    step,
    row,
    column,
    CHANNEL_STEPS: gl.constexpr,
    BLOCK_CHANNELS: gl.constexpr,
    KERNEL_SIDE: gl.constexpr,
    PADDING: gl.constexpr,
):
    """First row, column and channel of the input that a step of a tile's sum reads; outside of the image too. The
    weights' terms are in the order of the steps."""
    tap = step // CHANNEL_STEPS
    channel = step % CHANNEL_STEPS * BLOCK_CHANNELS
    return row + tap // KERNEL_SIDE - PADDING, column + tap % KERNEL_SIDE - PADDING, channel


@gluon.jit
def larger(left, right):
    return gl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)


@gluon.jit
def largest_of_windows(sums, BOX_COLUMNS: gl.constexpr):
    """[images * rows * columns, filters] -> [images * rows / 2 * columns / 2, filters]; NaN wins.

    With 8 columns a row of the box is one register of eight lanes, so a window's upper and lower pixels meet within a
    thread, and its left and right ones by one exchange of half as many."""
    WINDOWS: gl.constexpr = sums.shape[0] // (2 * BOX_COLUMNS)
    FILTERS: gl.constexpr = sums.shape[1]
    rows = gl.reduce(sums.reshape([WINDOWS, 2, BOX_COLUMNS, FILTERS]), 1, larger)
    windows = gl.reduce(rows.reshape([WINDOWS, BOX_COLUMNS // 2, 2, FILTERS]), 2, larger)
    return windows.reshape([WINDOWS * (BOX_COLUMNS // 2), FILTERS])


@gluon.jit
def round_to_tf32(values):
    """As packing.round_to_tf32: to 10 bits behind the point, halves away from zero; infinities and NaN stay."""
    bits = values.to(gl.int32, bitcast=True)
    rounded = (bits + 0x1000) & -0x2000
    finite = (bits & 0x7F800000) != 0x7F800000
    return gl.where(finite, rounded, bits).to(gl.float32, bitcast=True)


@gluon.jit
def halve(parts):
    """Each [pixels, filters] in two: its first and its last filters."""
    halves = ()
    for index in gl.static_range(len(parts)):
        part = parts[index]
        halves += part.reshape([part.shape[0], 2, part.shape[1] // 2]).permute([0, 2, 1]).split()
    return halves


@gluon.jit
def cut(values, PARTS: gl.constexpr):
    """[pixels, filters] -> PARTS times [pixels, filters / PARTS], from first to last filter; PARTS a power of two.
    A thread has all filters of its pixels: nothing moves."""
    parts = (values,)
    for _ in gl.static_range(PARTS.bit_length() - 1):
        parts = halve(parts)
    return parts


@gluon.jit
def store(
    sums,
    output_descriptor,
    outputs,
    image,
    row,
    column,
    filter,
    LAYOUT: gl.constexpr,
    RELU: gl.constexpr,
    ROUND: gl.constexpr,
):
    """A tile's outputs to shared memory and, by the copy engine, to the image, which it does not write beyond.

    A slot of `outputs` takes one part of the filters. It is written again as many parts later as there are slots, when
    the copy of it has ended."""
    BUFFERS: gl.constexpr = outputs.shape[0]
    BLOCK: gl.constexpr = output_descriptor.block_type.shape[3]
    if RELU:
        sums = gl.maximum(sums, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ROUND:
        sums = round_to_tf32(sums)
    values = sums.to(outputs.dtype)
    parts = cut(values, values.shape[1] // BLOCK)
    for part in gl.static_range(len(parts)):
        buffer = outputs.index(part % BUFFERS)
        tma.store_wait(BUFFERS - 1)
        buffer._reinterpret(outputs.dtype, [values.shape[0], BLOCK], LAYOUT).store(parts[part])
        fence_async_shared()
        tma.async_copy_shared_to_global(
            output_descriptor, [image, row, column, filter + part * BLOCK], buffer
        )


@gluon.jit
def load_bias(bias_pointer, filter, LAYOUT: gl.constexpr, PIXELS: gl.constexpr, FILTERS: gl.constexpr):
    """[PIXELS, FILTERS], what the sums begin with. The largest of four sums stays the largest with a bias, so this
    serves pooled layers as well."""
    bias = gl.load(bias_pointer + filter + gl.arange(0, FILTERS, gl.SliceLayout(0, LAYOUT)))
    return gl.zeros([PIXELS, FILTERS], gl.float32, LAYOUT) + gl.expand_dims(bias, 0)


@gluon.jit
def produce(
    input_descriptor,
    weight_descriptor,
    pixels,
    weights,
    full,
    empty,
    tiles,
    ROW_TILES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    FILTER_TILES: gl.constexpr,
    CHANNEL_STEPS: gl.constexpr,
    KERNEL_SIDE: gl.constexpr,
    PADDING: gl.constexpr,
):
    """One warp: fills the ring."""
    STAGES: gl.constexpr = full.shape[0]
    BOX: gl.constexpr = input_descriptor.block_type.shape
    BLOCK: gl.constexpr = weight_descriptor.block_type.shape
    slot = 0
    phase = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        image, row, column, filter = place(
            tile, ROW_TILES, COLUMN_TILES, FILTER_TILES, BOX[0], BOX[1], BOX[2], BLOCK[0]
        )
        for step in range(KERNEL_SIDE * KERNEL_SIDE * CHANNEL_STEPS):
            top, left, channel = place_step(step, row, column, CHANNEL_STEPS, BOX[3], KERNEL_SIDE, PADDING)
            ready = full.index(slot)
            mbarrier.wait(empty.index(slot), phase)
            mbarrier.expect(ready, input_descriptor.block_type.nbytes + weight_descriptor.block_type.nbytes)
            tma.async_copy_global_to_shared(
                input_descriptor, [image, top, left, channel], ready, pixels.index(slot)
            )
            tma.async_copy_global_to_shared(
                weight_descriptor, [filter, step * BOX[3]], ready, weights.index(slot)
            )
            slot, phase = advance(slot, phase, STAGES)


@gluon.jit
def consume(
    output_descriptor,
    bias_pointer,
    pixels,
    weights,
    outputs,
    full,
    empty,
    tiles,
    ROW_TILES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    FILTER_TILES: gl.constexpr,
    STEPS: gl.constexpr,
    RELU: gl.constexpr,
    POOL: gl.constexpr,
    ROUND: gl.constexpr,
):
    """All other warps, together: multiply what is in the ring, and store. Each warp has 16 rows of every 16 * warps."""
    STAGES: gl.constexpr = full.shape[0]
    IMAGES: gl.constexpr = pixels.shape[1]
    ROWS: gl.constexpr = pixels.shape[2]
    COLUMNS: gl.constexpr = pixels.shape[3]
    CHANNELS: gl.constexpr = pixels.shape[4]
    FILTERS: gl.constexpr = weights.shape[1]
    PIXELS: gl.constexpr = IMAGES * ROWS * COLUMNS
    TERMS: gl.constexpr = 256 // pixels.dtype.primitive_bitwidth
    LAYOUT: gl.constexpr = weights.layout
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, FILTERS, TERMS])
    slot = 0
    phase = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        image, row, column, filter = place(
            tile, ROW_TILES, COLUMN_TILES, FILTER_TILES, IMAGES, ROWS, COLUMNS, FILTERS
        )
        sums = load_bias(bias_pointer, filter, SUMS, PIXELS, FILTERS)
        # Not `slot`, though nobody reads it yet: Triton carries a name from turn to turn of a loop only if a turn leaves
        # another value in it, and looks at that while it does not know yet that `slot` itself changes.
        before = 0
        for step in range(STEPS):
            mbarrier.wait(full.index(slot), phase)
            box = pixels.index(slot)._reinterpret(pixels.dtype, [PIXELS, CHANNELS], LAYOUT)
            sums = warpgroup_mma(box, weights.index(slot).permute([1, 0]), sums, is_async=True)
            sums = warpgroup_mma_wait(1, deps=(sums,))
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


@gluon.jit
def allocate_blocks(descriptor, COUNT: gl.constexpr):
    """Shared memory for so many of what a descriptor copies at a time."""
    shape: gl.constexpr = [COUNT] + descriptor.block_type.shape  # noqa: RUF005 - Triton knows no stars
    return gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)


@gluon.jit
def make_barriers(STAGES: gl.constexpr):
    """`full` and `empty` of a ring."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    return full, empty


@gluon.jit(do_not_specialize=["tiles"])
def persistent_kernel(
    input_descriptor,
    weight_descriptor,
    output_descriptor,
    bias_pointer,
    tiles,
    ROW_TILES: gl.constexpr,
    COLUMN_TILES: gl.constexpr,
    FILTER_TILES: gl.constexpr,
    CHANNEL_STEPS: gl.constexpr,
    KERNEL_SIDE: gl.constexpr,
    PADDING: gl.constexpr,
    STAGES: gl.constexpr,
    BUFFERS: gl.constexpr,
    RELU: gl.constexpr,
    POOL: gl.constexpr,
    ROUND: gl.constexpr,
):
    """[batch, height, width, channels] x [filters, taps * channels] -> [batch, rows, columns, filters], the latter two
    halved with POOL. Blocks of the descriptors: a box of pixels x 128 bytes of channels, filters x 128 bytes, a box of
    outputs x 128 bytes of filters. Twin: twin.convolution."""
    pixels = allocate_blocks(input_descriptor, STAGES)
    weights = allocate_blocks(weight_descriptor, STAGES)
    outputs = allocate_blocks(output_descriptor, BUFFERS)
    full, empty = make_barriers(STAGES)
    STEPS: gl.constexpr = KERNEL_SIDE * KERNEL_SIDE * CHANNEL_STEPS
    gl.warp_specialize(
        [
            (consume, (
                output_descriptor, bias_pointer, pixels, weights, outputs, full, empty, tiles,
                ROW_TILES, COLUMN_TILES, FILTER_TILES, STEPS, RELU, POOL, ROUND,
            )),
            (produce, (
                input_descriptor, weight_descriptor, pixels, weights, full, empty, tiles,
                ROW_TILES, COLUMN_TILES, FILTER_TILES, CHANNEL_STEPS, KERNEL_SIDE, PADDING,
            )),
        ],
        [1],
        [24],
    )  # fmt: skip


KERNEL = persistent_kernel


def constants(layer: Layer, tile: Tile, precision: Precision, box: Box) -> dict[str, Any]:
    """Every constant of the kernel by its name."""
    return {
        "ROW_TILES": -(-layer.rows // box.rows),
        "COLUMN_TILES": -(-layer.columns // box.columns),
        "FILTER_TILES": layer.filters // tile.filters,
        "CHANNEL_STEPS": layer.channels // tile.channels,
        "KERNEL_SIDE": layer.kernel,
        "PADDING": layer.padding,
        "STAGES": tile.stages,
        "BUFFERS": memory(layer, tile, precision).buffers,
        "RELU": layer.relu,
        "POOL": layer.pool,
        "ROUND": precision == "tf32" and layer.relu,
    }


def blocks(layer: Layer, tile: Tile, precision: Precision, box: Box) -> dict[str, list[int]]:
    """What each descriptor copies at a time."""
    columns = ROW_BYTES // item_size(precision)
    halved = 2 if layer.pool else 1
    return {
        "input_descriptor": [*box, columns],
        "weight_descriptor": [tile.filters, columns],
        "output_descriptor": [box.images, box.rows // halved, box.columns // halved, columns],
    }
