"""Batch norms become part of the layers before them where that changes nothing, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fer_lab.exporting.facts import ExportError
from fer_lab.exporting.predictor import fold


class Twisted(nn.Module):
    """Each case that folding has to tell apart; `skip` reads the first convolution beside its norm."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.late_norm = nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8)
        self.twice, self.norm_of_twice = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.dense, self.dense_norm = nn.Linear(8, 5), nn.BatchNorm1d(5)
        self.dropout, self.head = nn.Dropout(0.9), nn.Linear(5, 4)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.uniform_(-1, 1), part.running_var.uniform_(0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 2), nn.init.uniform_(part.bias, -1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        x = self.first_norm(y) + (y if self.skip else 0)
        x = self.late_norm(
            torch.relu_(self.second(x))
        )  # reads the convolution's tensor, which is no longer what it was
        x = self.norm_of_twice(self.twice(torch.relu(self.twice(x))))
        return self.head(self.dropout(self.dense_norm(self.dense(x.mean((2, 3))))))


def test_folding_takes_the_norms_that_follow_a_layer_alone_and_checks_itself():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 9, 9)
    net = Twisted(skip=False).eval()
    folded = fold(net, images)
    assert (folded.norms, folded.kept) == (2, ("late_norm", "norm_of_twice"))
    assert not [part for part in folded.net.modules() if isinstance(part, nn.Dropout)]
    with torch.no_grad():
        torch.testing.assert_close(folded.net(images), net(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(ExportError, match="folding 2 batch norms of Twisted moves its logits by"):
        fold(Twisted(skip=True).eval(), images)
