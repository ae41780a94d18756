"""What stands between a picture and the net, and travels with it: channels and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Preprocess(nn.Module):
    """(B, C, H, W) floats in 0..1 -> (B, channels, H, W), minus `mean`, over `std`.

    A grey picture is repeated for a net of three channels; a colour one becomes grey (ITU-R 601) for a net of one.
    """

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(
                f"model.mean={list(mean)} and model.std={list(std)} must be {channels} numbers each, std above 0"
            )
        self.channels = channels
        for name, values in (("mean", mean), ("std", std), ("grey", (0.299, 0.587, 0.114))):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] == 3 and self.channels == 1:
            images = (images * self.grey).sum(1, keepdim=True)
        return (images - self.mean) / self.std  # broadcasting repeats a grey channel
