"""What the kernels compute, in torch's own operations: the oracle beside them, and what runs where there is no GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.geometry import Layer, Precision
from kernels.packing import TYPES, round_to_tf32, unpack


def convolution(input: Tensor, weight: Tensor, bias: Tensor, layer: Layer, precision: Precision) -> Tensor:
    """(batch, channels, height, width) and packed weights -> (batch, filters, *layer.output), channels_last.

    Products of the stored numbers, sums, bias, ReLU and pooling in float32, and one rounding at the end; in tf32 a
    layer with ReLU rounds once more, to what the next layer's products keep. A stem rounds its input, of any float
    type, by itself."""
    filters = unpack(weight, layer.channels, layer.kernel, precision).float()
    images = input.to(TYPES[precision]).float()
    if layer.is_stem and precision == "tf32":
        images = round_to_tf32(images)
    sums = functional.conv2d(images, filters, bias, layer.stride, layer.padding)
    if layer.relu:
        sums = sums.relu()
    if layer.pool:
        sums = functional.max_pool2d(sums, 2)
    if layer.relu and precision == "tf32":
        sums = round_to_tf32(sums)
    return allocate(layer, len(input), precision, input.device).copy_(sums)


def allocate(layer: Layer, batch: int, precision: Precision, device: torch.device) -> Tensor:
    """(batch, filters, *layer.output), channels_last, not filled."""
    shape = (batch, layer.filters, *layer.output)
    return torch.empty(shape, dtype=TYPES[precision], device=device, memory_format=torch.channels_last)
