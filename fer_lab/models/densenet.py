"""DenseNets (Huang et al. 2017) out of torchvision, for R4's expressions with valence and arousal."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import DenseNet121_Weights, DenseNet161_Weights, WeightsEnum, densenet121, densenet161

NETS = {
    121: (densenet121, DenseNet121_Weights.IMAGENET1K_V1),  # growth 32, blocks 6 12 24 16
    161: (densenet161, DenseNet161_Weights.IMAGENET1K_V1),  # growth 48, blocks 6 12 36 24
}


class DenseNet(nn.Module):
    """Images (B, channels, H, W) of any side from 32 -> outputs (B, classes); bottlenecks, compression 0.5.

    The backbone ends with global average pooling: features (B, 1024) of 121, (B, 2208) of 161. The head is one
    linear layer for all outputs of the task. Each of its rows is a linear map of the same features with a bias of
    its own, so it is the same function as R4's separate heads for expressions and for valence and arousal.
    Raises ValueError for another depth or a smaller side.
    """

    torchvision_backbone = "features."
    torchvision_renamed = (r"\.(norm|conv)\.([12])\.", r".\1\2.")  # its files are older than its names

    def __init__(
        self, *, depth: int, classes: int, size: int, channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth not in NETS:
            raise ValueError(f"DenseNet of depth {depth} does not exist here; choices: 121, 161")
        if size < 32:
            raise ValueError(f"images of {size} pixels vanish in DenseNet; the side must be >= 32")
        make, weights = NETS[depth]
        net = make(weights=None)
        self.imagenet: WeightsEnum = weights
        self.backbone = net.features
        if channels != 3:
            first = self.backbone.conv0
            self.backbone.conv0 = nn.Conv2d(channels, first.out_channels, 7, stride=2, padding=3, bias=False)
        self.backbone.add_module("relu5", nn.ReLU(inplace=True))
        self.backbone.add_module("pool5", nn.AdaptiveAvgPool2d(1))
        self.backbone.add_module("flatten", nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(net.classifier.in_features, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
