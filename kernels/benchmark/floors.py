"""The least that the net can take, as tables: by batch size and way of fusing, and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernels.benchmark.clock import rounded
from kernels.geometry import Precision
from kernels.roofline import FUSIONS, Fusion, Machine, floor, network_floor, vgg19

WAYS: dict[Fusion, str] = {
    "all": "one kernel a layer (ours)",
    "activation": "pooling apart (cuDNN fused, TensorRT)",
    "convolution": "bias and ReLU in a pass of their own (Inductor)",
    "nothing": "every operation by itself (eager)",
}

Rows = list[dict[str, Any]]


def by_batch(
    sizes: Sequence[int], batches: Sequence[int], precisions: Sequence[Precision], machine: Machine
) -> Rows:
    """A row per size, precision and way of fusing; microseconds per batch size."""
    return [
        {
            "size": size,
            "precision": precision,
            "way": WAYS[fusion],
            "floors": {
                str(batch): microseconds(size, batch, precision, machine, fusion) for batch in batches
            },
        }
        for size in sizes
        for precision in precisions
        for fusion in FUSIONS
    ]


def microseconds(
    size: int, batch: int, precision: Precision, machine: Machine, fusion: Fusion = "all"
) -> float:
    return rounded(network_floor(vgg19(size).values(), batch, precision, machine, fusion) * 1e6)


def by_layer(size: int, batch: int, precision: Precision, machine: Machine) -> Rows:
    rows = []
    for name, layer in vgg19(size).items():
        least = floor(layer, batch, precision, machine)
        rows.append(
            {
                "layer": name,
                "gflop": rounded(layer.flops(batch) / 1e9),
                "mb": rounded(layer.bytes(batch, precision) / 1e6),
                "floor": rounded(least.seconds * 1e6),
                "bound": least.bound,
            }
        )
    return rows
