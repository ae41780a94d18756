"""How fast each part of a net learns, and from when on: for fine-tuning, and for several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from fer_lab.learning.optimizers import parameter_groups
from fer_lab.models.weights import parts


class Rates(NamedTuple):
    """With `layer_decay` (0..1) each part of the backbone learns at that share of the rate of the part above it, the
    topmost at that share of the head's ("discriminative fine-tuning" of ULMFiT, Howard & Ruder 2018, who take 1 / 2.6).

    With `unfreeze` a part of the frozen backbone more learns after every so many epochs, the topmost first ("gradual
    unfreezing", there after each epoch). `scale_lr` "linear" multiplies learning rate and weight decay by the number of
    processes (R4).
    """

    layer_decay: float = 1.0
    unfreeze: int | None = None
    scale_lr: str = "none"

    def optimizer(self, make: Callable[..., Optimizer], net: nn.Module, processes: int) -> Optimizer:
        """The optimizer of all that will ever learn; what is frozen meanwhile has no gradients, and so stays."""
        if self.unfreeze is not None and processes > 1:
            raise ValueError(
                f"unfreeze={self.unfreeze} with {processes} processes: they would not share the gradients of what is "
                "frozen now; train in one process (trainer.devices=1) or choose model.freeze=none"
            )
        groups = parameter_groups(net, layer_decay=self.layer_decay, frozen=self.unfreeze is not None)
        optimizer = make(groups)
        factor = processes if self.scale_lr == "linear" else 1
        for group in optimizer.param_groups:
            group["lr"] *= factor * group.get("lr_scale", 1.0)
            if "weight_decay" in group:
                group["weight_decay"] *= factor
        return optimizer

    def refuse_without_effect(self, net: nn.Module, frozen: list[str], epochs: int) -> None:
        """ValueError where `unfreeze` or `layer_decay` could change nothing; `frozen` are parts of the backbone."""
        if self.layer_decay != 1 and self.unfreeze is None and frozen == parts(net):
            raise ValueError(
                f"layer_decay={self.layer_decay}: the whole backbone is frozen; choose unfreeze=1, model.freeze=none, or "
                "leave layer_decay out"
            )
        if self.unfreeze is not None and not frozen:
            raise ValueError(
                f"unfreeze={self.unfreeze}: nothing of the backbone is frozen; choose model.freeze=backbone, or leave "
                "unfreeze out"
            )
        if self.unfreeze is not None and self.unfreeze >= epochs:
            raise ValueError(
                f"unfreeze={self.unfreeze}: the {epochs} epochs of training end before anything is unfrozen; "
                f"choose 1..{epochs - 1}"
            )
