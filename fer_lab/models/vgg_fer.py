"""The VGG that Khaireddin & Chen (2021) tuned on FER2013: 73.28% on PrivateTest from scratch."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = (64, 128, 256, 512)


class VggFer(nn.Module):
    """Images (B, channels, size, size), size >= 16 (theirs: 1x40x40) -> logits (B, classes).

    Four stages of two (3x3 convolution, batch norm, ReLU) and a 2x2 max pooling, then dense layers of `hidden`,
    `hidden` and `classes`; at 40 pixels the first sees 512*2*2 = 2048 numbers. The paper leaves open, and we take
    from the authors' code: padding 1, convolutions with bias, dropout on both hidden layers, torch's initial weights.
    """

    def __init__(
        self,
        *,
        classes: int,
        size: int = 40,
        channels: int = 1,
        dropout: float = 0.2,
        hidden: int = 4096,
    ) -> None:
        super().__init__()
        if size < 16:
            raise ValueError(
                f"images of {size} pixels vanish in VggFer's four poolings; the side must be >= 16"
            )
        self.backbone = nn.Sequential()
        for inputs, outputs in zip((channels, *STAGES), STAGES, strict=False):
            self.backbone.append(convolution(inputs, outputs))
            self.backbone.append(convolution(outputs, outputs))
            self.backbone.append(nn.MaxPool2d(2))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(STAGES[-1] * (size // 16) ** 2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
