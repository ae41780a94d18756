from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from fer_lab.tracking.lightning import RunLogger
from fer_lab.tracking.record import open_run, read_events


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val/loss", self.layer(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(record, epochs: int) -> None:
    data = DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        max_epochs=epochs, logger=RunLogger(record), accelerator="cpu", log_every_n_steps=1, **quiet
    )
    trainer.fit(Line(), data, data)


def test_lightning_logs_one_point_per_epoch_and_a_replayed_epoch_once(tmp_path):
    for epochs in (2, 4):
        with open_run(tmp_path, "a", "sig") as record:
            fit(record, epochs)
    events = [event for event, _ in read_events(tmp_path / "a") if event["event"] == "metrics"]
    for key in ("train/loss", "val/loss"):
        assert [event["step"] for event in events if key in event["values"]] == [0, 1, 2, 3]
    assert not any("epoch" in event["values"] for event in events)


def test_files_of_lightning_go_into_the_run(tmp_path):
    with open_run(tmp_path, "a", "sig") as record:
        logger = RunLogger(record)
    assert (logger.save_dir, logger.name, logger.version) == (str(tmp_path), "a", "")
