"""What stands between a picture and the net, and travels with it: channels and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Preprocess(nn.Module):
    """(B, C, H, W) floats in 0..1 -> (B, channels, H, W), minus `mean`, over `std`.

    With `per_image` each picture's own mean and deviation (at least 0.04) come first, so that light and contrast
    do not matter; `clip` then cuts at 0 and 1 and so loses all that is darker than the mean, an error of R4 that is
    offered to repeat it. A grey picture is repeated for a net of three channels; a colour one becomes grey (ITU-R 601)
    for a net of one.
    """

    mean: Tensor
    std: Tensor
    grey: Tensor

    def __init__(
        self,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        per_image: bool = False,
        clip: bool = False,
    ) -> None:
        super().__init__()
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(
                f"mean={list(mean)} and std={list(std)} must be {channels} numbers each, std above 0"
            )
        if clip and not per_image:
            raise ValueError("clip=true cuts what per_image=true gives; without it there is nothing to cut")
        self.channels, self.per_image, self.clip = channels, per_image, clip
        for name, values in (("mean", mean), ("std", std), ("grey", (0.299, 0.587, 0.114))):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1), persistent=False)

    @property
    def signature(self) -> str:
        """Changes with anything that changes the result."""
        return repr(
            (self.channels, self.per_image, self.mean.flatten().tolist(), self.std.flatten().tolist())
            + (("clip",) if self.clip else ())
        )

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] == 3 and self.channels == 1:
            images = (images * self.grey).sum(1, keepdim=True)
        if self.per_image:
            deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
            images = (images - mean) / deviation.clamp_min(0.04)
            if self.clip:
                images = images.clamp(0.0, 1.0)
        return (images - self.mean) / self.std  # broadcasting repeats a grey channel
