"""The two operations as torch knows them: `fer_kernels::convolution` and `fer_kernels::linear`.

They work in eager mode, torch.compile(fullgraph=True), torch.export and CUDA graphs. On a GPU the Triton kernel that
`tiles.choose` names computes them, elsewhere their torch twin; with TRITON_INTERPRET=1 and FER_KERNELS_INTERPRET=1 in
the environment the same Triton kernels, in Triton's interpreter. There are no gradients. Importing `kernels` registers
both, which has to be done before `torch.export.load` of a program that calls them.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch
from torch import Tensor

from kernels import tiles, twin
from kernels.geometry import CHANNEL_STEP, PRECISIONS, Layer, Precision, Unsupported, check
from kernels.packing import TYPES


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    relu: bool = False,
    pool: bool = False,
    precision: Precision = "float16",
) -> Tensor:
    """(batch, channels, height, width) -> (batch, filters, height', width'), channels_last, of the precision's type.

    `weight` is what `pack` makes of (filters, channels, kernel, kernel), `bias` float32 (filters,). After the sum come
    the bias, ReLU if `relu`, 2x2 max pooling if `pool`. The input is of the precision's type, and copied first if it is
    not channels_last; a stem's (up to 4 channels) may be of any float type and any strides. Raises Unsupported
    for what the kernels do not compute, ValueError for tensors that do not fit each other.

    float32 is not verified on a device: it multiplies 21 bits, but keeps three products of each term in one sum, of which
    the matrix units may cut bits off. In the interpreter and on a CPU the error is below 1e-6, on a device it may be
    1e-5 to 7e-5.
    """
    return _convolution(input, weight, bias, kernel, stride, padding, relu, pool, precision)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False, precision: Precision = "float16"
) -> Tensor:
    """(batch, features) -> (batch, filters). `weight` is what `pack` makes of (filters, features, 1, 1), `bias` float32
    (filters,). Raises Unsupported, ValueError as `convolution` does."""
    return _linear(input, weight, bias, relu, precision)


def convolution_layer(
    input: Tensor, weight: Tensor, kernel: int, stride: int, padding: int, relu: bool, pool: bool
) -> Layer:
    if input.dim() != 4:
        raise Unsupported(f"the kernels do not take an input of {input.dim()} dimensions (4)")
    _, channels, height, width = input.shape
    return Layer(height, width, channels, weight.shape[0], kernel, stride, padding, relu, pool)


def dense_layer(input: Tensor, weight: Tensor, relu: bool) -> Layer:
    if input.dim() != 2:
        raise Unsupported(f"the kernels do not take an input of {input.dim()} dimensions (2)")
    return Layer(1, 1, input.shape[1], weight.shape[0], kernel=1, padding=0, relu=relu)


@torch.library.custom_op(
    "fer_kernels::convolution",
    mutates_args=(),
    schema="(Tensor input, Tensor weight, Tensor bias, int kernel, int stride, int padding, bool relu, bool pool,"
    " str precision) -> Tensor",
)
def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    kernel: int,
    stride: int,
    padding: int,
    relu: bool,
    pool: bool,
    precision: str,
) -> Tensor:
    layer = convolution_layer(input, weight, kernel, stride, padding, relu, pool)
    return _compute(input, weight, bias, layer, _checked(input, weight, bias, layer, precision, len(input)))


@_convolution.register_fake
def _convolution_shape(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    kernel: int,
    stride: int,
    padding: int,
    relu: bool,
    pool: bool,
    precision: str,
) -> Tensor:
    layer = convolution_layer(input, weight, kernel, stride, padding, relu, pool)
    known = _checked(input, weight, bias, layer, precision)
    return twin.allocate(layer, input.shape[0], known, input.device)


@torch.library.custom_op(
    "fer_kernels::linear",
    mutates_args=(),
    schema="(Tensor input, Tensor weight, Tensor bias, bool relu, str precision) -> Tensor",
)
def _linear(input: Tensor, weight: Tensor, bias: Tensor, relu: bool, precision: str) -> Tensor:
    layer = dense_layer(input, weight, relu)
    known = _checked(input, weight, bias, layer, precision, len(input))
    return _compute(input[:, :, None, None], weight, bias, layer, known).view(len(input), layer.filters)


@_linear.register_fake
def _linear_shape(input: Tensor, weight: Tensor, bias: Tensor, relu: bool, precision: str) -> Tensor:
    layer = dense_layer(input, weight, relu)
    known = _checked(input, weight, bias, layer, precision)
    return input.new_empty((input.shape[0], layer.filters), dtype=TYPES[known])


def _checked(
    input: Tensor, weight: Tensor, bias: Tensor, layer: Layer, precision: str, batch: int = 1
) -> Precision:
    """`precision`, if the kernels compute the layer and the tensors fit it: a kernel would read past their ends.

    Tracing leaves the batch out, it is not known then."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; choices: {', '.join(PRECISIONS)}")
    known: Precision = precision
    check(layer, max(batch, 1), known)
    if not input.is_floating_point() or not (layer.is_stem or input.dtype == TYPES[known]):
        raise ValueError(f"an input of {input.dtype}; precision {precision} takes {TYPES[known]}")
    terms = layer.taps * layer.channels
    terms = terms + -terms % CHANNEL_STEP if layer.is_stem else terms * (2 if known == "float32" else 1)
    for name, tensor, dtype, shape in (
        ("weight", weight, TYPES[known], (layer.filters, terms)),
        ("bias", bias, torch.float32, (layer.filters,)),
    ):
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device != input.device:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; a layer of {layer.filters} filters,"
                f" {layer.channels} channels, kernel {layer.kernel} takes {dtype} {shape} on {input.device} for"
                f" precision {precision}"
            )
    return known


def _compute(input: Tensor, weight: Tensor, bias: Tensor, layer: Layer, precision: Precision) -> Tensor:
    batch = len(input)
    if batch == 0:
        return twin.allocate(layer, batch, precision, input.device)
    interpreted = tiles.interpreting() and os.environ.get("FER_KERNELS_INTERPRET") == "1"
    if not (input.is_cuda or interpreted):
        return twin.convolution(input, weight, bias, layer, precision)
    tile = tiles.choose(layer, batch, precision, input.device)
    if not layer.is_stem:
        input = aligned(input, torch.channels_last)
    weight, bias = aligned(weight), aligned(bias)
    with torch.cuda.device(input.device) if input.is_cuda else nullcontext():
        return tiles.module(tile.kind).launch(input, weight, bias, layer, tile, precision)


def aligned(tensor: Tensor, memory: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Dense and from a multiple of 16 bytes on, as the kernels read and the copy engine demands: a view may begin
    anywhere."""
    dense = tensor.contiguous(memory_format=memory)
    return dense.clone() if dense.data_ptr() % 16 else dense
