"""A run as one of many: whoever compares them may end it early, and only a few keep their weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl

from fer_lab.learning.callbacks import Checkpoints
from fer_lab.learning.module import FerModule


class Pruning(Checkpoints):
    """Reports every epoch's score and ends the fit when told to; `pruned` says that this happened.

    `report` takes the epochs trained and the monitored score, and may raise to interrupt the run. `best.pt` is written
    at the end, if `keeps` says so of the best score; until then the best weights travel in `last.ckpt`, which a fit of
    less than `first_write` seconds never writes.
    """

    first_write = 5.0

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: str,
        report: Callable[[int, float], bool],
        keeps: Callable[[float], bool],
    ) -> None:
        super().__init__(folder, monitor, mode)
        self.report, self.keeps = report, keeps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.next_write = time.monotonic() + self.first_write

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        epochs = trainer.current_epoch + 1
        told_to_end = self.report(epochs, float(trainer.callback_metrics[self.monitor]))
        if told_to_end and epochs < (
            trainer.max_epochs or 0
        ):  # after the last epoch it has trained to its end
            self.pruned = trainer.should_stop = True

    def write(self, trainer: pl.Trainer, pl_module: FerModule) -> None:
        self.write_last(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FerModule)
        if not self.pruned and self.keeps(self.sign * self.best_score):
            self.write_best(pl_module)
        else:
            self.best.unlink(missing_ok=True)
