"""Every kernel in Triton's interpreter against float64, on layers that are awkward: borders, ragged tiles, odd sides.

    TRITON_INTERPRET=1 FER_KERNELS_INTERPRET=1 python -m kernels.benchmark.parity

prints one JSON object a line. It is a process of its own, since Triton decides on being imported whether it compiles or
interprets. The interpreter multiplies tf32 numbers in full: what a GPU's tf32 loses is not seen here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kernels.geometry import PRECISIONS, Layer, Precision
from kernels.packing import TYPES, pack, round_to_tf32
from kernels.tiles import Tile, module

ALLOWED: dict[Precision, float] = {"float16": 1e-3, "bfloat16": 8e-3, "tf32": 1e-3, "float32": 4e-6}
"""Largest difference over the largest result: the rounding of what is stored, and in float32 of long sums."""


class Case(NamedTuple):
    name: str
    layer: Layer
    batch: int
    tile: Tile


CASES = (
    Case("3x3, ragged tiles", Layer(7, 9, 32, 24, relu=True), 2, Tile("implicit", 32, 32, 32)),
    Case(
        "3x3, pooled, odd rows", Layer(7, 10, 16, 40, relu=True, pool=True), 3, Tile("implicit", 32, 32, 16)
    ),
    Case(
        "3x3, weights by TMA",
        Layer(6, 6, 64, 32, relu=True),
        1,
        Tile("implicit", 32, 32, 32, descriptor=True),
    ),
    Case("1x1, stride 2", Layer(9, 9, 48, 16, 1, 2, 0), 2, Tile("implicit", 32, 16, 16)),
    Case("7x7, stride 2", Layer(8, 9, 16, 16, 7, 2, 3), 1, Tile("implicit", 32, 16, 16)),
    Case("stem", Layer(11, 10, 3, 20, relu=True), 2, Tile("stem", 32, 32, 16)),
    Case("stem, pooled", Layer(9, 12, 3, 16, relu=True, pool=True), 1, Tile("stem", 32, 16, 16)),
    Case("3x3, sum shared by 4", Layer(3, 3, 64, 72, relu=True), 1, Tile("split", 16, 64, 32, splits=4)),
    Case("dense, sum shared by 3", Layer(1, 1, 160, 7, 1, 1, 0), 3, Tile("split", 16, 64, 32, splits=3)),
)


def check(case: Case, precision: Precision) -> dict[str, Any]:
    """The largest error of one case, over outputs that were NaN before."""
    weight, bias, images = drawn(case, precision)
    launch = module(case.tile.kind).launch
    begin = time.perf_counter()
    output = launch(images, pack(weight, precision), bias, case.layer, case.tile, precision)
    seconds = time.perf_counter() - begin
    wanted = reference(images, weight, bias, case.layer)
    error = float((output.double() - wanted).abs().amax() / wanted.abs().amax())
    return {
        "case": case.name,
        "kernel": case.tile.kind,
        "precision": precision,
        "error": float(f"{error:.3g}"),
        "allowed": ALLOWED[precision],
        "passed": tuple(output.shape) == tuple(wanted.shape) and error <= ALLOWED[precision],
        "seconds": round(seconds, 3),
    }


def drawn(case: Case, precision: Precision) -> tuple[Tensor, Tensor, Tensor]:
    """Random weight, bias and images of numbers that the precision stores, fresh in every run."""
    layer = case.layer
    terms = layer.channels * layer.taps
    weight = torch.randn(layer.filters, layer.channels, layer.kernel, layer.kernel) / terms**0.5
    images = torch.randn(case.batch, layer.channels, layer.height, layer.width)
    images = images.contiguous(memory_format=torch.channels_last)
    if precision == "tf32":
        weight, images = (
            round_to_tf32(weight),
            round_to_tf32(images).contiguous(memory_format=torch.channels_last),
        )
    return weight.to(TYPES[precision]), torch.randn(layer.filters), images.to(TYPES[precision])


def reference(images: Tensor, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
    sums = functional.conv2d(images.double(), weight.double(), bias.double(), layer.stride, layer.padding)
    sums = sums.relu() if layer.relu else sums
    return functional.max_pool2d(sums, 2) if layer.pool else sums


def every(precisions: tuple[Precision, ...] = PRECISIONS) -> Iterator[dict[str, Any]]:
    """Memory that is not written stays NaN, and NaN is more than any error allowed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    for precision in precisions:
        for case in CASES:
            yield check(case, precision)


if __name__ == "__main__":
    chosen: Any = tuple(sys.argv[1:]) or PRECISIONS
    for facts in every(chosen):
        print(json.dumps(facts), flush=True)
