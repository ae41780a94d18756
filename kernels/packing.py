"""Weights as the kernels read them, made once when a layer is swapped in; and numbers as tf32 keeps them."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.geometry import CHANNEL_STEP, STEM_CHANNELS, Precision

TYPES: dict[Precision, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
}


def round_to_tf32(values: Tensor) -> Tensor:
    """float32 numbers to the nearest with 10 bits behind the point, halves away from zero, as `cvt.rna` does.

    What the matrix units do to a float32 on their own is cut the other 13 bits off: 2.7 times the error.
    Infinities and NaN stay."""
    bits = values.contiguous().view(torch.int32)
    rounded = (bits + 0x1000) & ~0x1FFF
    return torch.where(values.isfinite(), rounded.view(torch.float32), values)


def split(values: Tensor, dim: int) -> Tensor:
    """float32 numbers as tf32 numbers and what those leave, one behind the other along `dim`: 21 bits in all."""
    high = round_to_tf32(values)
    return torch.cat([high, round_to_tf32(values - high)], dim)


def pack(weight: Tensor, precision: Precision) -> Tensor:
    """(filters, channels, kernel, kernel) -> (filters, terms): a filter's taps row by row, the channels of a tap side
    by side, as they lie in an NHWC image.

    A stem's terms are filled up with zeros to a multiple of 16. In float32 each tap's channels come twice, as `split`
    leaves them: (filters, taps * 2 * channels); a stem's do not, its kernel splits them by itself.
    """
    filters, channels = weight.shape[:2]
    taps = weight.detach().permute(0, 2, 3, 1).reshape(filters, -1, channels)
    is_stem = channels <= STEM_CHANNELS
    if precision == "float32" and not is_stem:
        taps = split(taps.float(), dim=2)
    terms = taps.reshape(filters, -1)
    if is_stem:
        terms = torch.nn.functional.pad(terms, (0, -terms.shape[1] % CHANNEL_STEP))
    terms = terms.to(TYPES[precision]).contiguous()
    return round_to_tf32(terms) if precision == "tf32" else terms


def unpack(terms: Tensor, channels: int, kernel: int, precision: Precision) -> Tensor:
    """The (filters, channels, kernel, kernel) that `pack` was given, as far as `precision` kept it."""
    filters, is_stem = len(terms), channels <= STEM_CHANNELS
    used = terms[:, : kernel * kernel * channels] if is_stem else terms
    taps = used.reshape(filters, kernel * kernel, -1)
    if precision == "float32" and not is_stem:
        taps = taps[..., :channels] + taps[..., channels:]
    return taps.reshape(filters, kernel, kernel, channels).permute(0, 3, 1, 2)
