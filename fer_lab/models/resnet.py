"""Residual nets (He et al. 2016) out of torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet18, resnet50

LAYERS = ("layer1", "layer2", "layer3", "layer4")


class ResNet18(nn.Module):
    """ResNet-18 with the CIFAR stem: images (B, channels, size, size) of any side -> logits (B, classes).

    The stem is a 3x3 convolution of stride 1 without pooling, so that the last stage of a 48x48 face still
    sees 6x6 places. The backbone ends with global average pooling: features (B, 512).
    """

    def __init__(self, *, classes: int, size: int, channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        net = resnet18(weights=None)
        stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.backbone = nn.Sequential()
        self.backbone.add_module("conv1", stem)
        for name in ("bn1", "relu", *LAYERS, "avgpool"):
            self.backbone.add_module(name, getattr(net, name))
        self.backbone.add_module("flatten", nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class ResNet50(nn.Module):
    """Colour images (B, 3, H, W) of any side from 32 -> logits (B, classes), by R2's dense layers.

    The backbone is torchvision's and ends with global average pooling: features (B, 2048). The head has a dense
    layer (He-uniform), batch norm, ReLU and dropout for each of the `hidden` widths.

    R2 freezes "the first 165 layers" of Keras's ResNet50, which in torch is model.freeze=layer4.2, "all before the
    last bottleneck". Keras counts 175 layers without its top, from 0: the stem has 7 (input, pad, conv, norm, relu,
    pad, pool); the first block of each of the four stages 12 (three convolutions with norms, two ReLUs, the
    shortcut's convolution and norm, add, relu); the other 2 + 3 + 5 + 2 blocks 10 each (without the shortcut's two):
    7 + 4 * 12 + 12 * 10 = 175. The last block is layers 165 to 174, so layers[:165] ends with conv5_block2_out,
    and conv1, bn1, layer1, layer2, layer3, layer4.0 and layer4.1 are frozen. (torchvision halves in the 3x3
    convolution of a block, Keras in the 1x1 before it, and Keras's convolutions have biases.)
    """

    torchvision_backbone = ""  # its names have nothing before them

    def __init__(
        self,
        *,
        classes: int,
        size: int,
        channels: int = 3,
        dropout: float = 0.5,
        hidden: Sequence[int] = (512, 128),
    ) -> None:
        super().__init__()
        if channels != 3 or size < 32:
            raise ValueError(
                f"ResNet50 sees 3 channels of at least 32 pixels, not {channels} of {size}; "
                "grey images are repeated by model.channels=3"
            )
        net = resnet50(weights=None)
        self.imagenet = ResNet50_Weights.IMAGENET1K_V1  # the older ones: Keras's come from He et al., too
        self.backbone = nn.Sequential()
        for name in ("conv1", "bn1", "relu", "maxpool", *LAYERS, "avgpool"):
            self.backbone.add_module(name, getattr(net, name))
        self.backbone.add_module("flatten", nn.Flatten())
        self.head = nn.Sequential()
        for before, after in zip((2048, *hidden), hidden, strict=False):
            self.head.extend(dense(before, after, dropout))
        self.head.append(nn.Linear((2048, *hidden)[-1], classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def dense(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return [layer, nn.BatchNorm1d(outputs), nn.ReLU(inplace=True), nn.Dropout(dropout)]
