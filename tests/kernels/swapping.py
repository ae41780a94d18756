"""What the tests of swapping share: nets with the numbers of trained ones, and the comparison with float64."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.export import Dim, export
from torch.fx import GraphModule

from kernels import swap

BOUNDS = {"float16": 4e-3, "bfloat16": 4e-2, "tf32": 4e-3, "float32": 5e-6}
"""Relative errors of whole nets, of up to 53 layers."""
LAYERS = ("aten.conv", "aten.linear", "aten.matmul", "aten.mm.", "aten.bmm", "aten.einsum")


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Trained, as far as it matters: activations keep their size, batch norms have statistics and scales."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor):
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(draw(module.weight) * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * draw(module.bias))
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.2 * draw(module.running_mean))
                module.running_var.copy_(0.5 + draw(module.running_var).abs())
                if module.affine:
                    module.weight.copy_(0.8 + 0.1 * draw(module.weight))
                    module.bias.copy_(0.1 * draw(module.bias))
    return net.eval()


def exported(net: nn.Module, size: tuple[int, ...] = (3, 32, 32), dtype: torch.dtype = torch.float32):
    """With any batch, from an example of two."""
    return export(net, (torch.zeros(2, *size, dtype=dtype),), dynamic_shapes=({0: Dim("batch")},))


def error(program, net: nn.Module, images: torch.Tensor) -> float:
    """Relative, of what the program makes of images against the net in float64."""
    expected = copy.deepcopy(net).double()(images.double())
    given = program.module()(images)
    assert given.dtype == images.dtype and given.shape == expected.shape
    return float(((given.double() - expected).norm() / expected.norm()).detach())


def check(net: nn.Module, size: tuple[int, ...] = (3, 32, 32), precision="float32", batches=(1, 3, 5)):
    """Swaps `net`, compares; gives the report."""
    swapped, report = swap(exported(net, size), precision)
    for batch in batches:
        assert error(swapped, net, torch.randn(batch, *size)) < BOUNDS[precision]
    assert len(report.kept) == sum(
        str(node.target).startswith(LAYERS)
        for part in swapped.graph_module.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
    )
    return report


def folded(report) -> list[tuple[str, ...]]:
    return [layer.folded for layer in report.swapped]
