"""The small nets that the reference systems R1 (AffectNet, RAF-DB) and R3 (FER2013) built themselves.

No convolution here is padded: only so do the sides come out at which R1 flattens, for images of 224 pixels
(a convolution of side 5 takes 4 off; a pooling of side 3 goes in steps of 3 and drops what is left over):
  Basic 1   224 220 | 73 69 | 23                       16 x 23 x 23 =  8464
  Basic 2   224 220 | 110 106 | 53 49 | 24 20 | 10     64 x 10 x 10 =  6400
  New Base  224 220 216 | 72 68 64 | 21               192 x 21 x 21 = 84672
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Stack(nn.Module):
    """Images (B, channels, size, size) -> logits (B, classes): convolutions, flattened, under dense layers."""

    def __init__(self, layers: list[nn.Module], *, channels: int, size: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*layers, nn.Flatten())
        self.inputs = flat(self.backbone, channels, size)
        self.head: nn.Module = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class Basic1(Stack):
    """R1's first net: two convolutions and three dense layers, ReLU after all but the last; size >= 25."""

    def __init__(self, *, classes: int, size: int, channels: int = 3, dropout: float = 0.0) -> None:
        layers = [*convolution(channels, 6), nn.MaxPool2d(3), *convolution(6, 16), nn.MaxPool2d(3)]
        super().__init__(layers, channels=channels, size=size)
        self.head = nn.Sequential(
            nn.Dropout(dropout),  # R1 has none here
            nn.Linear(self.inputs, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, classes),
        )


class Basic2(Stack):
    """R1's second net: four convolutions of 64, dropout around the last; size >= 76.

    With `hidden` the head has two dense layers and, as R1 lists it, no ReLU between them; without, one.
    """

    def __init__(
        self,
        *,
        classes: int,
        size: int,
        channels: int = 3,
        dropout: float = 0.5,
        hidden: int | None = 512,
    ) -> None:
        layers = [
            *convolution(channels, 64), nn.MaxPool2d(2),
            *convolution(64, 64), nn.MaxPool2d(2),
            *convolution(64, 64), nn.MaxPool2d(2), nn.Dropout(dropout),
            *convolution(64, 64), nn.MaxPool2d(2), nn.Dropout(dropout),
        ]  # fmt: skip
        super().__init__(layers, channels=channels, size=size)
        widths = [self.inputs, *([hidden] if hidden else []), classes]
        self.head = nn.Sequential(*(nn.Linear(before, after) for before, after in pairwise(widths)))


class NewBase(Stack):
    """R1's New 1, later its New Base: two pairs of wide convolutions and one dense layer; size >= 41."""

    def __init__(self, *, classes: int, size: int, channels: int = 3, dropout: float = 0.1) -> None:
        layers = [
            *convolution(channels, 64), *convolution(64, 128), nn.MaxPool2d(3), nn.Dropout(dropout),
            *convolution(128, 192), *convolution(192, 192), nn.MaxPool2d(3), nn.Dropout(dropout),
        ]  # fmt: skip
        super().__init__(layers, channels=channels, size=size)
        self.head = nn.Linear(self.inputs, classes)


class Webcam(Stack):
    """R3's net: one convolution of 32 (side 3), a pooling, one dense layer of 128 with ReLU; size >= 4.

    The text says no more; padding (none) and the pooling of 2 are what its library, Keras, does unasked.
    """

    def __init__(self, *, classes: int, size: int, channels: int = 1, dropout: float = 0.0) -> None:
        layers = [nn.Conv2d(channels, 32, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        super().__init__(layers, channels=channels, size=size)
        self.head = nn.Sequential(
            nn.Linear(self.inputs, 128), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(128, classes)
        )


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 5), nn.ReLU(inplace=True)


def flat(layers: nn.Sequential, channels: int, size: int) -> int:
    """How many numbers the layers leave of one image; ValueError where nothing is left."""
    side, width = size, channels
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            side, width = side - layer.kernel_size[0] + 1, layer.out_channels
        elif isinstance(layer, nn.MaxPool2d):
            side //= layer.kernel_size if isinstance(layer.kernel_size, int) else layer.kernel_size[0]
        if side < 1:
            raise ValueError(
                f"images of {size} pixels vanish in convolutions without padding; choose a larger data.size "
                "(R1's is 224)"
            )
    return width * side * side
