"""Residual nets (He et al. 2016) out of torchvision."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet18


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
        for name in ("bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool"):
            self.backbone.add_module(name, getattr(net, name))
        self.backbone.add_module("flatten", nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
