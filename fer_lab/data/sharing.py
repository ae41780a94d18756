"""Which faces of a total batch are whose, where several processes train one net."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """The process `rank` of `world` takes every world-th face of each total batch, from its own number on.

    All shares of a batch are equally long, and of two faces at least, which batch norm needs: a short batch is filled up
    with faces from its own start, whose outputs are dropped where the batch is put together again.
    """

    rank: int = 0
    world: int = 1

    def of(self, total: int) -> Tensor:
        """(n,) places in a total batch of `total` faces; all of them where a process is alone."""
        if self.world == 1:
            return torch.arange(total)
        count = max(-(-total // self.world), 2)
        return (self.rank + self.world * torch.arange(count)) % total
