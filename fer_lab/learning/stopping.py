"""A run that is told to end, by a cluster that wants its machines back, ends between two steps and can go on."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
CODE = 75
"""EX_TEMPFAIL: not finished, the same command goes on."""

ASKED_EVERY = 20
"""Steps between two questions whether another process was told: each of them stalls a GPU."""


class Stopped(SystemExit):
    """Raised by all processes after the same step; the exit code is that of the first, which speaks for all.

    `goes_on`: SIGUSR1 alone came, with which a cluster announces that it takes its machines back for now. SIGTERM is
    also what cancels a job.
    """

    def __init__(self, code: int, goes_on: bool) -> None:
        super().__init__(code)
        self.goes_on = goes_on


class Stopping(Callback):
    """Ends the fit after the step in which SIGUSR1 or SIGTERM came; of several processes, to whichever, some steps later.

    The epoch is trained again from its start by whoever goes on; `last.ckpt` holds the one before. Lightning's own
    handler of SIGTERM talks to the other processes at once, in the midst of what they are saying.
    """

    told = False
    ended = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                signal.signal(one, self.note)  # Lightning puts back what was there before the fit

    def note(self, number: int, *_: object) -> None:
        self.told = True
        self.ended = self.ended or number == signal.SIGTERM

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size > 1:
            if batch_idx % ASKED_EVERY:
                return
            self.told = trainer.strategy.reduce_boolean_decision(self.told, all=False)
        if self.told:
            ended = trainer.strategy.reduce_boolean_decision(self.ended, all=False)
            raise Stopped(CODE if trainer.is_global_zero else 0, goes_on=not ended)
