"""A residual net small enough to learn 48x48 faces on a CPU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; `stride` 2 halves the side."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first_norm(self.first(x)), inplace=True)
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x), inplace=True)


class Small(nn.Module):
    """Images (B, channels, size, size), an even side -> logits (B, classes); 0.39 M parameters.

    The stem folds 2x2 pixels into channels, so the stages see sides of 24, 12 and 6 for a face of 48;
    features are (B, 96).
    """

    def __init__(self, *, classes: int, size: int, channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"Small folds 2x2 pixels, so the side must be even, not {size}")
        stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * channels, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        stages = Residual(32, 32), Residual(32, 64, 2), Residual(64, 96, 2), Residual(96, 96)
        self.backbone = nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(96, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
