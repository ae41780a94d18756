"""Small as it looks at a few hundred faces of another kind: its convolutions stay, a linear head reads their map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fer_lab.models.small import Small


class Averaged(nn.Sequential):
    """What its layers make of a picture and its mirror image, each also moved by `shift` pixels along and across,
    averaged: (B, C, H, W) -> (B, D). No detector puts two faces in quite the same place."""

    def __init__(self, *layers: nn.Module, shift: int = 0) -> None:
        super().__init__(*layers)
        if shift < 0:
            raise ValueError(f"model.shift={shift}; expected a number of pixels, 0 or more")
        self.shift = shift

    def extra_repr(self) -> str:  # by which features that were kept are known
        return f"shift={self.shift}"

    def forward(self, images: Tensor) -> Tensor:
        height, width, shift = *images.shape[-2:], self.shift
        padded = functional.pad(images, (shift,) * 4, mode="replicate") if shift else images
        starts = range(0, 2 * shift + 1, max(1, shift))
        moved = [padded[..., y : y + height, x : x + width] for y in starts for x in starts]
        found = [super(Averaged, self).forward(view) for one in moved for view in (one, one.flip(-1))]
        return torch.stack(found).mean(0)


class NotTheWhole(ValueError):
    """A part of the training faces where all of them are needed; the text says what to set."""


class Scale(nn.Module):
    """Features (B, D) minus their mean, over their deviation to the `power`; 1 would standardise each, 0 none.

    A power of one half lets features that vary much count more, but not as much as they would. All of it is then brought
    to a mean square of 1, so that one weight decay fits features of any size. The batch it trains on sets the
    numbers, so that must be the whole training part: another batch or a process's share raises NotTheWhole.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, power: float = 0.5) -> None:
        super().__init__()
        if not 0 <= power <= 1:
            raise ValueError(f"model.power={power}; expected a number in 0..1")
        self.power = power
        self.fitted = False
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.fit_to(features.detach().double())
        return (features - self.mean) * self.scale

    def fit_to(self, features: Tensor) -> None:
        deviation, mean = torch.std_mean(features, dim=0, correction=0)
        alive = deviation > 1e-6 * deviation.max()  # what is the same for all faces tells nothing of any
        scale = torch.where(alive, deviation.clamp_min(1e-12) ** -self.power, 0.0)
        scale = scale / (deviation * scale).square().mean().sqrt().clamp_min(1e-12)
        self.refuse_a_part(mean)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def refuse_a_part(self, mean: Tensor) -> None:
        """What it saw before is told by its mean, which no order of the faces changes."""
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        other = self.fitted and not torch.allclose(mean.float(), self.mean, rtol=1e-4, atol=1e-5)
        if other or (several and torch.distributed.get_world_size() > 1):
            raise NotTheWhole(
                "model=small_transfer scales its features by all training faces, and here is a part of them: set "
                "data.batch_size to their number or more, augment=none, trainer.devices=1 and trainer.max_epochs=1"
            )
        self.fitted = True


class SmallTransfer(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes), by multinomial regression on Small's last map.

    `backbone` takes the weights of a trained Small; its map is averaged over `pool` x `pool` fields and over views of
    the face (see Averaged): features (B, 128 * pool²), scaled by `power` (see Scale).
    """

    def __init__(
        self, *, classes: int, size: int, channels: int = 1, pool: int = 3, shift: int = 2, power: float = 0.5
    ) -> None:
        super().__init__()
        *layers, _, flatten = Small(classes=classes, size=size, channels=channels).backbone
        self.backbone = Averaged(*layers, nn.AdaptiveAvgPool2d(pool), flatten, shift=shift)
        self.head = nn.Sequential(Scale(128 * pool**2, power), nn.Linear(128 * pool**2, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
