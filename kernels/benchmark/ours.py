"""Our kernels as a peer: the swapped program, and the same without one of its features at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from kernels import Runner, swap, tiles
from kernels.benchmark.clock import Run
from kernels.benchmark.contest import OURS, Peer
from kernels.benchmark.nets import Vgg19, exported
from kernels.geometry import Layer, Precision
from kernels.packing import TYPES
from kernels.tiles import Tile

Keep = Callable[[Tile], bool]

KEEPS: dict[str, tuple[str, Keep]] = {
    "without Hopper's kernels": ("no Gluon kernels", lambda tile: tile.kind not in tiles.HOPPER_ONLY),
    "portable": (
        "no Gluon kernels and no TMA: what any GPU runs",
        lambda tile: tile.kind not in tiles.HOPPER_ONLY and not tile.descriptor,
    ),
    "without shared sums": ("a program computes its whole sum", lambda tile: tile.splits == 1),
    "without swapped operands": (
        "no split kernel: pixels are always the rows",
        lambda tile: tile.kind != "split",
    ),
}
"""What a variant leaves out. Where that takes a layer's tile away it gets `instead`."""


def every(net: Vgg19, precision: Precision, device: str) -> list[Peer]:
    """The whole, then what it is without one feature; none of them counts as a peer. All share one swapped program."""

    @cache
    def program() -> ExportedProgram:
        return swapped(net, precision)

    def fresh() -> GraphModule:
        return module(program(), device)

    found = [
        Peer(OURS, "the swapped program", fresh),
        Peer("ours, Runner", "kernels.Runner: copies in and out", lambda: Runner(program(), device), has_own_graph=True),
        Peer("ours without fused pooling", "max_pool2d by itself", lambda: apart(fresh())),
    ]  # fmt: skip
    for name, (what, keep) in KEEPS.items():
        found.append(Peer(f"ours {name}", what, lambda keep=keep: kept(fresh(), keep)))  # type: ignore[misc]
    return [replace(peer, is_peer=False) for peer in found]


def swapped(net: Vgg19, precision: Precision) -> ExportedProgram:
    """In the precision's own type from image to logits, as the peers are."""
    return swap(exported(copy.deepcopy(net).to(TYPES[precision])), precision).program


def module(program: ExportedProgram, device: str) -> GraphModule:
    found = move_to_device_pass(program, torch.device(device)).module()
    assert isinstance(found, GraphModule)
    return found


def apart(module: GraphModule) -> GraphModule:
    """The pooling of each call taken out of it and put behind it."""
    target = torch.ops.fer_kernels.convolution.default
    for node in list(module.graph.nodes):
        if node.target is target and node.args[7]:
            node.args = (*node.args[:7], False, *node.args[8:])
            with module.graph.inserting_after(node):
                pooled = module.graph.call_function(torch.ops.aten.max_pool2d.default, (node, [2, 2], [2, 2]))
            node.replace_all_uses_with(pooled, delete_user_cb=lambda user, pooled=pooled: user is not pooled)
    module.recompile()
    return module


def kept(module: GraphModule, keep: Keep) -> Run:
    def run(images: Tensor) -> Tensor:
        with choosing(keep):
            return module(images)

    return run


@contextmanager
def choosing(keep: Keep) -> Iterator[None]:
    """Inside it `tiles.choose` gives only tiles to keep, where there are any for the layer."""
    before = tiles.choose

    def choose(layer: Layer, batch: int, precision: Precision, device: torch.device) -> Tile:
        tile = before(layer, batch, precision, device)
        return tile if keep(tile) else instead(keep, layer, batch, precision, device) or tile

    tiles.choose = choose  # where `operators` looks it up
    try:
        yield
    finally:
        tiles.choose = before


SAFE = [kind for kind in tiles.KINDS if kind not in tiles.HOPPER_ONLY]
"""Kernels that were tested elsewhere: a Gluon kernel that was not tested on the device may hang it."""


@cache
def instead(keep: Keep, layer: Layer, batch: int, precision: Precision, device: torch.device) -> Tile | None:
    """The model's choice among tiles to keep; None where there is none."""
    capability = tiles.capability_of(device)
    is_cuda = device.type == "cuda"
    processors = torch.cuda.get_device_properties(device).multi_processor_count if is_cuda else None
    return min(
        filter(keep, tiles.tilings(layer, precision, capability, SAFE)),
        key=lambda tile: tiles.cost(tile, layer, batch, precision, capability, processors),
        default=None,
    )
