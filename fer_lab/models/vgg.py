"""VGG-16 and VGG-19 (Simonyan & Zisserman 2015): torchvision's convolutions under R0's two dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torchvision.models import VGG16_BN_Weights, VGG16_Weights, VGG19_BN_Weights, VGG19_Weights, WeightsEnum
from torchvision.models.vgg import cfgs, make_layers

WEIGHTS: dict[tuple[int, bool], WeightsEnum] = {
    (16, False): VGG16_Weights.IMAGENET1K_V1,
    (16, True): VGG16_BN_Weights.IMAGENET1K_V1,
    (19, False): VGG19_Weights.IMAGENET1K_V1,
    (19, True): VGG19_BN_Weights.IMAGENET1K_V1,
}


class Vgg(nn.Module):
    """Colour images (B, 3, size, size), size >= 32 -> logits (B, classes).

    The backbone gives (B, 512, size // 32, size // 32); torchvision's pooling to 7x7 is left out, as in R0,
    so at 224 the dense layers see the same 25088 numbers and at 48 only 512. `hidden` are the widths of the dense
    layers with ReLU and dropout: one in R0, several in R2.
    Raises ValueError for another depth, channel count or a side below 32.
    """

    torchvision_backbone = "features."

    def __init__(
        self,
        *,
        depth: int,
        classes: int,
        size: int,
        batch_norm: bool = False,
        channels: int = 3,
        dropout: float = 0.5,
        hidden: int | Sequence[int] = 512,
    ) -> None:
        super().__init__()
        if (depth, batch_norm) not in WEIGHTS:
            raise ValueError(f"VGG of depth {depth} does not exist here; choices: 16, 19")
        if channels != 3:
            raise ValueError(
                f"VGG sees 3 channels, not {channels}; grey images are repeated by model.channels=3"
            )
        if size < 32:
            raise ValueError(f"images of {size} pixels vanish in VGG's five poolings; the side must be >= 32")
        self.imagenet = WEIGHTS[depth, batch_norm]
        self.backbone = make_layers(cfgs["D" if depth == 16 else "E"], batch_norm=batch_norm)
        widths = [512 * (size // 32) ** 2, *([hidden] if isinstance(hidden, int) else hidden)]
        self.head = nn.Sequential(nn.Flatten())
        for before, after in pairwise(widths):
            self.head.extend([nn.Linear(before, after), nn.ReLU(inplace=True), nn.Dropout(dropout)])
        self.head.append(nn.Linear(widths[-1], classes))
        for layer in self.backbone:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
