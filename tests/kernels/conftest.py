"""What the tests of kernels share: inputs among NaN, poisoned outputs, and torch in float64 as the oracle."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

if "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from torch.nn.functional import conv2d, max_pool2d

from kernels.benchmark import nets
from kernels.geometry import Layer
from kernels.packing import TYPES, round_to_tf32

# Relative Frobenius error of one layer against float64 on unrounded numbers: ../shared/kernels.md, section 3, where
# 512 channels gave 3.6e-4, 2.9e-3, 2.9e-4 and 8e-7. The interpreter cuts bfloat16 outputs off instead of rounding them:
# it is allowed 6e-3 where a GPU would get 4e-3.
BOUNDS = {"float16": 5e-4, "bfloat16": 6e-3, "tf32": 4e-4, "float32": 1e-6}


@pytest.fixture(scope="session", autouse=True)
def interpreted():
    import triton

    assert triton.knobs.runtime.interpret, "Triton was imported without TRITON_INTERPRET=1"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Test files run side by side; threads that wait for each other take longer than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net() -> nets.Vgg19:
    """Seeded, at a side of 32 and a quarter of the width."""
    return nets.seeded(32, divisor=4)


class Case:
    """A layer with random numbers, its operands as `precision` keeps them and what float64 makes of the unrounded.

    The input lies among NaN, so what is read beside it shows; so does what is not written, or beside the output.
    """

    def __init__(self, layer: Layer, batch: int, precision: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.layer, self.precision, self.bound = layer, precision, BOUNDS[precision]
        shape = (batch, layer.channels, layer.height, layer.width)
        images = torch.randn(shape, generator=generator, dtype=torch.float64)
        spread = (layer.taps * layer.channels) ** -0.5
        self.weight = spread * torch.randn(
            (layer.filters, layer.channels, layer.kernel, layer.kernel),
            generator=generator,
            dtype=torch.float64,
        )
        self.bias = 0.2 * torch.randn(layer.filters, generator=generator)
        self.expected = self.oracle(images)
        kept = images.to(TYPES[precision])
        self.input = self.among_nan(round_to_tf32(kept) if precision == "tf32" else kept)
        self.output = self.among_nan(torch.full(self.expected.shape, torch.nan, dtype=TYPES[precision]))

    def oracle(self, images: torch.Tensor) -> torch.Tensor:
        result = conv2d(images, self.weight, self.bias.double(), self.layer.stride, self.layer.padding)
        result = result.relu() if self.layer.relu else result
        return max_pool2d(result, 2) if self.layer.pool else result

    def among_nan(self, images: torch.Tensor) -> torch.Tensor:
        """The same numbers in channels_last memory, between two images of NaN."""
        batch, *size = images.shape
        surrounded = torch.full((batch + 2, *size), torch.nan, dtype=images.dtype)
        surrounded = surrounded.contiguous(memory_format=torch.channels_last)
        surrounded[1:-1] = images
        return surrounded[1:-1]

    def error(self, output: torch.Tensor) -> float:
        """Relative Frobenius; NaN where the kernel left or made one."""
        assert output.shape == self.expected.shape
        assert output.dtype == TYPES[self.precision]
        assert output.is_contiguous(memory_format=torch.channels_last)
        return float((output.double() - self.expected).norm() / self.expected.norm())

    def check(self, output: torch.Tensor) -> None:
        """Within the bound, in the given output, and not a number beside it."""
        assert self.error(output) <= self.bound
        assert output.data_ptr() == self.output.data_ptr()
        numbers = self.expected.numel()
        buffer = torch.empty(0, dtype=output.dtype).set_(output.untyped_storage())
        assert buffer.isfinite().sum() == numbers


class Fence:
    """Stands before the interpreter's memory: what a program loads or stores beyond the given tensors is an error."""

    def __init__(self, memory: object, tensors: tuple[torch.Tensor, ...]) -> None:
        self.memory = memory
        self.spans = [(each.data_ptr(), each.data_ptr() + each.numel() * each.itemsize) for each in tensors]

    def __getattr__(self, name: str):
        return getattr(self.memory, name)

    def pass_through(self, pointers, mask, size: int) -> None:
        reached = pointers[mask.astype(bool)]
        allowed = [(reached >= start) & (reached + size <= end) for start, end in self.spans]
        assert sum(allowed).all(), "memory beyond the tensors was reached"

    def load(self, pointers, mask, other, dtype):
        self.pass_through(pointers, mask, dtype.itemsize)
        return self.memory.load(pointers, mask, other, dtype)

    def store(self, pointers, data, mask):
        self.pass_through(pointers, mask, data.itemsize)
        return self.memory.store(pointers, data, mask)


@pytest.fixture
def fence(monkeypatch):
    """fence(*tensors): from here on kernels reach nothing else. Tensors have to be dense, in any order."""
    from triton.runtime import interpreter

    def put_up(*tensors: torch.Tensor) -> None:
        monkeypatch.setattr(interpreter, "_interpreter", Fence(interpreter._interpreter, tensors))

    return put_up


@pytest.fixture
def case() -> type[Case]:
    return Case
