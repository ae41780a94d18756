"""What torch.optim lacks: SGD with decoupled weight decay, and the parameters that should not decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class SGDW(torch.optim.SGD):
    """SGD with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 1).

    Each step first multiplies a parameter by 1 - lr * weight_decay, with the current lr as torch's AdamW does,
    so that a schedule of lr also schedules the decay; then the momentum step sees the gradient alone.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["weight_decay"] and parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            group["weight_decay"] = 0.0  # SGD itself would add it to the gradient
        try:
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss


def parameter_groups(module: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """The learning parameters of `module` as optimizer groups: one that decays, one (biases, norms) that does not.

    Without `weight_decay` the first group takes the optimizer's own. Empty groups are left out.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decaying: dict[str, Any] = {"params": [parameter for parameter in learning if parameter.ndim > 1]}
    if weight_decay is not None:
        decaying["weight_decay"] = weight_decay
    steady = {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0}
    return [group for group in (decaying, steady) if group["params"]]
