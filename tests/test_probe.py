"""What a few steps of a configuration tell about the whole."""

from __future__ import annotations

import pytest
from test_trial import Job, config

from fer_lab.learning.module import LearningError
from fer_lab.probe import limited, probe
from fer_lab.train import train


def test_a_probe_foretells_an_epoch_and_leaves_no_run(tmp_path):
    words = ("data.source.train=560", "data.source.validation=280")
    told = probe(config(tmp_path, *words))
    assert told["parameters"] == 308_199
    assert told["epochs"] == 3
    assert told["once_seconds"] == 0
    assert "val/accuracy" in told["logged"]
    assert told["memory_bytes"] > 100e6  # torch alone takes more
    assert not (tmp_path / "runs").exists()


def test_an_epoch_is_told_from_all_its_batches(tmp_path, monkeypatch):
    seconds = iter(range(1000))
    monkeypatch.setattr("fer_lab.probe.now", lambda trainer: float(next(seconds)))  # every batch takes one
    words = ("data.source.train=280", "data.source.validation=140", "+trainer.limit_val_batches=2")
    told = probe(config(tmp_path, *words))
    assert told["seconds_per_epoch"] == 280 / 28 + 2


def test_a_frozen_backbone_is_not_looked_through_before_its_time(tmp_path):
    words = ("model=vgg16", "model.weights=null", "data.source.train=140")
    assert probe(config(tmp_path, *words))["once_seconds"] > 0
    assert not (tmp_path / "cache/features").exists()
    train(config(tmp_path, *words), Job())
    assert probe(config(tmp_path, *words))["once_seconds"] == 0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("monitor=val/acc", "monitor=val/acc is not logged; choices: train/loss"),
        ("optimizer.lr=-1", "optimizer or scheduler: lr=-1"),
    ],
)
def test_what_cannot_be_trained_cannot_be_probed(tmp_path, word, message):
    with pytest.raises(LearningError, match=message):
        probe(config(tmp_path, word))


def test_an_epoch_is_cut_as_lightning_cuts_it():
    assert [limited(10, limit) for limit in (None, 3, 20, 1.0, 0.25, 0)] == [10, 3, 10, 10, 2, 0]
