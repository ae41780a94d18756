"""float32 images as two images of tf32 numbers, for the layers that compute in all bits; and tf32's rounding in kernels.

Not to be confused with split.py, where several programs share one sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def round_tf32(values):
    """float32 to the nearest tf32 numbers, halves away from zero; NaN and infinities stay. Twin: packing.round_to_tf32."""
    bits = values.to(tl.int32, bitcast=True)
    rounded = (bits + 0x1000) & ~0x1FFF
    return tl.where(values == values, rounded.to(tl.float32, bitcast=True), values)


@triton.jit
def split_kernel(input_pointer, output_pointer, elements, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """[pixels, channels] float32 -> [pixels, 2 * channels]: the numbers rounded to tf32, then what that left of them,
    rounded as well. Twin: packing.split(values, dim=-1)."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = element < elements
    values = tl.load(input_pointer + element, mask=present, other=0.0)
    high = round_tf32(values)
    output_pointers = output_pointer + element + element // CHANNELS * CHANNELS
    tl.store(output_pointers, high, mask=present)
    tl.store(output_pointers + CHANNELS, round_tf32(values - high), mask=present)


def split_input(input: Tensor) -> Tensor:
    """(N, C, H, W) float32, channels_last -> (N, 2C, H, W) of tf32 numbers, channels_last: what is read in float32."""
    batch, channels, height, width = input.shape
    output = torch.empty(
        (batch, 2 * channels, height, width), device=input.device, memory_format=torch.channels_last
    )
    elements = input.numel()
    split_kernel[(triton.cdiv(elements, BLOCK),)](input, output, elements, CHANNELS=channels, BLOCK=BLOCK)
    return output
