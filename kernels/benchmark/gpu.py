"""The whole comparison on a GPU: nets cell by cell, layer by layer, and what each feature is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import kernels
from kernels import tiles
from kernels.benchmark import nets, ours, peers
from kernels.benchmark.clock import Clock, Run
from kernels.benchmark.contest import OURS, Cell, Facts, Peer, Plan, hold
from kernels.benchmark.nets import Vgg19
from kernels.geometry import Layer, Precision
from kernels.packing import TYPES
from kernels.roofline import Machine, floor, network_floor

INPUTS = 4
"""Batches of different images that take turns."""
LAYER_ALLOWED: dict[Precision, float] = {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2}
"""Relative error of one layer."""


class Target(NamedTuple):
    """Of issue 4, on an H100: best peer / ours at least `ratio`; ours at most `microseconds`."""

    size: int
    precisions: tuple[Precision, ...]
    batches: tuple[int, ...]
    ratio: float
    microseconds: float | None = None


HALF: tuple[Precision, ...] = ("float16", "bfloat16")
TARGETS = (
    Target(224, HALF, (1,), 1.6, 130),
    Target(224, HALF, (8,), 1.25),
    Target(224, HALF, (32,), 1.15),
    Target(224, HALF, (64,), 1.15, 4100),
    Target(48, HALF, (1,), 2.0),
    Target(48, HALF, (8,), 1.8),
    Target(48, HALF, (64,), 1.3),
    Target(224, ("tf32",), (1,), 1.5),
    Target(224, ("tf32",), (64,), 1.1),
)
ERROR_TARGET = 2.0
"""Times the error of the same precision through cuDNN."""


def cell(net: Vgg19, batch: int, precision: Precision, device: str, machine: Machine | None) -> Cell:
    """Inputs in the precision's type and what float64 makes of exactly those."""
    double = nets.Vgg19(net.size, net.divisor, net.classes).eval().requires_grad_(False)
    double.load_state_dict(net.state_dict())
    double = double.to(device, torch.float64)
    dtype = TYPES[precision]
    count = INPUTS if device == "cuda" else max(1, min(2, 16 // batch))  # float64 takes a processor seconds
    inputs = [nets.images(batch, net.size, 100 + number).to(device, dtype) for number in range(count)]
    references = [double(images.double()) for images in inputs]
    layers = net.layers.values()
    flops = sum(layer.flops(batch) for layer in layers)
    least = network_floor(layers, batch, precision, machine) if machine else None
    return Cell(net.size, batch, precision, inputs, references, flops, least)


def compare(
    net: Vgg19, batch: int, precision: Precision, machine: Machine, clock: Clock, plan: Plan,
    wanted: Callable[[Peer], bool] = lambda peer: True, device: str = "cuda",
) -> Facts:  # fmt: skip
    """All our variants and all peers on one size of images, batch size and precision; ours have the memory first."""
    peers.set_precision(precision)
    torch.compiler.reset()
    one = cell(net, batch, precision, device, machine)
    release(device)  # of the float64 references
    contestants = [*ours.every(net, precision, device), *peers.every(net, precision, one.inputs[0], device)]
    found = hold(one, contestants, clock, plan, wanted)
    release(device)
    return found


def release(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


def layer_table(
    size: int, batch: int, precision: Precision, machine: Machine, clock: Clock, plan: Plan, device: str = "cuda", divisor: int = 1
) -> list[Facts]:  # fmt: skip
    """Each layer by itself, ours against cuDNN's two ways, with its floor and the tile that computed it."""
    peers.set_precision(precision)
    found = []
    for name, layer in nets.layers(size, divisor).items():
        facts = compare_layer(layer, batch, precision, machine, clock, plan, device)
        tile = tiles.choose(layer, batch, precision, torch.device(device))
        found.append(
            {"layer": name, **facts, "tile": {key: value for key, value in tile._asdict().items() if value}}
        )
    release(device)
    return found


def compare_layer(
    layer: Layer, batch: int, precision: Precision, machine: Machine, clock: Clock, plan: Plan, device: str
) -> Facts:
    dtype, side = TYPES[precision], layer.kernel
    generator = torch.Generator(device).manual_seed(layer.channels)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    weight = (draw(layer.filters, layer.channels, side, side) / (layer.channels * layer.taps) ** 0.5).to(
        dtype
    )
    bias = draw(layer.filters)
    inputs = [
        draw(batch, layer.channels, layer.height, layer.width)
        .relu()
        .to(dtype, memory_format=torch.channels_last)
        for _ in range(INPUTS)
    ]
    double = by_torch(weight.double(), bias.double(), layer)
    references = [double(images.double()) for images in inputs]
    del double
    release(device)
    least = floor(layer, batch, precision, machine).seconds
    one = Cell(
        layer.height,
        batch,
        precision,
        inputs,
        references,
        layer.flops(batch),
        least,
        LAYER_ALLOWED[precision],
    )
    last = weight.contiguous(memory_format=torch.channels_last)
    contestants = [
        Peer(OURS, "one kernel", lambda: by_kernels(weight, bias, layer, precision), is_peer=False),
        Peer(
            "cuDNN",
            "convolution, ReLU and pooling, channels_last",
            lambda: by_torch(last, bias.to(dtype), layer),
        ),
        Peer("cuDNN fused", "cudnn_convolution_relu, pooling", lambda: by_cudnn(last, bias.to(dtype), layer)),
    ]
    if not layer.relu or layer.height == 1:
        del contestants[2]
    return hold(one, contestants, clock, plan)


def by_torch(weight: Tensor, bias: Tensor, layer: Layer) -> Run:
    def run(images: Tensor) -> Tensor:
        if layer.height == layer.kernel == 1:
            sums = functional.linear(images.flatten(1), weight.flatten(1), bias)[:, :, None, None]
        else:
            sums = functional.conv2d(images, weight, bias, layer.stride, layer.padding)
        return pooled(sums.relu() if layer.relu else sums, layer)

    return run


def by_cudnn(weight: Tensor, bias: Tensor, layer: Layer) -> Run:
    stride, padding = (layer.stride, layer.stride), (layer.padding, layer.padding)

    def run(images: Tensor) -> Tensor:
        return pooled(torch.cudnn_convolution_relu(images, weight, bias, stride, padding, (1, 1), 1), layer)

    return run


def pooled(sums: Tensor, layer: Layer) -> Tensor:
    return functional.max_pool2d(sums, 2) if layer.pool else sums


def by_kernels(weight: Tensor, bias: Tensor, layer: Layer, precision: Precision) -> Run:
    packed = kernels.pack(weight, precision)
    shape: dict[str, Any] = {
        "kernel": layer.kernel,
        "stride": layer.stride,
        "padding": layer.padding,
        "pool": layer.pool,
    }
    return lambda images: kernels.convolution(
        images, packed, bias, relu=layer.relu, precision=precision, **shape
    )


def targets(cells: Sequence[Facts], device: str) -> list[Facts]:
    """Each target of the issue beside what was measured; `met` is None where it was not, or on another device."""
    known = {(one["size"], one["precision"], one["batch"]): one for one in cells}
    rows: list[Facts] = []
    for target in TARGETS:
        for precision in target.precisions:
            for batch in target.batches:
                rows += judged(target, precision, batch, known.get((target.size, precision, batch)))
    return rows if is_targeted(device) else [{**row, "met": None} for row in rows]


def is_targeted(device: str) -> bool:
    """Whether the targets are for this device."""
    return "H100" in device


def judged(target: Target, precision: Precision, batch: int, facts: Facts | None) -> list[Facts]:
    where = f"{target.size} px, {precision}, batch {batch}"
    ratio = facts["ratio"] if facts else None
    value = ratio["value"] if ratio else None
    rows = [
        row(
            f"best peer / ours, {where}",
            f">= {target.ratio:g}",
            value,
            None if value is None else value >= target.ratio,
        )
    ]
    mode = facts["peers"].get(OURS, {}).get("modes", {}) if facts else {}
    fastest = min((taken["p50"] for name, taken in mode.items() if "cold" not in name), default=None)
    if target.microseconds:
        met = None if fastest is None else fastest <= target.microseconds
        rows.append(row(f"ours in µs, {where}", f"<= {target.microseconds:g}", fastest, met))
    if facts:
        error = error_ratio(facts)
        rows.append(
            row(
                f"error of ours / of cuDNN, {where}",
                f"<= {ERROR_TARGET:g}",
                error,
                None if error is None else error <= ERROR_TARGET,
            )
        )
    return rows


def row(name: str, target: str, value: float | None, met: bool | None) -> Facts:
    return {"name": name, "target": target, "value": value, "met": met}


def error_ratio(facts: Facts) -> float | None:
    """Ours over that of the module through cuDNN, channels_last."""
    pair = [facts["peers"].get(name, {}).get("error") for name in (OURS, "eager channels_last")]
    if not all(pair) or not pair[1]["relative"]:
        return None
    return float(f"{pair[0]['relative'] / pair[1]['relative']:.3g}")
