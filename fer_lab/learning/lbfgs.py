"""The optimizer of problems with one minimum and few faces: all of them at once, to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SecondStep(ValueError):
    """More than one batch for what learns from all faces at once; the text says what to set."""


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS with strong Wolfe steps and an L2 penalty, weight_decay / 2 times each group's squared weights.

    One step goes all the way: up to `max_iter` iterations. So the training part has to be one batch and one epoch: a
    second step raises SecondStep, since it would forget the first. With the mean cross entropy of N faces it finds what scikit-learn's LogisticRegression
    does for C = 1 / (N * weight_decay).
    """

    def __init__(
        self,
        params: Iterable[Tensor | dict[str, Any]],
        lr: float = 1.0,
        weight_decay: float = 0.0,
        max_iter: int = 500,
        tolerance_grad: float = 1e-6,
    ) -> None:
        if weight_decay < 0 or max_iter < 1:
            raise ValueError(
                f"weight_decay={weight_decay} must be 0 or more and max_iter={max_iter} at least 1"
            )
        self.decays: list[tuple[Tensor, float]] = []
        for part in params:
            group: dict[str, Any] = part if isinstance(part, dict) else {"params": [part]}
            decay = group.get("weight_decay", weight_decay)
            self.decays += [(weight, decay) for weight in group["params"]]
        weights = [weight for weight, _ in self.decays]  # torch's takes one group
        if any(weight.ndim > 2 for weight in weights):
            raise ValueError(
                "lbfgs is for a linear head, not for convolutions: model.freeze=backbone, or adamw"
            )
        super().__init__(
            weights,
            lr=lr,
            max_iter=max_iter,
            max_eval=4 * max_iter,
            tolerance_grad=tolerance_grad,
            tolerance_change=1e-10,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        if self.state:
            raise SecondStep(
                "optimizer=lbfgs learns from all training faces in one step, and here is a second: set data.batch_size to "
                "their number or more and trainer.max_epochs=1, or take optimizer=adamw"
            )

        def penalised() -> Any:
            loss = closure()
            for weight, decay in self.decays:
                if decay and weight.grad is not None:
                    loss = loss + decay / 2 * weight.detach().square().sum()
                    weight.grad.add_(weight.detach(), alpha=decay)
            return loss

        return super().step(penalised)
