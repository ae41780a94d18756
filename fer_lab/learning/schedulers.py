"""Learning-rate schedules: torch's, set in epochs, as the dictionaries that Lightning takes.

Each is called as schedule(optimizer, epochs=…, steps_per_epoch=…), where steps are optimizer steps.
The highest rate is always the optimizer's lr.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)


def plateau(
    optimizer: Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    monitor: str = "val/accuracy",
    mode: Literal["min", "max"] = "max",
    factor: float = 0.75,
    patience: int = 5,
    threshold: float = 0.0,
    floor: float = 0.0,
) -> dict[str, Any]:
    """lr times `factor` after more than `patience` epochs in which `monitor` did not improve by `threshold` (absolute)."""
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode,
        factor,
        patience,
        threshold=threshold,
        threshold_mode="abs",
        min_lr=floor,
    )
    return {"scheduler": scheduler, "interval": "epoch", "frequency": 1, "monitor": monitor}


def cosine(
    optimizer: Optimizer, *, epochs: int, steps_per_epoch: int, warmup: float = 0.0, floor: float = 0.0
) -> dict[str, Any]:
    """Linear rise over `warmup` epochs, then a cosine down to an lr of `floor` at the end of training."""
    total, rise = epochs * steps_per_epoch, round(warmup * steps_per_epoch)
    if rise >= total:
        raise ValueError(
            f"scheduler.warmup={warmup} epochs leaves nothing of the {epochs} epochs of training"
        )
    fall: LRScheduler = CosineAnnealingLR(optimizer, total - rise, eta_min=floor)
    if rise:
        up = LinearLR(optimizer, start_factor=1 / rise, total_iters=rise)
        fall = SequentialLR(optimizer, [up, fall], milestones=[rise])
    return by_step(fall)


def sgdr(
    optimizer: Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    cycles: Sequence[float] = (10,),
    decay: float = 1.0,
    floor: float = 0.0,
) -> dict[str, Any]:
    """Cosine with warm restarts (Loshchilov & Hutter 2017): `cycles` are lengths in epochs, the last one repeats.

    Each restart begins `decay` times lower than the one before; `floor` is the fraction of lr where a cycle ends.
    """
    lengths = [length * steps_per_epoch for length in cycles]
    if not lengths or min(lengths) <= 0:
        raise ValueError(f"scheduler.cycles={list(cycles)} should be lengths above 0, in epochs")

    def factor(step: int) -> float:
        cycle, start = 0, 0.0
        while step >= start + lengths[min(cycle, len(lengths) - 1)]:
            start += lengths[min(cycle, len(lengths) - 1)]
            cycle += 1
        done = (step - start) / lengths[min(cycle, len(lengths) - 1)]
        return decay**cycle * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

    return by_step(LambdaLR(optimizer, factor))


def onecycle(
    optimizer: Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup: float = 0.3,
    start_divisor: float = 25.0,
    end_divisor: float = 1e4,
    momentum: Sequence[float] | None = None,
) -> dict[str, Any]:
    """One cycle (Smith & Topin 2018): up over the fraction `warmup` of training, then down, both along a cosine.

    lr begins at lr / `start_divisor` and ends at that / `end_divisor`. `momentum` (low, high) makes momentum, or
    Adam's beta1, run the other way; without it the optimizer's own stands.
    """
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=epochs * steps_per_epoch,
        pct_start=warmup,
        cycle_momentum=momentum is not None,
        base_momentum=momentum[0] if momentum else 0.0,
        max_momentum=momentum[-1] if momentum else 0.0,
        div_factor=start_divisor,
        final_div_factor=end_divisor,
    )
    return by_step(scheduler)


def by_step(scheduler: LRScheduler) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "frequency": 1}
