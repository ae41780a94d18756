"""Lightning's metrics into a run's record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from fer_lab.tracking.record import RunRecord


class RunLogger(Logger):
    """Writes what `self.log` collects to the record, with the epoch as the step. It knows no hyperparameters:
    the composed config is logged once, by whoever composed it."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__()
        self.record = record

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.record.folder.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        if values:
            self.record.metrics(values, int(epoch if epoch is not None else step or 0))

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass
