"""Puts the kernels into an exported program: `swapped, report = swap(program)`.

The program is copied node by node. Nodes that a kernel computes become one call; everything else comes along as it is,
but for dropout and for the batch norms and adaptive pooling that fit into weights. What nothing needs any longer, the
original weights first of all, stays behind.

Numbers are in the kernels' type from one kernel to the next, also through the kept operations between them that only
choose, move, add or average numbers (rewriting.PASSED: max pooling, a ResNet's sums); every other kept operation and
the outputs get them back in the type that the program had there.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch.export import ExportedProgram

from kernels.geometry import PRECISIONS, Layer, Precision
from kernels.patterns import Kept, Match, find, operation, simplify
from kernels.rewriting import Rewriting, export_again


class NothingToSwap(ValueError):
    """No layer of the program is one that the kernels compute; the message says why."""


class Layered(NamedTuple):
    """A layer that a kernel computes now; `folded` are the operations that were behind it, or are in its weights."""

    name: str
    operation: str
    layer: Layer
    folded: tuple[str, ...]

    @property
    def description(self) -> str:
        layer = self.layer
        if self.operation == "linear":
            return f"linear {layer.channels} -> {layer.filters}"
        stride = f" / {layer.stride}" if layer.stride > 1 else ""
        size = f"{layer.kernel}x{layer.kernel}{stride}, {layer.channels} -> {layer.filters}"
        return f"convolution {size}, {layer.height}x{layer.width}"


class Report(NamedTuple):
    """What became of every convolution and dense layer; `str` is a table."""

    precision: Precision
    swapped: tuple[Layered, ...]
    kept: tuple[Kept, ...]
    others: dict[str, int]
    """All operations that the swapped program calls beside the kernels, and how often."""

    def __str__(self) -> str:
        rows = [
            (one.name, one.description, "+ " * bool(one.folded) + ", ".join(one.folded))
            for one in self.swapped
        ]
        rows += [(name, operation, f"kept: {reason}") for name, operation, reason in self.kept]
        names, descriptions = (max(len(row[column]) for row in rows) for column in range(2))
        lines = [f"{name:{names}}  {what:{descriptions}}  {rest}".rstrip() for name, what, rest in rows]
        counts = ", ".join(f"{count} {name}" for name, count in self.others.items())
        plural = "" if len(self.swapped) == 1 else "s"
        head = f"{len(self.swapped)} layer{plural} in {self.precision}, {len(self.kept)} kept"
        return "\n".join([head, *lines, *([f"other operations: {counts}"] if counts else [])])


class Swapped(NamedTuple):
    program: ExportedProgram
    report: Report


def swap(program: ExportedProgram, precision: Precision = "float16") -> Swapped:
    """The same program with its convolutions and dense layers computed by the kernels, and what was done.

    `program` is what torch.export.export gives; it is left as it is. Dynamic sizes stay dynamic. Images that the result
    gives out of a kernel are channels_last: same shape and type, other strides, so use reshape, not view, on them. To
    load it from a file, `import kernels` first. Raises NothingToSwap, ValueError for an unknown precision or a program
    without example inputs.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; choices: {', '.join(PRECISIONS)}")
    if program.example_inputs is None:
        raise ValueError("the program has no example inputs, which are needed to export it again")
    # Nothing is decomposed by this, but no operation changes its input any longer.
    program = program.run_decompositions({})
    module = program.module(check_guards=False)
    simplify(module.graph)
    matches, kept = find(module)
    if not matches:
        reasons = "".join(f"\n{name}, {operation}: {reason}" for name, operation, reason in kept)
        raise NothingToSwap(
            "no convolution or dense layer that the kernels compute" + (reasons or ": the program has none")
        )
    with torch.no_grad():
        swapped = export_again(Rewriting(module, precision).rewritten(matches), program)
    called = Counter(operation(node) for node in swapped.graph.nodes if node.op == "call_function")
    ours = called.pop("fer_kernels.convolution", 0) + called.pop("fer_kernels.linear", 0)
    assert ours == len(matches), f"{ours} calls of kernels, {len(matches)} layers swapped"
    layers = tuple(layered(match) for match in matches)
    return Swapped(swapped, Report(precision, layers, tuple(kept), dict(called)))


def layered(match: Match) -> Layered:
    behind = (match.pooling, *match.nodes[1:])
    return Layered(
        match.name,
        operation(match.nodes[0]),
        match.layer,
        tuple(operation(node) for node in behind if node is not None),
    )
