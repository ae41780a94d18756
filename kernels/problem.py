"""A layer's tensors, drawn at random, with what its twin makes of them: what a device's kernels are compared with, and
timed on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import twin
from kernels.geometry import Layer, Precision
from kernels.packing import TYPES, pack, round_to_tf32

INPUTS = 4
"""That take turns where a kernel is timed, so that none is always in the cache."""


class Problem(NamedTuple):
    """Inputs (N, C, H, W) as a ReLU leaves them, a stem's as images come, and in tf32 as a layer before has rounded
    them; packed weights, for sums of about 1; and what the first input gives."""

    inputs: list[Tensor]
    weight: Tensor
    bias: Tensor
    expected: Tensor


def problem(
    layer: Layer, batch: int, precision: Precision, device: torch.device, count: int = INPUTS
) -> Problem:
    """`count` inputs; always the same numbers."""
    random = torch.Generator(device).manual_seed(0)
    memory = torch.contiguous_format if layer.is_stem else torch.channels_last

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random, device=device)

    def image() -> Tensor:
        values = normal(batch, layer.channels, layer.height, layer.width).relu()
        values = round_to_tf32(values) if precision == "tf32" and not layer.is_stem else values
        return values.to(TYPES[precision]).contiguous(memory_format=memory)

    inputs = [image() for _ in range(count)]
    weight = normal(layer.filters, layer.channels, layer.kernel, layer.kernel)
    weight = pack(weight / (layer.channels * layer.taps) ** 0.5, precision)
    bias = normal(layer.filters)
    with all_bits(), torch.no_grad():
        expected = twin.convolution(inputs[0], weight, bias, layer, precision)
    return Problem(inputs, weight, bias, expected)


@contextmanager
def all_bits() -> Iterator[None]:
    """Inside it torch's own operations multiply all bits of float32 numbers, whatever the caller has allowed them. cuDNN
    stays in use: without it a convolution is a matrix product, under another switch."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
