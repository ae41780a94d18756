"""Nets that are one line of plain layers, which is all that weights in a text file can say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from fer_lab.exporting.facts import CannotExport

Shape = tuple[int, ...]
"""Of a convolution (kernel height, kernel width, inputs, outputs), of a dense layer (inputs, outputs), as in R0."""
KINDS = ("conv", "relu", "pool", "flatten", "dense")


class Chain(nn.Module):
    """Images (B, C, s, s) through `layers` (names out of KINDS) to logits (B, K).

    conv: of odd sides, stride 1, padded to keep the side; pool: the largest of 2x2; dense takes (c, h, w) in this order.
    """

    def __init__(self, layers: Sequence[str], shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.layers, self.shapes = tuple(layers), tuple(shapes)
        left = iter(self.shapes)
        self.line = nn.Sequential(*(build(kind, left) for kind in self.layers))

    @property
    def weighted(self) -> list[nn.Conv2d | nn.Linear]:
        return [layer for layer in self.line if isinstance(layer, nn.Conv2d | nn.Linear)]

    def forward(self, images: Tensor) -> Tensor:
        return self.line(images)


def build(kind: str, shapes: Iterator[Shape]) -> nn.Module:
    match kind:
        case "conv":
            height, width, inputs, outputs = next(shapes)
            return nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2))
        case "dense":
            inputs, outputs = next(shapes)
            return nn.Linear(inputs, outputs)
        case "relu":
            return nn.ReLU(inplace=True)
        case "pool":
            return nn.MaxPool2d(2)
        case _:
            return nn.Flatten()


def chain_of(net: nn.Module) -> Chain:
    """A folded net as a Chain with its weights. Raises CannotExport that names the first layer that is no plain one."""
    layers = list(plain_layers(net))
    kinds = [kind_of(name, layer) for name, layer in layers]
    found = Chain(kinds, [shape_of(layer) for _, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)])
    weighted = [layer for _, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    for ours, theirs in zip(found.weighted, weighted, strict=True):
        ours.weight.data.copy_(theirs.weight)
        assert ours.bias is not None
        ours.bias.data.zero_() if theirs.bias is None else ours.bias.data.copy_(theirs.bias)
    return found


def plain_layers(net: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of `backbone` and `head` as they follow each other in nn.Sequentials; identities are none."""
    for name, part in net.named_children():
        if isinstance(part, nn.Sequential):
            yield from plain_layers(part, f"{prefix}{name}.")
        elif not isinstance(part, nn.Identity):
            yield f"{prefix}{name}", part


def kind_of(name: str, layer: nn.Module) -> str:
    for kind, fits in (
        ("conv", is_plain_convolution(layer)),
        ("relu", isinstance(layer, nn.ReLU)),
        ("pool", is_plain_pooling(layer)),
        ("flatten", isinstance(layer, nn.Flatten)),
        ("dense", isinstance(layer, nn.Linear)),
    ):
        if fits:
            return kind
    raise CannotExport(
        f"text weights know only a line of plain convolutions (stride 1, same size), ReLU, 2x2 max pooling and dense "
        f"layers, as in VGG; here {name} is {layer}".replace("\n", " ")[:300]
    )


def is_plain_convolution(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros":
        return False
    height, width = layer.kernel_size
    keeps = layer.stride == (1, 1) and layer.padding == (height // 2, width // 2)
    return keeps and height % 2 == width % 2 == 1 and layer.dilation == (1, 1) and layer.groups == 1


def is_plain_pooling(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.MaxPool2d) or layer.ceil_mode:
        return False
    two = (2, (2, 2))
    return layer.kernel_size in two and layer.stride in two and layer.padding in (0, (0, 0))


def shape_of(layer: nn.Conv2d | nn.Linear) -> Shape:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return *layer.kernel_size, layer.in_channels, layer.out_channels
