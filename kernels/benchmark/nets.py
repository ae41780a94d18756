"""The net that is timed: VGG19's convolutions under the reference system's head (512, then 7), in plain torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from kernels.geometry import Layer, Unsupported
from kernels.roofline import vgg19

HIDDEN, CLASSES, CHANNELS = 512, 7, 3
CALIBRATION = {224: 4}
"""Images that centre the last layer, by size; 16 elsewhere: the larger ones take a processor seconds each."""


def layers(size: int, divisor: int = 1, classes: int = CLASSES) -> dict[str, Layer]:
    """All 18 by name, ReLU and pooling where the net has them; `divisor` makes the net narrow, for tests."""
    whole = vgg19(size, HIDDEN, classes)
    return {
        name: layer._replace(
            channels=layer.channels if layer.is_stem else layer.channels // divisor,
            filters=layer.filters if name == "fc2" else layer.filters // divisor,
        )
        for name, layer in whole.items()
    }


class Vgg19(nn.Module):
    """Images (batch, 3, size, size) -> logits (batch, classes); `size` a multiple of 32, `divisor` for narrow nets in tests."""

    def __init__(self, size: int, divisor: int = 1, classes: int = CLASSES) -> None:
        super().__init__()
        self.size, self.divisor, self.classes = size, divisor, classes
        self.layers = layers(size, divisor, classes)
        modules: list[nn.Module] = []
        for name, layer in self.layers.items():
            if name == "fc1":
                modules.append(nn.Flatten())
            modules.append(module_of(layer))
            modules += [nn.ReLU()] if layer.relu else []
            modules += [nn.MaxPool2d(2)] if layer.pool else []
        self.stack = nn.Sequential(*modules)

    def forward(self, images: Tensor) -> Tensor:
        return self.stack(images)

    def weighted(self) -> list[nn.Conv2d | nn.Linear]:
        """The 18 modules that have weights, in the order of `layers`."""
        return [module for module in self.stack if isinstance(module, nn.Conv2d | nn.Linear)]


def module_of(layer: Layer) -> nn.Conv2d | nn.Linear:
    if layer.height == layer.kernel == 1:
        return nn.Linear(layer.channels, layer.filters)
    return nn.Conv2d(layer.channels, layer.filters, layer.kernel, layer.stride, layer.padding)


def seeded(size: int, seed: int = 0, divisor: int = 1) -> Vgg19:
    """Weights that keep the size of what passes through (He et al.), and small random biases; the same everywhere but for rounding.

    The last layer is centred and scaled over some images, or a random net would give all of them the same class and
    its top-1 agreement would say nothing.
    """
    net = Vgg19(size, divisor).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in net.weighted():
        terms = module.weight[0].numel()
        module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / terms) ** 0.5)
        module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.05)  # type: ignore[union-attr]
    logits = net(images(CALIBRATION.get(size, 16), size, seed + 1))
    last = net.weighted()[-1]
    scale = 1 / logits.std(0).clamp_min(1e-6)
    last.weight.mul_(scale[:, None])
    last.bias.sub_(logits.mean(0)).mul_(scale)  # type: ignore[union-attr]
    return net


def images(count: int, size: int, seed: int) -> Tensor:
    """(count, 3, size, size) float32, random and nowhere zero for long: soft blobs of varied contrast under noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((count, CHANNELS, 5, 5), generator=generator)
    blobs = functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    contrast = 0.3 + 1.4 * torch.rand((count, 1, 1, 1), generator=generator)
    return blobs * contrast + 0.3 * torch.randn((count, CHANNELS, size, size), generator=generator)


def exported(net: Vgg19, batch: int = 2) -> ExportedProgram:
    """With a dynamic batch; images of the weights' type."""
    example = (torch.zeros((batch, CHANNELS, net.size, net.size), dtype=net.weighted()[0].weight.dtype),)
    return torch.export.export(net, example, dynamic_shapes=({0: Dim("batch", min=1, max=1024)},))


def loaded(path: Path) -> Vgg19:
    """The net inside an exported program (`python -m fer_lab.export`), without what it does before and after.

    Raises Unsupported where the program's layers are not those of a VGG19 under two dense ones.
    """
    program = torch.export.load(path)
    pairs = weights_of(program)
    found = [tuple(weight.shape) for weight, _ in pairs]
    classes = found[-1][0] if found else CLASSES
    sides = (image_side(program), *range(32, 544, 32))
    size = next((side for side in sides if side >= 32 and found == shapes(side, classes)), None)
    if size is None:
        raise Unsupported(
            f"{path} is of {len(found)} layers with weights; this benchmark times a VGG19 that "
            "python -m fer_lab.export wrote: 16 convolutions and the dense layers 512 and classes"
        )
    net = Vgg19(size, classes=classes).eval().requires_grad_(False)
    for module, (weight, bias) in zip(net.weighted(), pairs, strict=True):
        module.weight.copy_(weight)
        module.bias.copy_(bias)  # type: ignore[union-attr]
    return net


def image_side(program: ExportedProgram) -> int:
    """Of the images that the program takes; 0 where it says nothing. Weights alone leave 32 sizes open."""
    images = program.example_inputs[0][0] if program.example_inputs else None
    return int(images.shape[-1]) if isinstance(images, Tensor) else 0


def weights_of(program: ExportedProgram) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each convolution and dense layer, in the order in which they compute."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    calls = [node.args[1:3] for node in program.graph.nodes if node.target in targets]
    return [tuple(program.state_dict[names[place.name]] for place in call) for call in calls]


def shapes(size: int, classes: int) -> list[tuple[int, ...]]:
    """Of the 18 weights."""
    return [
        (layer.filters, layer.channels) if name.startswith("fc") else (layer.filters, layer.channels, 3, 3)
        for name, layer in layers(size, classes=classes).items()
    ]
