"""What happens around an epoch: the weights that are kept, and the one progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fer_lab.learning.module import FerModule, LearningError


class Checkpoints(Checkpoint):  # Lightning calls these last, so the monitored score is there
    """Keeps `best.pt` (the judged net's state_dict) and `last.ckpt` (everything a resumed run needs).

    They are written at the ends of epochs, as often as costs at most `share` of the time, and when training ends. Both
    are replaced atomically, the best first: a run killed between the two trains those epochs again and writes the
    same file. Frozen weights are left out of `last.ckpt`: the same command brings them back.
    """

    share = 0.05
    pruned = False

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        self.folder, self.monitor, self.sign = folder, monitor, 1 if mode == "max" else -1
        self.best_score, self.best_epoch = float("-inf"), -1
        self.best_state: dict[str, torch.Tensor] | None = None  # not yet written; frozen weights left out
        self.next_write = 0.0
        self.earlier_seconds, self.start = 0.0, time.monotonic()

    @property
    def state_key(self) -> str:
        return "Checkpoints"  # a run goes on from its checkpoint whichever of us wrote it

    @property
    def seconds(self) -> float:
        """How long the run has trained, in this process and those before it."""
        return self.earlier_seconds + time.monotonic() - self.start

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FerModule)
        self.start = time.monotonic()
        if self.monitor not in pl_module.logged:
            raise LearningError(
                f"monitor={self.monitor} is not logged; choices: {', '.join(pl_module.logged)}"
            )
        self.refuse_unlike_processes(trainer)

    def refuse_unlike_processes(self, trainer: pl.Trainer) -> None:
        """They would wait for each other for ever. Lightning restores the epoch only after on_fit_start; what a
        checkpoint says of its best epoch and of its time is here by then."""
        mine = (self.folder.name, self.best_epoch, self.earlier_seconds)
        alike = trainer.strategy.broadcast(mine) == mine
        if not trainer.strategy.reduce_boolean_decision(alike, all=True):
            raise LearningError(
                "the processes of this run do not train the same: on one machine the code, the files or the last "
                f"checkpoint differ; the first one's run is {self.folder}, which all of them must see"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FerModule)
        if self.monitor not in trainer.callback_metrics:
            raise LearningError(
                f"monitor={self.monitor} was not logged in this epoch: every epoch must validate"
            )
        score = self.sign * float(trainer.callback_metrics[self.monitor])
        if score > self.best_score or self.best_epoch < 0 or math.isnan(self.best_score):
            self.best_score, self.best_epoch = score, trainer.current_epoch
            self.best_state = {
                name: value.detach().cpu().clone()
                for name, value in pl_module.judged.state_dict().items()
                if name not in pl_module.never_learning
            }
        if trainer.strategy.broadcast(time.monotonic() >= self.next_write):  # all processes together
            start = time.monotonic()
            self.write(trainer, pl_module)
            took = time.monotonic() - start
            self.next_write = start + took / self.share

    def write(self, trainer: pl.Trainer, pl_module: FerModule) -> None:
        self.write_best(pl_module)
        self.write_last(trainer)

    def write_last(self, trainer: pl.Trainer) -> None:
        """The epoch's metrics go to the logger first (Lightning would log those of training only after this): a run
        killed in between does not train the epoch again, so they would be missing for ever."""
        if trainer.logger is not None:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            trainer.logger.log_metrics({**metrics, "epoch": trainer.current_epoch})
        part = self.last.with_name(f"{self.last.name}.part")
        trainer.save_checkpoint(part)  # the first process writes, the others wait for it
        if trainer.is_global_zero:
            part.replace(self.last)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, FerModule)
        self.write_best(pl_module)

    def write_best(self, pl_module: FerModule) -> None:
        if self.best_state is not None and pl_module.trainer.is_global_zero:
            state = {**pl_module.judged.state_dict(), **self.best_state}
            replace(self.best, lambda path: torch.save(state, path))
            self.best_state = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, FerModule)
        frozen = {f"net.{name}" for name in pl_module.never_learning}
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name not in frozen
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        self.best_state = state_dict.get("best_state")
        self.earlier_seconds = state_dict.get("seconds", 0.0)


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


class OneBar(ProgressBar):
    """One bar for the whole fit: epoch, loss and the latest monitored score."""

    def __init__(self, monitor: str) -> None:
        super().__init__()
        self.monitor, self.shown = monitor, 0.0
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.task: TaskID | None = None
        self.score = ""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.task is None:
            total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
            done = trainer.current_epoch * int(trainer.num_training_batches)
            self.task = self.bar.add_task("fit", total=total, completed=done, epoch="", figures="")
        self.bar.update(self.task, epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.task is None or time.monotonic() - self.shown < 0.5:  # drawing and reading the loss cost time
            return
        self.shown = time.monotonic()
        done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        loss = f"loss {float(outputs['loss']):.3f}" if isinstance(outputs, dict) else ""
        self.bar.update(self.task, completed=done, figures=f"{loss}  {self.score}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (value := trainer.callback_metrics.get(self.monitor)) is not None:
            self.score = f"{self.monitor} {float(value):.3f}"

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()  # gives the cursor back

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.bar.stop()

    def get_metrics(self, *_: Any) -> dict[str, Any]:
        return {}
