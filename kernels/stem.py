"""The first convolution of a net, of up to 4 channels: its left side is gathered number by number from the image as it
comes, in any memory format and any float type, so that no pass over the images comes before it.

(pixels, terms) x (terms, filters); a term is a channel of a tap. Such a layer takes as long as its output takes to be
written; the gathering and the few multiplications hide behind that.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.geometry import CHANNEL_STEP, LARGEST_TENSOR, Layer, Precision, item_size
from kernels.implicit import GROUP, finish, grid, layer_constants, locate, place, store
from kernels.splitting import round_tf32
from kernels.tiles import STEM_TERMS, Tile
from kernels.twin import allocate

__all__ = ["KERNEL", "constants", "grid", "launch"]

BLOCK_BYTES = 2 * STEM_TERMS
"""Of a block of terms. Longer blocks of float32 numbers take more registers than there are."""
UNROLLED = 32
"""Terms in float32 at a time, each of which comes as two; in other precisions all terms are unrolled."""


@triton.jit
def gather(
    input_pointers,
    row,
    column,
    present,
    terms,
    channel_stride,
    row_stride,
    column_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL_SIDE: tl.constexpr,
):
    """Some terms of pixels whose first tap is at (row, column), where `input_pointers` point: [terms, pixels].

    Pixels last, so that the threads of a warp read neighbours.
    """
    tap_row = terms // (KERNEL_SIDE * CHANNELS)
    tap_column = terms // CHANNELS % KERNEL_SIDE
    distance = tap_row * row_stride + tap_column * column_stride + terms % CHANNELS * channel_stride
    rows = row[None, :] + tap_row[:, None]
    columns = column[None, :] + tap_column[:, None]
    inside = (rows >= 0) & (rows < HEIGHT) & (columns >= 0) & (columns < WIDTH) & present[None, :]
    inside = inside & (tap_row < KERNEL_SIDE)[:, None]  # terms beyond the last tap fill the block up
    return tl.load(input_pointers[None, :] + distance[:, None], mask=inside, other=0.0)


@triton.jit
def add_product(
    sums, inputs, weights, ACCURATE: tl.constexpr, INPUT_PRECISION: tl.constexpr, UPCAST: tl.constexpr
):
    """sums + [terms, pixels] transposed x [terms, filters]; ACCURATE: to 21 bits, as three products of tf32 numbers."""
    if UPCAST:
        inputs = inputs.to(tl.float32)
        weights = weights.to(tl.float32)
    if ACCURATE:
        high_inputs = round_tf32(inputs)
        high_weights = round_tf32(weights)
        low_inputs = round_tf32(inputs - high_inputs)
        low_weights = round_tf32(weights - high_weights)
        sums = tl.dot(high_inputs.T, low_weights, sums, input_precision=INPUT_PRECISION)
        sums = tl.dot(low_inputs.T, high_weights, sums, input_precision=INPUT_PRECISION)
        inputs = high_inputs
        weights = high_weights
    elif INPUT_PRECISION == "tf32":
        inputs = round_tf32(inputs)
    return tl.dot(inputs.T, weights, sums, input_precision=INPUT_PRECISION)


@triton.jit(do_not_specialize=["batch"])
def stem_kernel(
    input_pointer, weight_pointer, bias_pointer, output_pointer, batch, image_stride, channel_stride,
    row_stride, column_stride,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, FILTERS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, KERNEL_SIDE: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr, POOL: tl.constexpr, ROUND: tl.constexpr, ACCURATE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    TERMS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_FILTERS: tl.constexpr, BLOCK_TERMS: tl.constexpr,
    UNROLLED: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """(batch, CHANNELS, HEIGHT, WIDTH) by strides x [FILTERS, TERMS] -> [batch, rows, columns, FILTERS], the middle two
    halved with POOL. Twin: twin.convolution."""
    FILTER_BLOCKS: tl.constexpr = (FILTERS + BLOCK_FILTERS - 1) // BLOCK_FILTERS
    AREA: tl.constexpr = (ROWS // 2) * (COLUMNS // 2) if POOL else ROWS * COLUMNS
    STORED: tl.constexpr = BLOCK_PIXELS // 4 if POOL else BLOCK_PIXELS

    pixel_blocks = tl.cdiv(batch * AREA, STORED)
    pixel_block, filter_block = place(tl.program_id(0), pixel_blocks, FILTER_BLOCKS, GROUP)
    image, row, column, present = locate(pixel_block, batch, ROWS, COLUMNS, BLOCK_PIXELS, POOL)
    row = row * STRIDE - PADDING
    column = column * STRIDE - PADDING
    input_pointers = input_pointer + image * image_stride + row * row_stride + column * column_stride
    filters = filter_block * BLOCK_FILTERS + tl.arange(0, BLOCK_FILTERS)
    read_filters = tl.minimum(filters, FILTERS - 1)  # instead of a mask: what is read twice is not stored

    sums = tl.zeros((BLOCK_PIXELS, BLOCK_FILTERS), dtype=tl.float32)
    for span in range(0, TERMS, UNROLLED):
        for step in tl.static_range(0, UNROLLED, BLOCK_TERMS):
            terms = span + step + tl.arange(0, BLOCK_TERMS)
            inputs = gather(
                input_pointers, row, column, present, terms,
                channel_stride, row_stride, column_stride, HEIGHT, WIDTH, CHANNELS, KERNEL_SIDE,
            )  # fmt: skip
            inputs = inputs.to(weight_pointer.dtype.element_ty)
            weight_pointers = weight_pointer + (read_filters * TERMS)[None, :] + terms[:, None]
            weights = tl.load(weight_pointers, mask=(terms < TERMS)[:, None], other=0.0)
            sums = add_product(sums, inputs, weights, ACCURATE, INPUT_PRECISION, UPCAST)

    bias = tl.load(bias_pointer + read_filters)
    values = finish(sums, bias, BLOCK_PIXELS, BLOCK_FILTERS, RELU, POOL, ROUND)
    store(output_pointer, values, pixel_block, filters, batch * AREA, FILTERS, FILTERS % BLOCK_FILTERS == 0)


KERNEL = stem_kernel


def constants(layer: Layer, tile: Tile, precision: Precision) -> dict[str, Any]:
    """Every constant of the kernel by its name; of the tile, `channels` has no meaning here."""
    used = layer.taps * layer.channels
    terms = used + -used % CHANNEL_STEP
    block = min(BLOCK_BYTES // item_size(precision), triton.next_power_of_2(terms))
    return {
        **layer_constants(layer, precision),
        "ACCURATE": precision == "float32",
        "TERMS": terms,
        "BLOCK_PIXELS": tile.pixels,
        "BLOCK_FILTERS": tile.filters,
        "BLOCK_TERMS": block,
        # unrolled, each thread knows its taps when it is compiled
        "UNROLLED": UNROLLED if precision == "float32" else terms,
        "GROUP": GROUP,
    }


def launch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer: Layer,
    tile: Tile,
    precision: Precision,
    output: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W) of any strides and float type, weights as `pack` leaves them, float32 bias (filters,) ->
    (N, filters, *layer.output), channels_last, which may be given. Operands as `operators` hands them on."""
    reach = sum((size - 1) * stride for size, stride in zip(input.shape, input.stride(), strict=True))
    if reach >= LARGEST_TENSOR:  # a few images of a huge tensor
        input = input.contiguous()
    if output is None:
        output = allocate(layer, len(input), precision, input.device)
    KERNEL[grid(layer, tile, len(input))](
        input,
        weight,
        bias,
        output,
        len(input),
        *input.stride(),
        **constants(layer, tile, precision),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output
