"""What torch.optim lacks: SGD with decoupled weight decay, Muon for convolutions, and what should not decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fer_lab.models.weights import parts


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


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum (Jordan et al. 2024) for inner convolutions, Adam for all else.

    A convolution (out, in, kh, kw) is taken as a matrix (out, in * kh * kw) and its update made nearly orthogonal by
    four Newton-Schulz steps; the layer that sees the pixels, dense layers, biases and norms go by Adam with `adam_lr`.
    `weight_decay` is decoupled and for the convolutions alone. torch.optim.Muon takes matrices only.
    """

    def __init__(
        self,
        params: Iterable[Tensor | dict[str, Any]],
        lr: float = 0.08,
        adam_lr: float = 4e-3,
        momentum: float = 0.9,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.02,
    ) -> None:
        if lr <= 0 or adam_lr <= 0:
            raise ValueError(f"lr={lr} and adam_lr={adam_lr} must be above 0")
        by_scale: dict[float, list[Tensor]] = {}  # of layer-wise rates
        for part in params:
            scale, tensors = (
                (part.get("lr_scale", 1.0), part["params"]) if isinstance(part, dict) else (1.0, [part])
            )
            by_scale.setdefault(scale, []).extend(tensors)
        groups: list[dict[str, Any]] = []
        for scale, every in by_scale.items():
            inner = [one for one in every if one.ndim == 4 and one.shape[1] > 3]
            rest = [one for one in every if not (one.ndim == 4 and one.shape[1] > 3)]
            groups.append({"params": inner, "lr": lr, "adam": False, "lr_scale": scale})
            groups.append({"params": rest, "lr": adam_lr, "adam": True, "lr_scale": scale})
        shared = {"momentum": momentum, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], shared)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in learning:
                update = self.adam_step if group["adam"] else self.orthogonal_step
                update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    @staticmethod
    def orthogonal_step(
        weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        momentum = state.setdefault("momentum", torch.zeros_like(weight))
        momentum.mul_(group["momentum"]).add_(gradient)
        matrix = gradient.add(momentum, alpha=group["momentum"]).flatten(1)  # (out, in * kh * kw)
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonal(matrix).view(weight.shape), alpha=-group["lr"] * scale)

    @staticmethod
    def adam_step(weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(weight))
        square = state.setdefault("square", torch.zeros_like(weight))
        count = state["count"] = state.get("count", 0) + 1
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (square / (1 - second**count)).sqrt_().add_(1e-8)
        weight.addcdiv_(mean, deviation, value=-group["lr"] / (1 - first**count))


def orthogonal(matrix: Tensor, steps: int = 4) -> Tensor:
    """The matrix (m, n) with its singular values brought near 1 (0.5..1.5), by Newton-Schulz steps in bfloat16."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).float()


def parameter_groups(
    module: nn.Module, weight_decay: float | None = None, layer_decay: float = 1.0, frozen: bool = False
) -> list[dict[str, Any]]:
    """The learning parameters of `module` as optimizer groups: one that decays, one (biases, norms) that does not.

    Without `weight_decay` the first group takes the optimizer's own. With a `layer_decay` below 1 there are two for the
    head and for each child of the backbone, from above; they have an `lr_scale`, the share of the learning rate that is
    theirs. `frozen` takes in what does not learn now. Empty groups are left out.
    """
    groups = []
    for scale, part in scaled_parts(module, layer_decay):
        learning = [parameter for parameter in part.parameters() if parameter.requires_grad or frozen]
        decaying: dict[str, Any] = {"params": [parameter for parameter in learning if parameter.ndim > 1]}
        if weight_decay is not None:
            decaying["weight_decay"] = weight_decay
        steady = {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0}
        shares = {} if layer_decay == 1 else {"lr_scale": scale}
        groups += [{**group, **shares} for group in (decaying, steady) if group["params"]]
    return groups


def scaled_parts(module: nn.Module, layer_decay: float) -> list[tuple[float, nn.Module]]:
    if layer_decay == 1:
        return [(1.0, module)]
    from_above = reversed([module.get_submodule(name) for name in parts(module)])
    return [
        (1.0, module.get_submodule("head")),
        *((layer_decay**place, part) for place, part in enumerate(from_above, start=1)),
    ]
