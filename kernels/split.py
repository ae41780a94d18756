"""Convolutions over few pixels, and dense layers: swapped operands, the sum shared by several programs.

Where a layer has few pixels there are too few tiles for the processors, and the weights are most of what is read. So
the filters are the rows of a tile (the matrix units take 64) and the pixels its columns (16 are enough), and `splits`
programs share the steps of a tile's sum. Each writes what it has summed, float32, to the workspace and draws a ticket;
the one that draws the last reads all of them back, adds them in order of their numbers, and finishes the tile. Which
program comes last is chance, the order of the addition is not: results are equal bit for bit from run to run. There
are no floating-point atomics.

A launch allocates its workspace with `torch.empty`: memory that the caching allocator gives to nobody else on this
stream before the launch is over, nor to another stream or another CUDA graph. Where the tickets come from, and why not
from a cache: kernels/tickets.py.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.geometry import CHANNEL_STEP, LARGEST_TENSOR, Layer, Precision, Unsupported
from kernels.implicit import descriptor_block, fitted, layer_constants
from kernels.splitting import round_tf32, split_input
from kernels.tickets import draw
from kernels.tiles import Tile
from kernels.twin import allocate


@triton.jit
def larger(one, other):
    """As torch's maximum: NaN wins."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def positions(numbers, ROWS: tl.constexpr, COLUMNS: tl.constexpr, POOL: tl.constexpr):
    """(image, row, column) of sums by their numbers; before a pool the four of a window follow one another."""
    if POOL:
        window = numbers // 4
        column = window % (COLUMNS // 2) * 2 + numbers % 2
        row = window // (COLUMNS // 2) % (ROWS // 2) * 2 + numbers // 2 % 2
        image = window // (COLUMNS // 2) // (ROWS // 2)
    else:
        column = numbers % COLUMNS
        row = numbers // COLUMNS % ROWS
        image = numbers // COLUMNS // ROWS
    return image, row, column


@triton.jit
def taps_inside(first, SIZE: tl.constexpr, KERNEL_SIDE: tl.constexpr):
    """Bit t: whether place first + t along one side of the image is inside it."""
    bits = tl.zeros_like(first)
    for tap in tl.static_range(KERNEL_SIDE):
        bits |= ((first + tap >= 0) & (first + tap < SIZE)).to(tl.int32) << tap
    return bits


@triton.jit
def first_taps(
    numbers,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    KERNEL_SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POOL: tl.constexpr,
):
    """Of the sums with these numbers: the pixel, in memory, of the first tap, inside the image or not; and bits of the
    taps' rows and columns that are inside."""
    image, row, column = positions(numbers, ROWS, COLUMNS, POOL)
    top = row * STRIDE - PADDING
    left = column * STRIDE - PADDING
    rows_inside = taps_inside(top, HEIGHT, KERNEL_SIDE)
    return (image * HEIGHT + top) * WIDTH + left, rows_inside, taps_inside(left, WIDTH, KERNEL_SIDE)


@triton.jit
def sum_steps(
    input_pointer,
    weight_pointer,
    weight_descriptor,
    first_filter,
    first_pixels,
    rows_inside,
    columns_inside,
    start,
    end,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr,
    KERNEL_SIDE: tl.constexpr,
    PADDING: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_FILTERS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Steps start..end of the sums whose first taps are these: (BLOCK_FILTERS, BLOCK_PIXELS) float32."""
    BLOCKS: tl.constexpr = CHANNELS // BLOCK_CHANNELS
    STORED: tl.constexpr = CHANNELS * (2 if SEGMENTS == 3 else 1)  # channels of a pixel as they lie in memory
    channels = tl.arange(0, BLOCK_CHANNELS)
    input_pointers = input_pointer + (first_pixels * STORED)[:, None] + channels[None, :]
    # Filters beyond the last are the last again: read without a mask, never stored.
    filters = tl.minimum(first_filter + tl.arange(0, BLOCK_FILTERS), FILTERS - 1)
    if weight_descriptor is None:
        first_terms = filters * (KERNEL_SIDE * KERNEL_SIDE * STORED)
        weight_pointers = weight_pointer + first_terms[:, None] + channels[None, :]
    sums = tl.zeros((BLOCK_FILTERS, BLOCK_PIXELS), tl.float32)
    for step in range(start, end):
        tap = step // (BLOCKS * SEGMENTS)
        channel = step % BLOCKS * BLOCK_CHANNELS
        input_start = (tap // KERNEL_SIDE * WIDTH + tap % KERNEL_SIDE) * STORED + channel
        weight_start = tap * STORED + channel
        if SEGMENTS == 3:  # high parts of both, low input with high weights, high input with low weights
            input_start += tl.where(step // BLOCKS % 3 == 1, CHANNELS, 0)
            weight_start += tl.where(step // BLOCKS % 3 == 2, CHANNELS, 0)
        if PADDING > 0:
            inside = (rows_inside >> (tap // KERNEL_SIDE)) & (columns_inside >> (tap % KERNEL_SIDE)) & 1
            inputs = tl.load(input_pointers + input_start, mask=inside[:, None] != 0, other=0.0)
        else:
            inputs = tl.load(input_pointers + input_start)
        if weight_descriptor is None:
            weights = tl.load(weight_pointers + weight_start)
        else:
            weights = weight_descriptor.load([first_filter, weight_start])
        if UPCAST:
            inputs = inputs.to(tl.float32)
            weights = weights.to(tl.float32)
        sums = tl.dot(weights, tl.trans(inputs), sums, input_precision=INPUT_PRECISION)
    return sums


@triton.jit
def hand_in(
    sums,
    workspace_pointer,
    ticket_pointer,
    SPLITS: tl.constexpr,
    BLOCK_FILTERS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """Writes this program's partial sum and draws a ticket. Where the tile's first partial sum lies, and whether the
    ticket was the tile's last: all its writers have written then."""
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    places = tl.arange(0, BLOCK_FILTERS)[:, None] * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[None, :]
    parts = workspace_pointer + tile * (SPLITS * BLOCK_FILTERS * BLOCK_PIXELS) + places
    tl.store(parts + tl.program_id(2) * (BLOCK_FILTERS * BLOCK_PIXELS), sums, cache_modifier=".cg")
    tl.debug_barrier()  # one thread draws: what the others wrote comes before
    is_last = tl.atomic_add(ticket_pointer + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.store(ticket_pointer + tile, 0)  # for the next launch
    return parts, is_last


@triton.jit
def add_up(pointers, SPLITS: tl.constexpr, BLOCK_FILTERS: tl.constexpr, BLOCK_PIXELS: tl.constexpr):
    """The partial sums of a tile in order of their numbers. They are in no first-level cache: .cg passes it by."""
    sums = tl.zeros((BLOCK_FILTERS, BLOCK_PIXELS), tl.float32)
    for part in tl.static_range(SPLITS):
        sums += tl.load(pointers + part * (BLOCK_FILTERS * BLOCK_PIXELS), cache_modifier=".cg")
    return sums


@triton.jit
def finish(
    sums,
    bias_pointer,
    output_pointer,
    first_filter,
    first_output,
    outputs,
    FILTERS: tl.constexpr,
    POOL: tl.constexpr,
    RELU: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_FILTERS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """Max pool, bias, ReLU, tf32's rounding; stores (pixels, FILTERS)."""
    BLOCK_OUTPUTS: tl.constexpr = BLOCK_PIXELS // 4 if POOL else BLOCK_PIXELS
    if POOL:
        windows = tl.reshape(sums, (BLOCK_FILTERS, BLOCK_OUTPUTS, 2, 2))
        left, right = tl.split(windows)
        upper, lower = tl.split(larger(left, right))
        sums = larger(upper, lower)
    filters = first_filter + tl.arange(0, BLOCK_FILTERS)
    numbers = first_output + tl.arange(0, BLOCK_OUTPUTS)
    sums += tl.load(bias_pointer + filters, mask=filters < FILTERS, other=0.0)[:, None]
    if RELU:
        sums = larger(sums, 0.0)
    if ROUND:
        sums = round_tf32(sums)
    pointers = output_pointer + numbers[None, :] * FILTERS + filters[:, None]
    present = (filters < FILTERS)[:, None] & (numbers < outputs)[None, :]
    tl.store(pointers, sums.to(output_pointer.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=["batch"])
def split_convolution(
    input_pointer,
    weight_pointer,
    weight_descriptor,
    bias_pointer,
    output_pointer,
    workspace_pointer,
    ticket_pointer,
    batch,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    FILTERS: tl.constexpr,
    KERNEL_SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    ROUND: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_FILTERS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    SPLITS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """input [batch, HEIGHT, WIDTH, CHANNELS] (float32: 2 * CHANNELS, see packing.split), weight [FILTERS, terms], bias
    [FILTERS] float32 -> output [batch, rows, columns, FILTERS]. Twin: twin.convolution.

    Programs (pixel tile, filter tile, split); workspace [tiles, SPLITS, BLOCK_FILTERS, BLOCK_PIXELS] float32; tickets
    [tiles] int32, zero before and after.
    """
    STEPS: tl.constexpr = KERNEL_SIDE * KERNEL_SIDE * SEGMENTS * (CHANNELS // BLOCK_CHANNELS)
    SCALE: tl.constexpr = 4 if POOL else 1  # sums of an output
    outputs = batch * ((ROWS // 2) * (COLUMNS // 2) if POOL else ROWS * COLUMNS)
    split = tl.program_id(2)
    first_filter = tl.program_id(1) * BLOCK_FILTERS
    first_output = tl.program_id(0) * (BLOCK_PIXELS // SCALE)
    # Sums beyond the last are the last again: read inside the input, never stored.
    numbers = tl.minimum(first_output * SCALE + tl.arange(0, BLOCK_PIXELS), outputs * SCALE - 1)
    first_pixels, rows_inside, columns_inside = first_taps(
        numbers, HEIGHT, WIDTH, KERNEL_SIDE, STRIDE, PADDING, ROWS, COLUMNS, POOL
    )
    sums = sum_steps(
        input_pointer, weight_pointer, weight_descriptor, first_filter, first_pixels, rows_inside, columns_inside,
        split * STEPS // SPLITS, (split + 1) * STEPS // SPLITS, WIDTH, CHANNELS, FILTERS, KERNEL_SIDE, PADDING,
        SEGMENTS, BLOCK_FILTERS, BLOCK_PIXELS, BLOCK_CHANNELS, INPUT_PRECISION, UPCAST,
    )  # fmt: skip
    if SPLITS > 1:
        parts, is_last = hand_in(sums, workspace_pointer, ticket_pointer, SPLITS, BLOCK_FILTERS, BLOCK_PIXELS)
        if not is_last:
            return  # another program will finish the tile
        sums = add_up(parts, SPLITS, BLOCK_FILTERS, BLOCK_PIXELS)
    finish(
        sums, bias_pointer, output_pointer, first_filter, first_output, outputs,
        FILTERS, POOL, RELU, ROUND, BLOCK_FILTERS, BLOCK_PIXELS,
    )  # fmt: skip


KERNEL = split_convolution


def constants(layer: Layer, tile: Tile, precision: Precision) -> dict[str, Any]:
    """Every constant of the kernel by its name."""
    return {
        **layer_constants(layer, precision),
        "SEGMENTS": 3 if precision == "float32" else 1,
        "BLOCK_FILTERS": tile.filters,
        "BLOCK_PIXELS": tile.pixels,
        "BLOCK_CHANNELS": fitted(layer, tile).channels,
        "SPLITS": tile.splits,
    }


def grid(layer: Layer, tile: Tile, batch: int) -> tuple[int, ...]:
    """(pixel tiles, filter tiles, splits). A pool's tiles hold whole windows: sums that it drops are not computed."""
    height, width = layer.output
    sums = batch * height * width * (4 if layer.pool else 1)
    return triton.cdiv(sums, tile.pixels), triton.cdiv(layer.filters, tile.filters), tile.splits


def workspace_shape(layer: Layer, tile: Tile, batch: int) -> tuple[int, int, int, int]:
    """(tiles, splits, filters, pixels) of float32 partial sums; the tickets are as many as the tiles."""
    pixel_tiles, filter_tiles, splits = grid(layer, tile, batch)
    return pixel_tiles * filter_tiles, splits, tile.filters, tile.pixels


def refuse(layer: Layer, tile: Tile, batch: int, precision: Precision) -> None:
    """Raises Unsupported for stems, and for what 32-bit offsets do not reach."""
    weights = layer.filters * layer.taps * layer.channels * (2 if precision == "float32" else 1)
    sums = prod(workspace_shape(layer, tile, batch))
    checks = (
        (not layer.is_stem, f"a stem's {layer.channels} input channels ({CHANNEL_STEP} or more)"),
        (weights < LARGEST_TENSOR, f"{weights} weights (less than {LARGEST_TENSOR})"),
        (
            tile.splits == 1 or sums < LARGEST_TENSOR,
            f"{sums} partial sums (less than {LARGEST_TENSOR}: fewer splits or images)",
        ),
    )
    if faults := [fault for right, fault in checks if not right]:
        raise Unsupported(f"the split kernel does not take {'; '.join(faults)}")


def launch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer: Layer,
    tile: Tile,
    precision: Precision,
    output: Tensor | None = None,
    workspace: Tensor | None = None,
    tickets: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W), weights as `pack` leaves them, float32 bias (filters,) -> (N, filters, *layer.output), which may be
    given; all images channels_last, operands as `operators` hands them on. Raises Unsupported for tiles.

    The workspace, of `workspace_shape`, and the tickets, a zero for each tile, may be given too.
    """
    refuse(layer, tile, len(input), precision)
    if precision == "float32":
        input = split_input(input)
    if output is None:
        output = allocate(layer, len(input), precision, input.device)
    if tile.splits > 1:
        shape = workspace_shape(layer, tile, len(input))
        workspace = (
            torch.empty(shape, dtype=torch.float32, device=input.device) if workspace is None else workspace
        )
        tickets = draw(shape[0], input.device) if tickets is None else tickets
    block = descriptor_block(fitted(layer, tile))
    KERNEL[grid(layer, tile, len(input))](
        input,
        None if tile.descriptor else weight,
        TensorDescriptor.from_tensor(weight, block) if tile.descriptor else None,
        bias,
        output,
        workspace,
        tickets,
        len(input),
        **constants(layer, tile, precision),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output
