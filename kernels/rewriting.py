"""Copies the graph of an exported program, with kernels in the place of the layers that were found in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

import kernels.operators  # noqa: F401  registers what the graph calls
from kernels.geometry import Precision
from kernels.packing import TYPES, pack
from kernels.patterns import VIEWS, Match, arguments, aten, attribute, weights

PASSED = (
    aten.relu.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.add.Tensor,
    aten.cat.default,
    aten.permute.default,
    aten.clone.default,
    *VIEWS,
)
"""Operations that choose, move, add or average numbers: no worse in the kernels' type than the kernels themselves.
`passes` leaves out what can take float16 out of its range."""


class Rewriting:
    """The copy of `module`'s graph, as far as it is made.

    `copies` says what became of a node; those in `held` are in the kernels' type, all others in their own.
    """

    def __init__(self, module: GraphModule, precision: Precision) -> None:
        self.module = module
        self.precision = precision
        self.type = TYPES[precision]
        self.graph = Graph()
        self.graph.set_codegen(module.graph._codegen)
        self.copies: dict[Node, Node] = {}
        self.held: set[Node] = set()
        self.casts: dict[tuple[Node, torch.dtype], Node] = {}
        self.packed: dict[Any, tuple[Node, Node]] = {}

    def rewritten(self, matches: list[Match]) -> GraphModule:
        """A module with what the new graph uses of the old module, and nothing else."""
        last = {match.nodes[-1]: match for match in matches}
        inner = {node for match in matches for node in match.nodes[:-1]}
        for node in self.module.graph.nodes:
            if node in last:
                self.copies[node] = self.call(last[node])
                self.held.add(node)
            elif node not in inner:
                self.copy(node)
        self.graph.eliminate_dead_code()
        return GraphModule(self.module, self.graph)

    def copy(self, node: Node) -> None:
        """In the kernels' type if that is no worse and all it reads is, else in the program's own."""
        tensors = [given for given in node.all_input_nodes if isinstance(given.meta.get("val"), Tensor)]
        if passes(node) and tensors and all(given in self.held for given in tensors):
            self.held.add(node)
        copied = self.graph.node_copy(node, lambda given: self.value(given, node in self.held))
        if node.op != "placeholder":
            copied.meta.clear()
        # The kernels' images lie otherwise in memory than those that the program was traced with.
        if node.target in (aten.view.default, aten._unsafe_view.default):
            copied.target = aten.reshape.default
        self.copies[node] = copied

    def value(self, node: Node, held: bool = False) -> Node:
        """What became of a node, in the kernels' type or in its own."""
        if not is_float(node):
            return self.copies[node]
        own = node.meta["val"].dtype
        now, wanted = self.type if node in self.held else own, self.type if held else own
        if now == wanted:
            return self.copies[node]
        if (node, wanted) not in self.casts:
            self.casts[node, wanted] = self.add(aten._to_copy.default, self.copies[node], dtype=wanted)
        return self.casts[node, wanted]

    def call(self, match: Match) -> Node:
        """Of the kernel; a stem takes its images in any type."""
        layer = match.layer
        source = self.value(match.source, held=match.is_dense or not layer.is_stem)
        weight, bias = self.weights(match)
        if not match.is_dense:
            sizes = (layer.kernel, layer.stride, layer.padding, layer.relu, layer.pool)
            return self.add(
                torch.ops.fer_kernels.convolution.default, source, weight, bias, *sizes, self.precision
            )
        if match.images is not None:
            source = self.add(aten.permute.default, source, [0, 2, 3, 1])
            source = self.add(aten.flatten.using_ints, source, 1)
        return self.add(
            torch.ops.fer_kernels.linear.default, source, weight, bias, layer.relu, self.precision
        )

    def weights(self, match: Match) -> tuple[Node, Node]:
        """Packed, and the bias, as buffers; layers that share theirs go on sharing them."""
        nodes = [node for node in (match.nodes[0], match.batch_norm) if node]
        used = [attribute(self.module, given) for node in nodes for given in node.all_input_nodes]
        pooled = match.pooling.meta["val"].shape[2:] if match.pooling else None
        tensors = [(one.data_ptr(), one.shape, one.stride()) for one in used if one is not None]
        key = (match.images, pooled, *tensors)
        if key not in self.packed:
            weight, bias = weights(self.module, match)
            name = f"kernel_{len(self.packed)}_{match.name.replace('.', '_')}"
            self.module.register_buffer(f"{name}_weight", pack(weight, self.precision))
            self.module.register_buffer(f"{name}_bias", bias.contiguous().clone())
            self.packed[key] = self.graph.get_attr(f"{name}_weight"), self.graph.get_attr(f"{name}_bias")
        return self.packed[key]

    def add(self, operation: Any, *given: Any, **named: Any) -> Node:
        return self.graph.call_function(operation, given, named)


def passes(node: Node) -> bool:
    """Whether a node is one of PASSED. Sums with a number or a multiple may be out of float16's range, and averages of
    another divisor."""
    if node.target == aten.add.Tensor:
        given = arguments(node)
        return isinstance(given["other"], Node) and is_float(given["other"]) and given["alpha"] == 1
    if node.target == aten.avg_pool2d.default:
        return arguments(node)["divisor_override"] is None
    return node.target in PASSED


def is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def export_again(module: GraphModule, program: ExportedProgram) -> ExportedProgram:
    """`module`, rewritten from `program`, as a program of the same inputs, of which the same sizes may vary."""
    given = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    sizes = [varying(value, ranges) for value in given]
    args, kwargs = program.example_inputs
    positional, named = pytree.tree_unflatten(sizes, program.call_spec.in_spec)
    return torch.export.export(module, args, kwargs, dynamic_shapes=(*positional, *named.values()))


def varying(value: Any, ranges: dict[str, Any]) -> Any:
    """What torch.export calls the dynamic shape of an input."""
    if isinstance(value, torch.SymInt):
        return Dim.DYNAMIC
    if not isinstance(value, Tensor):
        return None
    sizes: list[Any] = list(value.shape)
    return {index: dimension(size, ranges) for index, size in enumerate(sizes) if not isinstance(size, int)}


def dimension(size: torch.SymInt, ranges: dict[str, Any]) -> Any:
    """The same name stands for the same number in all inputs; one that follows from others is left to torch."""
    symbol = str(size.node.expr)
    if symbol not in ranges:
        return Dim.AUTO
    lower, upper = ranges[symbol].lower, ranges[symbol].upper
    return Dim(symbol, min=int(lower), max=int(upper) if upper.is_Integer else None)
