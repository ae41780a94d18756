"""Convolution as one matrix product whose left side is never written down: any layer but the stem, on any GPU.

    (pixels, taps * channels) x (taps * channels, filters)

Row p of the left side is what the kernel's window covers at pixel p. It is read straight from the NHWC image: the
address of a pixel's first tap is computed once, a tap is a constant distance from it, and one bit per tap says whether
it lies in the image. So the loop over the sum has no division, and goes on from tap to tap without a break.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.geometry import Layer, Precision
from kernels.splitting import round_tf32, split_input
from kernels.tiles import Tile, interpreting
from kernels.twin import allocate

GROUP = 8
"""Blocks of pixels that are computed for all filters before the next: what they read stays in the L2 cache."""


@triton.jit
def place(program, pixel_blocks, FILTER_BLOCKS: tl.constexpr, GROUP: tl.constexpr):
    """Which block of pixels, and which block of filters, a program computes."""
    group = program // (GROUP * FILTER_BLOCKS)
    within = program % (GROUP * FILTER_BLOCKS)
    size = tl.minimum(pixel_blocks - group * GROUP, GROUP)
    return group * GROUP + within % size, within // size


@triton.jit
def locate(
    block, batch, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, POOL: tl.constexpr
):
    """Image, row and column of the convolution's pixels that a tile computes, and whether they are there: four
    [BLOCK_PIXELS].

    With POOL the four pixels of a window are the tile's rows r, r + 8, r + BLOCK_PIXELS / 2 and r + BLOCK_PIXELS / 2 +
    8. A thread of a matrix unit holds those four in its own registers, so the maximum costs no exchange.
    """
    index = tl.arange(0, BLOCK_PIXELS)
    SCALE: tl.constexpr = 2 if POOL else 1
    ACROSS: tl.constexpr = COLUMNS // SCALE
    AREA: tl.constexpr = ROWS // SCALE * ACROSS
    if POOL:
        stored = block * (BLOCK_PIXELS // 4) + index % (BLOCK_PIXELS // 2) // 16 * 8 + index % 8
    else:
        stored = block * BLOCK_PIXELS + index
    stored = stored.to(tl.uint32)  # without a sign a division by a constant takes half the instructions
    within = stored % AREA
    image = (stored // AREA).to(tl.int32)
    row = (within // ACROSS).to(tl.int32) * SCALE
    column = (within % ACROSS).to(tl.int32) * SCALE
    if POOL:
        row += index // (BLOCK_PIXELS // 2)
        column += index // 8 % 2
    return image, row, column, image < batch


@triton.jit
def tap_bits(row, column, present, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, KERNEL_SIDE: tl.constexpr):
    """Bit r * KERNEL_SIDE + c: whether tap (r, c) of the window that begins at (row, column) lies in the image."""
    TYPE: tl.constexpr = tl.int32 if KERNEL_SIDE < 6 else tl.int64
    columns = tl.zeros_like(row).to(TYPE)
    for tap in tl.static_range(KERNEL_SIDE):
        columns |= ((column + tap).to(tl.uint32) < WIDTH).to(TYPE) << tap  # without a sign -1 is beyond, too
    bits = tl.zeros_like(columns)
    for tap in tl.static_range(KERNEL_SIDE):
        bits |= tl.where((row + tap).to(tl.uint32) < HEIGHT, columns << (tap * KERNEL_SIDE), 0)
    return tl.where(present, bits, 0)


@triton.jit
def largest_of_windows(values, BLOCK_PIXELS: tl.constexpr, BLOCK_FILTERS: tl.constexpr):
    """[BLOCK_PIXELS, BLOCK_FILTERS], rows as `locate` lays them -> [BLOCK_PIXELS / 4, BLOCK_FILTERS]; NaN wins."""
    windows = tl.reshape(values, (2, BLOCK_PIXELS // 32, 2, 8, BLOCK_FILTERS))
    first, second = tl.split(tl.permute(windows, (1, 3, 4, 2, 0)))
    left, right = tl.split(tl.maximum(first, second, propagate_nan=tl.PropagateNan.ALL))
    largest = tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)
    return tl.reshape(largest, (BLOCK_PIXELS // 4, BLOCK_FILTERS))


@triton.jit
def finish(
    sums,
    bias,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_FILTERS: tl.constexpr,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    ROUND: tl.constexpr,
):
    """Max pool, bias, ReLU, rounding. Bias and ReLU after the pool: they do not change which is the largest."""
    if POOL:
        sums = largest_of_windows(sums, BLOCK_PIXELS, BLOCK_FILTERS)
    sums += bias[None, :]
    if RELU:
        sums = tl.maximum(sums, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ROUND:
        sums = round_tf32(sums)
    return sums


@triton.jit
def store(output_pointer, values, block, filters, pixels_stored, FILTERS: tl.constexpr, EVEN: tl.constexpr):
    """A tile to [pixels_stored, FILTERS]; EVEN: no tile reaches beyond the last filter."""
    pixels = block * values.shape[0] + tl.arange(0, values.shape[0])
    pointers = output_pointer + (pixels * FILTERS)[:, None] + filters[None, :]
    mask = (pixels < pixels_stored)[:, None]
    if not EVEN:
        mask = mask & (filters < FILTERS)[None, :]
    tl.store(pointers, values.to(output_pointer.dtype.element_ty), mask=mask)


@triton.jit
def walk(
    step,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL_SIDE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """A step of the sum: its tap, its distance from a pixel's first tap in an image of DEPTH numbers a pixel, and its
    first term in a filter's weights. All uniform: what does not depend on the thread costs a warp one instruction."""
    BLOCKS: tl.constexpr = CHANNELS // BLOCK_CHANNELS
    tap = step // (SEGMENTS * BLOCKS)
    if DESCRIPTOR and SEGMENTS == 1:
        term = step * BLOCK_CHANNELS
    else:  # of that product the compiler would make pointers that grow from step to step, each in two registers
        term = tap * DEPTH + step % BLOCKS * BLOCK_CHANNELS
    # in the image taps lie as in the weights, but for a jump from each row of the kernel to the next
    distance = term + step // (KERNEL_SIDE * SEGMENTS * BLOCKS) * ((WIDTH - KERNEL_SIDE) * DEPTH)
    if SEGMENTS == 3:
        segment = step // BLOCKS % SEGMENTS
        distance += tl.where(segment == 1, CHANNELS, 0)
        term += tl.where(segment == 2, CHANNELS, 0)
    return tap, distance, term


@triton.jit(do_not_specialize=["batch"])
def implicit_kernel(
    input_pointer, weight_pointer, weight_descriptor, bias_pointer, output_pointer, batch,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, FILTERS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, KERNEL_SIDE: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr, POOL: tl.constexpr, ROUND: tl.constexpr, SEGMENTS: tl.constexpr, PARTS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_FILTERS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """[batch, HEIGHT, WIDTH, PARTS * CHANNELS] x [FILTERS, taps * PARTS * CHANNELS] -> [batch, rows, columns, FILTERS],
    the latter two halved with POOL. Weights come by descriptor where there is one, else by pointer. Twin:
    twin.convolution.

    With 3 SEGMENTS each of 2 PARTS of an input, high and low, meets the weights' parts: high x high, low x high and
    high x low. The products are right to 21 bits; how many bits of their sum a device's matrix units keep, which may be
    fewer than float32 has, was not verified on one.
    """
    DEPTH: tl.constexpr = PARTS * CHANNELS
    TERMS: tl.constexpr = KERNEL_SIDE * KERNEL_SIDE * DEPTH
    STEPS: tl.constexpr = KERNEL_SIDE * KERNEL_SIDE * SEGMENTS * (CHANNELS // BLOCK_CHANNELS)
    FILTER_BLOCKS: tl.constexpr = (FILTERS + BLOCK_FILTERS - 1) // BLOCK_FILTERS
    DESCRIPTOR: tl.constexpr = weight_descriptor is not None
    AREA: tl.constexpr = (ROWS // 2) * (COLUMNS // 2) if POOL else ROWS * COLUMNS
    STORED: tl.constexpr = BLOCK_PIXELS // 4 if POOL else BLOCK_PIXELS

    pixel_blocks = tl.cdiv(batch * AREA, STORED)
    pixel_block, filter_block = place(tl.program_id(0), pixel_blocks, FILTER_BLOCKS, GROUP)
    image, row, column, present = locate(pixel_block, batch, ROWS, COLUMNS, BLOCK_PIXELS, POOL)
    row = row * STRIDE - PADDING
    column = column * STRIDE - PADDING
    bits = tap_bits(row, column, present, HEIGHT, WIDTH, KERNEL_SIDE)

    filters = filter_block * BLOCK_FILTERS + tl.arange(0, BLOCK_FILTERS)
    read_filters = tl.minimum(filters, FILTERS - 1)  # instead of a mask: what is read twice is not stored
    channels = tl.arange(0, BLOCK_CHANNELS)
    input_pointers = (
        input_pointer + (((image * HEIGHT + row) * WIDTH + column) * DEPTH)[:, None] + channels[None, :]
    )
    if not DESCRIPTOR:
        weight_pointers = weight_pointer + (read_filters * TERMS)[:, None] + channels[None, :]

    sums = tl.zeros((BLOCK_PIXELS, BLOCK_FILTERS), dtype=tl.float32)
    for step in range(STEPS):
        tap, distance, term = walk(
            step, WIDTH, CHANNELS, KERNEL_SIDE, SEGMENTS, DEPTH, BLOCK_CHANNELS, DESCRIPTOR
        )
        inside = ((bits >> tap) & 1) != 0
        inputs = tl.load(input_pointers + distance, mask=inside[:, None], other=0.0)
        if DESCRIPTOR:
            weights = weight_descriptor.load([filter_block * BLOCK_FILTERS, term])
        else:
            weights = tl.load(weight_pointers + term)
        if UPCAST:
            inputs = inputs.to(tl.float32)
            weights = weights.to(tl.float32)
        sums = tl.dot(inputs, weights.T, sums, input_precision=INPUT_PRECISION)

    bias = tl.load(bias_pointer + read_filters)
    values = finish(sums, bias, BLOCK_PIXELS, BLOCK_FILTERS, RELU, POOL, ROUND)
    store(output_pointer, values, pixel_block, filters, batch * AREA, FILTERS, FILTERS % BLOCK_FILTERS == 0)


KERNEL = implicit_kernel


def fitted(layer: Layer, tile: Tile) -> Tile:
    """The tile with as many channels at a time as divide the layer's."""
    return tile._replace(channels=gcd(tile.channels, layer.channels))


def descriptor_block(tile: Tile) -> list[int]:
    """[filters, channels] that the weights' descriptor fetches at a time, of a `fitted` tile."""
    return [tile.filters, tile.channels]


def layer_constants(layer: Layer, precision: Precision) -> dict[str, Any]:
    """Those of a layer's constants that every portable kernel takes."""
    return {
        "HEIGHT": layer.height,
        "WIDTH": layer.width,
        "CHANNELS": layer.channels,
        "FILTERS": layer.filters,
        "ROWS": layer.rows,
        "COLUMNS": layer.columns,
        "KERNEL_SIDE": layer.kernel,
        "STRIDE": layer.stride,
        "PADDING": layer.padding,
        "RELU": layer.relu,
        "POOL": layer.pool,
        "ROUND": precision == "tf32" and layer.relu,
        "INPUT_PRECISION": "tf32" if precision in ("tf32", "float32") else "ieee",
        "UPCAST": interpreting(),  # the interpreter multiplies the bits of bfloat16 numbers as if they were integers
    }


def constants(layer: Layer, tile: Tile, precision: Precision) -> dict[str, Any]:
    """Every constant of the kernel by its name."""
    accurate = precision == "float32"
    return {
        **layer_constants(layer, precision),
        "SEGMENTS": 3 if accurate else 1,
        "PARTS": 2 if accurate else 1,
        "BLOCK_PIXELS": tile.pixels,
        "BLOCK_FILTERS": tile.filters,
        "BLOCK_CHANNELS": fitted(layer, tile).channels,
        "GROUP": GROUP,
    }


def grid(layer: Layer, tile: Tile, batch: int) -> tuple[int, ...]:
    height, width = layer.output
    stored = tile.pixels // 4 if layer.pool else tile.pixels
    return (triton.cdiv(batch * height * width, stored) * triton.cdiv(layer.filters, tile.filters),)


def launch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer: Layer,
    tile: Tile,
    precision: Precision,
    output: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W), weights as `pack` leaves them, float32 bias (filters,) -> (N, filters, *layer.output), which may be
    given; all images channels_last, operands as `operators` hands them on."""
    if precision == "float32":
        input = split_input(input)
    if output is None:
        output = allocate(layer, len(input), precision, input.device)
    block = descriptor_block(fitted(layer, tile))
    KERNEL[grid(layer, tile, len(input))](
        input,
        None if tile.descriptor else weight,
        TensorDescriptor.from_tensor(weight, block) if tile.descriptor else None,
        bias,
        output,
        len(input),
        **constants(layer, tile, precision),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output
