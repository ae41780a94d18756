"""A residual net small enough to learn faces of 48x48 on a CPU in a quarter of an hour."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; `stride` 2 halves the side (rounding up)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.second_norm.weight)  # every block begins as its shortcut
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            halve = [nn.AvgPool2d(stride, ceil_mode=True)] if stride > 1 else []
            widen = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(*halve, widen, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first_norm(self.first(x)), inplace=True)
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x), inplace=True)


class Small(nn.Module):
    """Images (B, channels, H, W) of any side from 8 -> logits (B, classes); 0.31 M parameters.

    The stem halves the side at once, so that the wide layers see 24, 12 and 6 for a face of 48; features (B, 128).
    """

    def __init__(self, *, classes: int, size: int, channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if size < 8:
            raise ValueError(
                f"faces of {size} pixels vanish in Small's three halvings; the side must be >= 8"
            )
        self.backbone = nn.Sequential(
            nn.Conv2d(channels, 32, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            Residual(32, 32),
            Residual(32, 64, stride=2),
            Residual(64, 128, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(128, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
