"""Operations that disappear into the weights of the layer beside them. All are exact but for the last rounding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class BatchNorm(NamedTuple):
    """A trained one, per channel; scale and shift are None without affine parameters."""

    mean: Tensor
    variance: Tensor
    scale: Tensor | None
    shift: Tensor | None
    epsilon: float


def fold_batch_norm(weight: Tensor, bias: Tensor, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """(filters, ...) and (filters,) of the layer before it -> the same, float32, with the norm inside."""
    factor = (norm.variance.double() + norm.epsilon).rsqrt()
    if norm.scale is not None:
        factor = factor * norm.scale.double()
    shifted = (bias.double() - norm.mean.double()) * factor
    if norm.shift is not None:
        shifted = shifted + norm.shift.double()
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return folded.float(), shifted.float()


def fold_adaptive_pooling(weight: Tensor, height: int, width: int) -> Tensor:
    """Dense weights (filters, channels, rows, columns) over what adaptive average pooling made of height x width
    -> (filters, channels, height, width), float32, over the images themselves.

    Pooling is a matrix on either side of an image: row i of `side` says what input i gives to each output.
    """
    rows, columns = weight.shape[2:]

    def side(inputs: int, outputs: int) -> Tensor:
        return functional.adaptive_avg_pool1d(torch.eye(inputs, device=weight.device)[None], outputs)[0]

    tall = torch.einsum("fcrk,hr->fchk", weight.float(), side(height, rows))
    return torch.einsum("fchk,wk->fchw", tall, side(width, columns))


def channels_to_the_end(weight: Tensor) -> Tensor:
    """Dense weights (filters, channels, height, width) over flattened NCHW images -> (filters, height * width *
    channels) over NHWC ones, whose flattening is no copy."""
    return weight.permute(0, 2, 3, 1).flatten(1)
