"""Several processes train one net: the same as one process would, kept by the first, ended and continued together."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from torch import distributed

from fer_lab import ranks
from fer_lab.cli import CONF, UsageError
from fer_lab.data.augment import Augment
from fer_lab.data.cache import Cache
from fer_lab.data.datamodule import FaceData
from fer_lab.data.faces import EXPRESSIONS, Faces, Index
from fer_lab.data.sharing import Share
from fer_lab.data.splits import Split
from fer_lab.fit import history, refuse_batch_norm_of_several_cpus
from fer_lab.learning.losses import concordance_loss
from fer_lab.learning.sharing import whole_batch
from fer_lab.learning.tasks import Emotion
from fer_lab.tracking.record import RunRecord

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


def losses(outputs: torch.Tensor, faces: Faces) -> dict[str, torch.Tensor]:
    task = Emotion(EXPRESSIONS[:3])
    task.class_weights = torch.tensor([1.0, 5.0, 0.2])
    assert faces.affect is not None
    return {"weighted": task.loss(outputs, faces), "ccc": concordance_loss(outputs[:, :2], faces.affect)}


def batch_of(total: int) -> tuple[torch.Tensor, Faces]:
    generator = torch.Generator().manual_seed(total)
    inputs, affect = torch.randn(total, 4, generator=generator), torch.randn(total, 2, generator=generator)
    positions = torch.arange(total)
    return inputs, Faces(positions, positions % 3, positions, affect=affect)


def gradients(inputs: torch.Tensor, faces: Faces, kind: str) -> torch.Tensor:
    weight = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    losses(*whole_batch(inputs @ weight.T, faces))[kind].backward()
    assert weight.grad is not None
    return weight.grad


def one_of_two(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    for total, kind in itertools.product((1, 2, 3, 8, 13), ("weighted", "ccc")):
        inputs, faces = batch_of(total)
        mine = Share(rank, 2).of(total)
        share = Faces(mine, faces.labels[mine], mine, affect=faces.affect[mine], total=total)  # type: ignore[index]
        found = gradients(inputs[mine], share, kind)
        distributed.all_reduce(found)  # what DDP does
        torch.testing.assert_close(found / 2, gradients(inputs, faces, kind), atol=1e-6, rtol=1e-5)
        outputs, back = whole_batch(inputs[mine], share)
        assert torch.equal(outputs, inputs) and torch.equal(back.positions, faces.positions)
        assert torch.equal(back.labels, faces.labels)
    distributed.destroy_process_group()


def test_averaged_gradients_are_those_of_the_total_batch_for_losses_that_are_no_means(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


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


@pytest.mark.long
def test_frozen_features_are_computed_once_and_shared(command, tmp_path):
    words = (
        "model=vgg16",
        "model.weights=null",
        "model.freeze=backbone",
        "augment=none",
        "data.batch_size=8",
    )
    sizes = ("data.source.train=28", "data.source.validation=14", "data.source.test=14", "data.size=32")
    started = command(
        "train",
        *sizes,
        *words,
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=2",
        "threads=1",
        wait=False,
    )
    said = ended(started)
    assert started.returncode == 0, said
    assert len([path for path in (tmp_path / "cache/features").iterdir() if path.is_dir()]) == 1
