"""Convolution kernels in Triton for trained networks: torch and triton only.

    swapped, report = kernels.swap(torch.export.export(net.eval(), (images,), dynamic_shapes=...))
    run = kernels.Runner(swapped)

Importing this package registers the operations, which `torch.export.load` of a swapped program needs."""

from kernels.geometry import Unsupported
from kernels.operators import convolution, linear
from kernels.packing import pack
from kernels.runner import Runner
from kernels.swap import NothingToSwap, Swapped, swap

__all__ = ["NothingToSwap", "Runner", "Swapped", "Unsupported", "convolution", "linear", "pack", "swap"]
