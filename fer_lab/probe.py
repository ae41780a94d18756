"""What a configuration costs, from a few real steps of it: time, memory, and whether it runs at all."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:
    import pytorch_lightning as pl
    import torch

    from fer_lab.data.datamodule import FaceData
    from fer_lab.learning.module import FerModule

BATCHES = 3
"""Training and validation batches that are taken; the first of each warms up."""


def probe(cfg: DictConfig) -> dict[str, Any]:
    """Trains and validates `cfg` for a few batches through its own module, data, precision, optimizer and schedule.

    `seconds_per_epoch` and `once_seconds` (a frozen backbone's look at every face) are estimates, `memory_bytes` is the
    highest use of the GPU, or of this process where there is none. Leaves no run behind. Raises LearningError where
    the monitor is not logged, and whatever the configuration itself fails with.
    """
    from fer_lab.build import build_data, build_module, device_of, starting_weights
    from fer_lab.frozen import net_on_shared_backbone
    from fer_lab.learning.module import LearningError
    from fer_lab.tracking.address import tracking_uri
    from fer_lab.train import collect_garbage, refuse_what_cannot_be, set_threads

    refuse_what_cannot_be(cfg, alone=True)
    collect_garbage()
    data = build_data(cfg)
    set_threads(cfg.threads)
    weights, _ = starting_weights(cfg, tracking_uri(cfg.tracking.uri))
    device = device_of(cfg)
    forget_peak(device)
    module = build_module(cfg, data, weights, net_on_shared_backbone).to(device)
    if cfg.monitor not in module.logged:
        raise LearningError(f"monitor={cfg.monitor} is not logged; choices: {', '.join(module.logged)}")
    once_seconds = look_at_some(cfg, data, module) if cfg.cache_features else 0.0
    return {
        "seconds_per_epoch": seconds_per_epoch(cfg, data, module),
        "once_seconds": once_seconds,
        "memory_bytes": peak_memory(device),
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "epochs": cfg.trainer.max_epochs,
        "logged": list(module.logged),
    }


def look_at_some(cfg: DictConfig, data: FaceData, module: FerModule) -> float:
    """Seconds that computing the frozen features will take, if they will be used and are not there yet.

    From here on `data` shows one face's features as everyone's: to a step they cost what the real ones cost.
    """
    from fer_lab.frozen import key_of, look, sees_fixed_faces
    from fer_lab.learning.features import features_place

    if not sees_fixed_faces(data, module):
        return 0.0
    rows = data.rows[:32]
    look(data, module, rows)  # warms up
    start = time.perf_counter()
    found = look(data, module, rows).cpu().float()
    seconds = (time.perf_counter() - start) * len(data.rows) / len(rows)
    data.features = found[:1].clone().expand(len(data.rows), *found.shape[1:])
    return 0.0 if features_place(Path(cfg.cache_dir), key_of(data, module)).exists() else seconds


def seconds_per_epoch(cfg: DictConfig, data: FaceData, module: FerModule) -> float:
    """From the median training step and validation batch of an epoch cut short, and what stands around them."""
    from fer_lab.build import instantiate
    from fer_lab.fit import quiet

    quiet()
    clock = make_clock()
    whole = {
        "train": limited(len(data.train_dataloader()), cfg.trainer.get("limit_train_batches")),
        "val": limited(len(data.val_dataloader()), cfg.trainer.get("limit_val_batches")),
    }
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        limit_train_batches=min(BATCHES, whole["train"]),
        limit_val_batches=min(BATCHES, whole["val"]),
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    return sum(count * statistics.median(clock.times[part][-BATCHES + 1 :]) for part, count in whole.items())


def limited(batches: int, limit: int | float | None) -> int:
    """As Lightning cuts an epoch: a whole number is a count of batches, a fraction a share of them."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def make_clock() -> Any:
    """A callback that times batches and ends the fit after its first epoch, while the schedule is made for all."""
    import pytorch_lightning as pl

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.times: dict[str, list[float]] = {"train": [], "val": []}
            self.start = 0.0

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.start = now(trainer)

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.times["train"].append(now(trainer) - self.start)

        def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.start = now(trainer)

        def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.times["val"].append(now(trainer) - self.start)

        def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = True

    return Clock()


def now(trainer: pl.Trainer) -> float:
    """A time at which the device has done all it was told."""
    import torch

    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux: VmHWM starts again from now; elsewhere the peak is the process's own
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU what tensors took, else the resident memory of this process, libraries included."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
