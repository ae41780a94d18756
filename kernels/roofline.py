"""The least time that a network's layers can take on a machine: what a measured time is compared with.

Counted: matrix arithmetic at the machine's rate, and every tensor read or written once from device memory; the longer
of both for each kernel. Not counted: launches, tiles that do not divide a layer, what the caches keep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from kernels.geometry import Layer, Precision, item_size

Fusion = Literal["all", "activation", "convolution", "nothing"]
"""Kernels of one layer. all: a single one (ours). activation: convolution with bias and ReLU, then the pool (cuDNN's
fused one, TensorRT). convolution: it, then bias and ReLU, then the pool (Inductor). nothing: one of each (eager)."""
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
PASSES: dict[Fusion, int] = {"all": 0, "activation": 0, "convolution": 1, "nothing": 2}
"""How often a layer's output is read and written again before it is pooled."""

RATES: dict[Precision, float] = {"float16": 1.0, "bfloat16": 1.0, "tf32": 1 / 2, "float32": 1 / 6}
"""Of the 16-bit rate. float32 is three products of tf32 numbers."""


class Machine(NamedTuple):
    """`flops`: a second, dense, 16-bit. `bandwidth`: bytes a second of its memory."""

    name: str
    flops: float
    bandwidth: float


H100 = Machine("H100 SXM (790 TFLOP/s, 3.0 TB/s)", 790e12, 3.0e12)
"""What large matrix products and copies reach on it, as published: not measured here."""


class Floor(NamedTuple):
    """Seconds of each, were it alone; `passes` are the kernels that a fused one saves."""

    arithmetic: float
    memory: float
    passes: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.memory) + self.passes

    @property
    def bound(self) -> str:
        return "memory" if self.memory > self.arithmetic else "arithmetic"


def floor(
    layer: Layer, batch: int, precision: Precision, machine: Machine = H100, fusion: Fusion = "all"
) -> Floor:
    """Of one layer, with its activation and pool."""
    size = item_size(precision)
    alone = layer if fusion == "all" else layer._replace(pool=False)
    convolved = batch * layer.rows * layer.columns * layer.filters * size
    passes = PASSES[fusion] * 2 * convolved
    if layer.pool and fusion != "all":
        height, width = layer.output
        passes += convolved + batch * height * width * layer.filters * size
    return Floor(
        alone.flops(batch) / (machine.flops * RATES[precision]),
        alone.bytes(batch, precision) / machine.bandwidth,
        passes / machine.bandwidth,
    )


def network_floor(
    layers: Iterable[Layer], batch: int, precision: Precision, machine: Machine = H100, fusion: Fusion = "all"
) -> float:
    """Seconds of all layers, one after the other."""
    return sum(floor(layer, batch, precision, machine, fusion).seconds for layer in layers)


def vgg19(size: int = 224, hidden: int = 512, classes: int = 7) -> dict[str, Layer]:
    """Its layers by their names in the paper, with R0's head: 25088 -> 512 -> 7 at 224 pixels.

    At sides of less than 224 the head sees what is left of the image (`size` // 32 a side), not copies of it."""
    layers, channels, side = {}, 3, size
    for block, (filters, count) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), start=1):
        for number in range(1, count + 1):
            pool = number == count
            layers[f"conv{block}_{number}"] = Layer(side, side, channels, filters, relu=True, pool=pool)
            channels = filters
        side //= 2
    layers["fc1"] = dense(channels * side * side, hidden, relu=True)
    layers["fc2"] = dense(hidden, classes)
    return layers


def dense(inputs: int, outputs: int, relu: bool = False) -> Layer:
    return Layer(1, 1, inputs, outputs, kernel=1, padding=0, relu=relu)
