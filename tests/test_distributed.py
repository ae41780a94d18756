"""Several processes train one net: the same as one process would, kept by the first, ended and continued together."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from fer_lab import ranks
from fer_lab.cli import CONF, UsageError
from fer_lab.data.augment import Augment
from fer_lab.data.cache import Cache
from fer_lab.data.datamodule import FaceData
from fer_lab.data.faces import EXPRESSIONS, Faces, Index
from fer_lab.data.sharing import Share
from fer_lab.data.splits import Split
from fer_lab.fit import history, refuse_batch_norm_of_several_cpus
from fer_lab.learning.callbacks import Checkpoints
from fer_lab.tracking.record import RunRecord
from tests.two_of_a_run import FROZEN, fitted

PLAIN = (
    "data.source.train=33", "data.source.validation=21", "data.source.test=14", "data.size=32", "model=basic1",
    "optimizer=sgd", "optimizer.momentum=0.9", "scheduler=cosine", "augment=standard",
    "task.weights=balanced", "ema=0.9", "monitor=train/loss", "mode=min", "trainer.accelerator=cpu", "threads=1",
)  # fmt: skip
"""No batch norm, no dropout; two processes with 8 faces each leave the second none of the last batch, of 1."""

ONE = ("data.batch_size=16", "optimizer.lr=0.05", "optimizer.weight_decay=0.002")
TWO = (
    "trainer=ddp",
    "data.batch_size=8",
    "optimizer.lr=0.025",
    "optimizer.weight_decay=0.001",
    "scale_lr=linear",
)


def only_run(runs: Path) -> Path:
    (folder,) = (path.parent for path in runs.glob("*/spool.jsonl"))
    return folder


def ended(started: subprocess.Popen[str]) -> str:
    return started.communicate(timeout=400)[0]


def values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return {name: points for name, points in history(RunRecord(folder)).items() if "final/" not in name}


def test_two_processes_train_what_one_trains_at_the_same_total_batch(command, tmp_path):
    words = (*PLAIN, "trainer.max_epochs=2")
    two = command("train", *words, *TWO, f"runs_dir={tmp_path}/two", wait=False)
    one = command("train", *words, *ONE, f"runs_dir={tmp_path}/one")
    said = ended(two)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + said
    assert said.count("best validation score") == 1 and "Traceback" not in said

    first, second = (only_run(tmp_path / name) for name in ("one", "two"))
    weights, shared = (torch.load(folder / "best.pt") for folder in (first, second))
    assert max(float((weights[name] - shared[name]).abs().max()) for name in weights) <= 1e-5
    alone, together = values(first), values(second)
    assert together.keys() == alone.keys() and "val/f1_macro" in alone
    for name, points in alone.items():
        if not name.startswith("cost/"):
            assert [step for step, _ in together[name]] == [0, 1]
            assert together[name] == [(step, pytest.approx(value, abs=1e-5)) for step, value in points]
    facts = [json.loads((folder / "fit.json").read_text()) for folder in (first, second)]
    assert facts[0]["best_epoch"] == facts[1]["best_epoch"] == 1
    for name in ("figures/test.json", "figures/curves.png", "split.json"):
        assert (second / name).exists()


@pytest.mark.parametrize(("world", "total"), itertools.product((1, 2, 3, 4), (1, 2, 3, 7, 8, 12)))
def test_shares_cover_a_total_batch_and_put_it_together_in_its_order(world, total):
    shares = [Share(rank, world).of(total) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert world == 1 or len(shares[0]) == max(2, -(-total // world)), "batch norm takes two"
    assert torch.stack(shares, dim=1).flatten()[:total].tolist() == list(range(total))


def drawn(world: int, rank: int, augment: Augment, features: bool = False) -> list[Faces]:
    """An epoch as one of `world` processes sees it."""
    images = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8), np.uint8)
    labels = np.arange(40) % 8
    index = Index("drawn", EXPRESSIONS, tuple(map(str, range(40))), labels, digest="x")
    rows = np.arange(40)
    split = Split(train=rows[:33], validation=rows[33:], test=rows[:0])
    data = FaceData(Cache(images, index, ()), split, augment, batch_size=12 // world, seed=5)
    if features:
        data.features = torch.arange(40 * 4.0).reshape(40, 4, 1)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world, current_epoch=2, max_epochs=4
    )
    assert len(data.train_dataloader()) == 3 and len(data.val_dataloader()) == 1
    return [data.prepare(batch, training=True) for batch in data.train_dataloader()]


@pytest.mark.parametrize("views", [None, 3])
def test_every_process_sees_its_faces_as_the_one_process_would_augment_them(views):
    augment = Augment(flip=0.5, rotation=20, erasing=0.5, brightness=0.3, views=views)
    alone = drawn(1, 0, augment)
    for world in (2, 3):
        for rank in range(world):
            for faces, whole in zip(drawn(world, rank, augment), alone, strict=True):
                places = Share(rank, world).of(len(whole.labels))
                assert faces.total == len(whole.labels)
                assert torch.equal(faces.positions, whole.positions[places])
                assert torch.equal(faces.labels, whole.labels[places])
                torch.testing.assert_close(faces.images, whole.images[places])
    if views:
        stored = [batch.features for batch in drawn(1, 0, augment, features=True)]
        for faces, found in zip(drawn(2, 1, augment, features=True), stored, strict=True):
            assert torch.equal(faces.features, found[Share(1, 2).of(faces.total)])


def test_averaged_gradients_are_those_of_the_total_batch_for_losses_that_are_no_means(preloaded, tmp_path):
    done = preloaded(
        [sys.executable, "-m", "tests.two_of_a_batch", str(tmp_path)], cwd=CONF.parent, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("environment", "leads", "local"),
    [
        ({}, True, 0),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, 0),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False, 1),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False, 0),
        ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, False, 0),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False, 1),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False, 1),
    ],
)
def test_the_first_process_alone_leads_and_speaks(environment, leads, local, monkeypatch, capsys):
    for name in (*ranks.RANKS, *ranks.LOCAL_RANKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (ranks.leads(), ranks.local_rank()) == (leads, local)
    with ranks.one_voice():
        print("heard")
    assert capsys.readouterr().out == ("heard\n" if leads else "")
    monkeypatch.setattr(ranks, "PATIENCE", 0.2)
    begin = time.monotonic()
    with pytest.raises(UsageError), ranks.one_voice():
        raise UsageError("data.root is not here")
    assert (time.monotonic() - begin < 0.2) == leads, "the others wait for the first to say it"


def test_batch_norm_over_several_processes_needs_gpus(tmp_path):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.sync_batchnorm=true"]
        cfg = hydra.compose("train", overrides=words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with pytest.raises(
        UsageError, match=r"trainer\.sync_batchnorm=true: torch takes batch norm .* GPUs only"
    ):
        refuse_batch_norm_of_several_cpus(cfg)


def wait_for_epochs(started: subprocess.Popen[str], runs: Path, count: int) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and started.poll() is None:
        if any(len(values(path.parent).get("val/loss", ())) >= count for path in runs.glob("*/spool.jsonl")):
            return
        time.sleep(0.05)
    started.terminate()
    raise AssertionError(f"no {count} epochs: {ended(started)}")


LONGER = (*PLAIN, *TWO, "data.source.train=900", "trainer.max_epochs=12", "model.dropout=0.2")


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed with 9", "told to stop"])
def test_two_processes_that_ended_go_on_as_if_nothing_had_happened(command, tmp_path, how):
    whole = command("train", *LONGER, f"runs_dir={tmp_path}/whole", wait=False)
    assert whole.wait(timeout=400) == 0, ended(whole)
    started = command("train", *LONGER, wait=False)
    wait_for_epochs(started, tmp_path / "runs", 3)
    if how == "told to stop":
        started.send_signal(signal.SIGUSR1)
        said = ended(started)
        assert started.returncode == 75, said
        assert said.count("stopped; the same command continues") == 1 and "Traceback" not in said
    else:
        for child in children(started.pid):
            os.kill(child, signal.SIGKILL)
        started.kill()
        started.wait()
    assert (only_run(tmp_path / "runs") / "last.ckpt").exists()
    again = command("train", *LONGER, wait=False)
    said = ended(again)
    assert again.returncode == 0 and said.count("continuing run") == 1, said
    found, expected = values(only_run(tmp_path / "runs")), values(only_run(tmp_path / "whole"))
    assert found.keys() == expected.keys()
    for name in expected:
        if not name.startswith("cost/"):
            assert found[name] == expected[name], name
    assert not (only_run(tmp_path / "runs") / "last.ckpt").exists()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("optimizer.lr=1e20", "scheduler=none"), 1, "loss is"),
        (("monitor=val/acc", "mode=max"), 2, "monitor=val/acc is not logged"),
        (("trainer.sync_batchnorm=true",), 2, "GPUs only"),
    ],
)
def test_errors_end_all_processes_with_one_message(command, tmp_path, words, code, message):
    started = command("train", *PLAIN, *TWO, "trainer.max_epochs=2", *words, wait=False)
    said = ended(started)
    assert started.returncode == code, said
    assert said.count(message) == 1 and "Traceback" not in said


def two_of_a_run(preloaded, folder: Path, scene: str) -> list[dict[str, Any]]:
    """What each of the two processes of tests/two_of_a_run.py met."""
    done = preloaded(
        [sys.executable, "-m", "tests.two_of_a_run", str(folder), scene],
        cwd=CONF.parent,
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]


def test_a_process_without_the_others_checkpoint_is_refused_instead_of_waited_for(
    preloaded, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "share", 1e9)  # a checkpoint after every epoch
        patch.setattr(Checkpoints, "on_validation_start", interrupt_in_the_third, raising=False)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fitted(tmp_path / "runs", "trainer.max_epochs=4")
    assert (tmp_path / "runs/run/last.ckpt").exists()
    first, second = two_of_a_run(preloaded, tmp_path, "lost")
    assert first["error"].startswith("LearningError: the processes of this run do not train the same")
    assert f"the first one's run is {tmp_path}/runs/run, which all of them must see" in first["error"]
    assert second["error"] == "SystemExit: 0", "the first tells it"


def interrupt_in_the_third(self, trainer, pl_module) -> None:
    if trainer.current_epoch == 2:
        raise KeyboardInterrupt


def test_frozen_features_are_computed_once_and_used_by_all(preloaded, tmp_path):
    first, second = two_of_a_run(preloaded, tmp_path, "frozen")
    assert first["frozen"] and second["frozen"], (first, second)
    assert len(list(tmp_path.glob("computed-*"))) == 1
    alone = fitted(tmp_path / "one", *FROZEN, "data.batch_size=16")["history"]
    assert first["history"].keys() == alone.keys() and "val/loss" in alone
    for name, points in alone.items():
        if not name.startswith("cost/"):
            together = [tuple(point) for point in first["history"][name]]
            assert together == [(step, pytest.approx(value, abs=1e-5)) for step, value in points], name
