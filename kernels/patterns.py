"""Finds, in an exported program, the layers that the kernels compute; and says of the others why they do not."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from kernels.folding import BatchNorm, channels_to_the_end, fold_adaptive_pooling, fold_batch_norm
from kernels.geometry import Layer, Unsupported, check

aten = torch.ops.aten

NOT_TAKEN = {
    **dict.fromkeys(
        (aten.convolution, aten.addmm), "decomposed; swap the program as torch.export.export gives it"
    ),
    **dict.fromkeys((aten.conv1d, aten.conv3d), "the kernels take convolutions of two dimensions"),
    **dict.fromkeys(
        (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
        "the kernels do not take transposed convolutions",
    ),
    **dict.fromkeys(
        (aten.matmul, aten.mm, aten.bmm, aten.einsum),
        "a product of tensors; of dense layers the kernels take linear",
    ),
}
"""Other layers, whatever their sizes, and why they are kept."""
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints)


class Match(NamedTuple):
    """Nodes that one kernel computes, from the convolution or dense layer to the one whose value the kernel gives.

    A dense layer that reads flattened images has them as its `source`, `images` (channels, height, width) large; a
    `pooling` between the two is folded into the weights.
    """

    name: str
    nodes: tuple[Node, ...]
    source: Node
    layer: Layer
    batch_norm: Node | None = None
    images: tuple[int, int, int] | None = None
    pooling: Node | None = None

    @property
    def is_dense(self) -> bool:
        return self.nodes[0].target == aten.linear.default


class Kept(NamedTuple):
    name: str
    operation: str
    reason: str


def simplify(graph: Graph) -> None:
    """Takes out what does nothing: adaptive pooling to the size that is there, copies (dropout that is off is one).
    And calls trained batch norms by the name that people know them by."""
    for node in list(graph.nodes):
        if node.target == aten.adaptive_avg_pool2d.default:
            idle = node.meta["val"].shape == node.args[0].meta["val"].shape
        else:
            idle = (
                node.target == aten.clone.default and node.args[0].op == "call_function" and not node.kwargs
            )
        if idle:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target == aten._native_batch_norm_legit_no_training.default:
            name_batch_norm(graph, node)


def name_batch_norm(graph: Graph, node: Node) -> None:
    """Its value is the first of a tuple whose other two are empty."""
    *tensors, momentum, epsilon = node.args
    with graph.inserting_before(node):
        named = graph.call_function(aten.batch_norm.default, (*tensors, False, momentum, epsilon, False))
    named.meta["val"] = node.meta["val"][0]
    for user in list(node.users):
        if user.target is getitem and user.args[1] == 0:
            user.replace_all_uses_with(named)
            graph.erase_node(user)
    if not node.users:
        graph.erase_node(node)


def find(module: GraphModule) -> tuple[list[Match], list[Kept]]:
    """Every convolution and dense layer of a functional graph, in its order; those of graphs inside it are kept."""
    matches, kept = [], []
    for node in module.graph.nodes:
        kind = packet(node)
        try:
            if kind == aten.conv2d:
                matches.append(convolution(module, node))
            elif kind == aten.linear:
                matches.append(dense(module, node))
            elif kind in NOT_TAKEN:
                raise Unsupported(NOT_TAKEN[kind])
            elif node.op == "get_attr":
                kept += inside(module, str(node.target))
        except Unsupported as reason:
            kept.append(Kept(name(node), operation(node), str(reason)))
    return matches, kept


def inside(module: GraphModule, path: str) -> list[Kept]:
    """The layers of the graph at `path`, if there is one: a branch of torch.cond, the body of a loop."""
    return [
        Kept(f"{at}.{node.name}", operation(node), "in a graph inside the program (a branch, a loop)")
        for at, part in module.named_modules()
        if isinstance(part, GraphModule) and f"{at}.".startswith(f"{path}.")
        for node in part.graph.nodes
        if packet(node) in (aten.conv2d, aten.linear, *NOT_TAKEN)
    ]


def packet(node: Node) -> Any:
    """All overloads of what a node calls, as one; None if it calls no operation."""
    return getattr(node.target, "overloadpacket", None)


def convolution(module: GraphModule, node: Node) -> Match:
    """Raises Unsupported."""
    given = arguments(node)
    filters, _, *sides = parameters(module, given, 4).shape
    kernel, stride, dilation = (
        one(sides, "kernel"),
        one(given["stride"], "stride"),
        one(given["dilation"], "dilation"),
    )
    for what, count in (("dilation", dilation), ("groups", given["groups"])):
        if count != 1:
            raise Unsupported(f"the kernels do not take {what} {count} (1)")
    channels, height, width = sizes(given["input"], 4)
    roles = followers(module, node, ("batch_norm", "relu", "pool"))
    layer = Layer(
        *(height, width, channels, filters, kernel, stride),
        padding=padding(given["padding"], kernel),
        relu="relu" in roles,
        pool="pool" in roles,
    )
    check(layer)
    return Match(name(node), (node, *roles.values()), given["input"], layer, roles.get("batch_norm"))


def dense(module: GraphModule, node: Node) -> Match:
    """Raises Unsupported."""
    given = arguments(node)
    filters, features = parameters(module, given, 2).shape
    sizes(given["input"], 2)
    source, images, pooling = flattened(given["input"])
    roles = followers(module, node, ("relu",))
    channels = prod(images) if images else features
    layer = Layer(1, 1, channels, filters, kernel=1, padding=0, relu="relu" in roles)
    check(layer)
    return Match(name(node), (node, *roles.values()), source, layer, images=images, pooling=pooling)


def flattened(node: Node) -> tuple[Node, tuple[int, int, int] | None, Node | None]:
    """(images, their (channels, height, width), the pooling behind them) if `node` flattens images, else (node, …).

    Adaptive pooling that gives more numbers than it gets is passed over: it is cheaper inside the weights.
    """
    source: Any = node.args[0] if node.args else None
    if node.target not in VIEWS or len(source.meta["val"].shape) != 4:
        return node, None, None
    images = sizes(source, 4)
    if prod(images) != node.meta["val"].shape[1]:
        return node, None, None
    if source.target == aten.adaptive_avg_pool2d.default and prod(sizes(source.args[0], 4)) < prod(images):
        return source.args[0], sizes(source.args[0], 4), source
    return source, images, None


def followers(module: GraphModule, node: Node, allowed: Sequence[str]) -> dict[str, Node]:
    """The nodes that one kernel can compute after `node`: each the only user of the one before it, by its role.

    ReLU and max pooling may come in either order, it is the same."""
    found: dict[str, Node] = {}
    while len(node.users) == 1:
        user = next(iter(node.users))
        role = role_of(module, user) if user.args[:1] == (node,) else None
        if role is None or role not in allowed or role in found or (role == "batch_norm" and found):
            break
        found[role] = node = user
    return found


def role_of(module: GraphModule, node: Node) -> str | None:
    if node.target == aten.relu.default:
        return "relu"
    if node.target == aten.max_pool2d.default:
        given = arguments(node)
        strides = list(given["stride"]) or list(given["kernel_size"])
        plain = set(given["padding"]) == {0} and set(given["dilation"]) == {1} and not given["ceil_mode"]
        return "pool" if plain and {*given["kernel_size"], *strides} == {2} else None
    if node.target == aten.batch_norm.default:
        return "batch_norm" if trained_norm(module, node) else None
    return None


def trained_norm(module: GraphModule, node: Node) -> BatchNorm | None:
    """None for one that takes its statistics from the batch, or its parameters from other nodes."""
    given = arguments(node)
    fetched = {
        key: attribute(module, given[key])
        for key in ("running_mean", "running_var", "weight", "bias")
        if given[key] is not None
    }
    mean, variance = fetched.get("running_mean"), fetched.get("running_var")
    if given["training"] or mean is None or variance is None or any(one is None for one in fetched.values()):
        return None
    return BatchNorm(mean, variance, fetched.get("weight"), fetched.get("bias"), given["eps"])


def weights(module: GraphModule, match: Match) -> tuple[Tensor, Tensor]:
    """What to pack: float32 (filters, channels, kernel, kernel) and (filters,), with everything folded in."""
    given = arguments(match.nodes[0])
    weight = constant(module, given["weight"], "weight").detach().float()
    bias = weight.new_zeros(len(weight))
    if given["bias"] is not None:
        bias = constant(module, given["bias"], "bias").detach().float()
    norm = trained_norm(module, match.batch_norm) if match.batch_norm else None
    if norm is not None:
        weight, bias = fold_batch_norm(weight, bias, norm)
    if match.images is None:
        return weight.reshape(*weight.shape, *[1] * (4 - weight.dim())), bias
    channels, height, width = match.images
    if match.pooling is not None:
        rows, columns = match.pooling.meta["val"].shape[2:]
        weight = fold_adaptive_pooling(weight.reshape(-1, channels, rows, columns), height, width)
    weight = channels_to_the_end(weight.reshape(-1, channels, height, width))
    return weight[:, :, None, None], bias


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by name, the defaults too."""
    known = node.target._schema.arguments  # type: ignore[union-attr]
    defaults = {argument.name: argument.default_value for argument in known if argument.has_default_value()}
    return {
        **defaults,
        **dict(zip((argument.name for argument in known), node.args, strict=False)),
        **node.kwargs,
    }


def attribute(module: GraphModule, node: Node) -> Tensor | None:
    """The tensor that a node fetches; None if the program computes it."""
    if node.op != "get_attr":
        return None
    parent, _, leaf = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(parent), leaf)
    return value if isinstance(value, Tensor) else None


def constant(module: GraphModule, node: Node, what: str) -> Tensor:
    """Raises Unsupported if the program computes it."""
    tensor = attribute(module, node)
    if tensor is None:
        raise Unsupported(f"its {what} is computed by the program")
    return tensor


def parameters(module: GraphModule, given: dict[str, Any], dimensions: int) -> Tensor:
    """A layer's weight, if it and the bias are what a kernel can have. Raises Unsupported."""
    weight = constant(module, given["weight"], "weight")
    if given["bias"] is not None:
        constant(module, given["bias"], "bias")
    if weight.dim() != dimensions:
        raise Unsupported(f"a weight of {weight.dim()} dimensions ({dimensions})")
    return weight


def sizes(node: Node, dimensions: int) -> Any:
    """What follows the batch in a node's shape. Raises Unsupported if it varies, or the images are none of floats and
    `dimensions`."""
    value = node.meta["val"]
    shape = value.shape
    if not value.is_floating_point():
        raise Unsupported(f"an input of {value.dtype} (floats)")
    if len(shape) != dimensions:
        raise Unsupported(f"an input of {len(shape)} dimensions ({dimensions})")
    if not all(isinstance(size, int) for size in shape[1:]):
        raise Unsupported(f"an input of varying size {tuple(shape[1:])}: export it for one size")
    return tuple(shape[1:])


def one(values: Sequence[int], what: str) -> int:
    """Both of `values`, which are equal or one alone. Raises Unsupported."""
    if len(set(values)) != 1:
        raise Unsupported(f"a {what} of {'x'.join(map(str, values))} (square)")
    return values[0]


def padding(given: Sequence[int] | str, kernel: int) -> int:
    if given == "same" and kernel % 2 == 1:
        return kernel // 2
    if isinstance(given, str) and given != "valid":
        raise Unsupported(f"padding {given!r} of an even kernel: more on one side than on the other")
    return 0 if isinstance(given, str) else one(given, "padding")


def name(node: Node) -> str:
    """As the module is called whose weights it uses, if they are a module's."""
    weight = arguments(node).get("weight", node)
    return str(weight.target).removesuffix(".weight") if weight.op == "get_attr" else node.name


def operation(node: Node) -> str:
    """As people call it: "conv2d", "fer_kernels.convolution"."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    return node.target._schema.name.removeprefix("aten::").replace("::", ".")
