"""A run as a trial of a sweep: pruned, found again, killed and continued, nested, and made whole by the plain command."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from fer_lab.cli import UsageError
from fer_lab.fit import history
from fer_lab.frozen import net_on_shared_backbone
from fer_lab.learning.module import Diverged
from fer_lab.learning.pruning import Pruning
from fer_lab.ranks import LAUNCHERS
from fer_lab.tracking.forward import settle, sync, tracked
from fer_lab.tracking.record import RunRecord, open_run
from fer_lab.train import refuse_what_cannot_be, train
from tests.composing import composed

TINY = (
    "data.source.train=56", "data.source.validation=28", "data.source.test=14", "data.size=32", "data.batch_size=28",
    "trainer.accelerator=cpu", "threads=1", "trainer.max_epochs=3",
)  # fmt: skip


class Job:
    """A trial that is pruned after `prune_at` epochs, keeps its weights if told to, and interrupts itself."""

    name, parent, tags = "quick 0007", "quick", {"fer.trial": "7"}

    def __init__(self, prune_at: int = 0, keep: bool = False, interrupt_at: int = 0) -> None:
        self.prune_at, self.keep, self.interrupt_at = prune_at, keep, interrupt_at
        self.reported: list[tuple[int, float]] = []

    def report(self, epochs: int, score: float) -> bool:
        self.reported.append((epochs, score))
        if epochs == self.interrupt_at:
            raise KeyboardInterrupt
        return epochs == self.prune_at

    def keeps(self, score: float) -> bool:
        return self.keep


def config(place: Path, *words: str, runs: str = "runs") -> DictConfig:
    """What a worker composes for a trial, and Hydra's own node where the run looks for it."""
    return composed("train", place, *TINY, *words, runs=runs)


@pytest.fixture(autouse=True)
def settled(tmp_path, empty_store) -> Iterator[None]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    yield
    settle()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def mlflow_runs(uri: str) -> dict[str, object]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return {
        run.info.run_name: run
        for run in client.search_runs([client.get_experiment_by_name("fer_lab").experiment_id])
    }


def test_a_trial_reports_every_epoch_and_leaves_only_its_record(tmp_path):
    job = Job()
    result = train(config(tmp_path), job)
    folder = tmp_path / "runs" / result.run
    scores = dict(history(RunRecord(folder))["val/accuracy"])
    assert job.reported == [(epoch + 1, score) for epoch, score in scores.items()]
    assert (result.state, result.epochs, result.score) == ("finished", 3, max(scores.values()))
    best = min(epoch for epoch, score in scores.items() if score == result.score)
    for name in ("val/loss", "train/loss"):
        assert result.metrics[name] == dict(history(RunRecord(folder))[name])[best]
    assert result.metrics["cost/parameters"] == 308_199  # counted by hand in tests/models
    assert files(folder) - {"forwarded.json"} == {"config.yaml", "fit.json", "spool.jsonl"}

    again = Job()
    assert train(config(tmp_path), again) == result
    assert again.reported == []


def test_a_trial_trains_what_the_plain_command_trains(tmp_path):
    trial = train(config(tmp_path), Job())
    plain = train(config(tmp_path, runs="plain"))
    assert trial.run == plain.run
    one, other = (history(RunRecord(tmp_path / runs / plain.run)) for runs in ("runs", "plain"))
    assert one["train/loss"] == other["train/loss"]
    assert one["val/loss"] == other["val/loss"]


def test_a_pruned_run_stays_pruned_as_a_trial_and_is_trained_to_its_end_by_the_plain_command(tmp_path):
    pruned = train(config(tmp_path), Job(prune_at=2, keep=True))
    folder = tmp_path / "runs" / pruned.run
    assert (pruned.state, pruned.epochs) == ("pruned", 2)
    assert "best.pt" not in files(folder)
    assert train(config(tmp_path), Job()) == pruned
    settle()
    run = mlflow_runs(f"sqlite:///{tmp_path}/mlflow.db")["quick 0007"]
    assert (run.info.status, run.data.tags["fer.state"]) == ("FINISHED", "pruned")
    assert run.data.tags["fer.reason"] == "after 2 of 3 epochs"

    whole = train(config(tmp_path))
    assert (whole.state, whole.epochs) == ("finished", 3)
    assert [epoch for epoch, _ in history(RunRecord(folder))["val/loss"]] == [0, 1, 2]
    assert {"best.pt", "split.json", "figures"} <= files(folder)


def test_told_to_end_after_the_last_epoch_a_run_is_whole(tmp_path):
    assert train(config(tmp_path, "trainer.max_epochs=1"), Job(prune_at=1)).state == "finished"


def test_kept_weights_are_judged_by_the_plain_command_and_not_trained_again(tmp_path):
    trial = train(config(tmp_path), Job(keep=True))
    folder = tmp_path / "runs" / trial.run
    weights = (folder / "best.pt").stat().st_mtime_ns
    assert {"best.pt", "split.json"} <= files(folder)
    assert not (folder / "figures").exists()
    whole = train(config(tmp_path))
    assert whole == trial
    assert (folder / "best.pt").stat().st_mtime_ns == weights
    judged = json.loads((folder / "figures/validation.json").read_text())["scores"]
    assert judged["accuracy"] == pytest.approx(trial.score)
    assert json.loads((folder / "figures/test.json").read_text())["count"] == 14


def test_a_trial_that_was_interrupted_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    whole = train(config(tmp_path, runs="whole"), Job(keep=True))
    monkeypatch.setattr(Pruning, "first_write", 0.0)
    monkeypatch.setattr(Pruning, "share", 1.0)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config(tmp_path), Job(interrupt_at=2))
    folder = tmp_path / "runs" / whole.run
    assert {"last.ckpt"} <= files(folder) and "best.pt" not in files(folder)
    rest = Job(keep=True)
    result = train(config(tmp_path), rest)
    assert [epochs for epochs, _ in rest.reported] == [3]
    assert (result.score, result.epochs) == (whole.score, 3)
    assert "last.ckpt" not in files(folder)
    one, other = (history(RunRecord(tmp_path / runs / whole.run)) for runs in ("runs", "whole"))
    assert {name: one[name] for name in one if name != "cost/seconds"} == {
        name: other[name] for name in other if name != "cost/seconds"
    }
    one, other = (
        torch.load(tmp_path / runs / whole.run / "best.pt", weights_only=True) for runs in ("runs", "whole")
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_plain_command_goes_on_from_a_trials_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(Pruning, "first_write", 0.0)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config(tmp_path), Job(interrupt_at=2))
    result = train(config(tmp_path))
    folder = tmp_path / "runs" / result.run
    assert json.loads((folder / "fit.json").read_text())["resumed"]
    assert (folder / "figures/test.json").exists()


def slow_trial(place: Path) -> None:
    Pruning.first_write, Pruning.share = 0.0, 1.0
    job = Job()
    job.report = lambda epochs, score: (epochs > 1 and time.sleep(600)) or False  # type: ignore[method-assign]
    train(config(place), job)


def test_kill_9_in_a_trial_loses_no_epoch_that_was_checkpointed(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=slow_trial, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 120
    while not (found := list((tmp_path / "runs").glob("*/last.ckpt"))) or epochs_in(found[0]) < 2:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    job = Job()
    result = train(config(tmp_path), job)
    assert [epochs for epochs, _ in job.reported] == [3]
    assert [epoch for epoch, _ in history(RunRecord(tmp_path / "runs" / result.run))["val/loss"]] == [0, 1, 2]


def epochs_in(checkpoint: Path) -> int:
    try:
        return int(torch.load(checkpoint, weights_only=True)["epoch"]) + 1
    except FileNotFoundError:
        return 0


def test_a_diverged_trial_diverges_again_at_once(tmp_path):
    words = ("optimizer=sgd", "optimizer.lr=1e20", "scheduler=none")
    for _ in range(2):
        job = Job()
        with pytest.raises(Diverged, match="loss is nan at step"):
            train(config(tmp_path, *words), job)
    assert job.reported == []


def test_trials_are_nested_in_their_sweep_even_if_that_was_never_sent(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    dead = "http://127.0.0.1:9"
    with open_run(tmp_path / "runs", "quick", "sweep") as parent, tracked(parent, dead, "fer_lab"):
        train(config(tmp_path, f"tracking.uri={dead}"), Job())
        settle()
    reports = sync(tmp_path / "runs", uri)
    assert [report.left for report in reports] == [0, 0]
    runs = mlflow_runs(uri)
    assert runs["quick 0007"].data.tags["mlflow.parentRunId"] == runs["quick"].info.run_id
    assert runs["quick 0007"].data.tags["fer.trial"] == "7"
    assert runs["quick"].info.status == runs["quick 0007"].info.status == "FINISHED"
    assert len(runs) == 2


@pytest.mark.parametrize(
    "words", [("trainer.devices=2",), ("+trainer.strategy=ddp",), ("+trainer.num_nodes=2",)]
)
def test_several_processes_are_refused_in_a_trial(tmp_path, words):
    with pytest.raises(
        UsageError, match=rf"{words[0].lstrip('+')}: a trial trains in one process on one device"
    ):
        train(config(tmp_path, *words), Job())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("trainer", ["slurm", "ddp"])
def test_several_machines_without_a_launcher_are_refused_instead_of_waited_for(
    tmp_path, monkeypatch, trainer
):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    cfg = config(tmp_path, f"trainer={trainer}", "trainer.num_nodes=2")
    with pytest.raises(UsageError, match=r"trainer\.num_nodes=2, .* python -m fer_lab\.slurm with the same"):
        train(cfg)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    refuse_what_cannot_be(cfg, alone=False)


def test_trials_share_a_frozen_backbone_and_still_train_what_a_plain_run_trains(tmp_path):
    words = ("model=vgg16", "model.weights=null", "model.freeze=backbone", "optimizer=sgd", "scheduler=none")
    shared = [train(config(tmp_path, *words, f"model.dropout={dropout}"), Job()) for dropout in (0.3, 0.2)]
    plain = train(config(tmp_path, *words, "model.dropout=0.2", runs="plain"))
    assert plain.metrics == {**shared[1].metrics, "cost/seconds": plain.seconds}
    assert shared[0].metrics["train/loss"] != shared[1].metrics["train/loss"]
    first, second = (
        net_on_shared_backbone(
            config(tmp_path, *words, f"model.dropout={dropout}", "+output_count=7", "+size=32"), None
        )
        for dropout in (0.3, 0.2)
    )
    assert first.backbone is second.backbone
    assert [
        module.p for net in (first, second) for module in net.head if isinstance(module, torch.nn.Dropout)
    ] == [0.3, 0.2]
