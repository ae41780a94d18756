"""A training step through our stack against a bare PyTorch loop of the same work.

Ours is what fer_lab.train runs: Lightning's Trainer with our bar, checkpoints, run record and its forwarding to
MLflow (a local sqlite), FerModule and FaceData. The bare loop has the same net, start, batches, augmentation,
loss, optimizer, schedule and validation, and saves and logs nothing. Both are timed from their first training
step to the end of their last epoch, validation included on both sides; the losses must agree first. They run on
`threads` threads, one by default as in the recipe fer2013_small: threads that wait for each other burn CPU time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fer_lab.benchmarks.measure import BenchmarkError, Cost, Figure, compare, in_turn, now

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fer_lab.benchmarks.setting import Setting
    from fer_lab.data.datamodule import FaceData

SETTINGS = ("data=fer2013", "model=small", "augment=standard", "optimizer=adamw", "scheduler=onecycle")
TARGET = 1.05


def measure(
    setting: Setting, repeats: int, epochs: int, images: int, batch_size: int, threads: int
) -> Iterator[Figure]:
    from fer_lab.build import build_data
    from fer_lab.train import set_threads

    words = [*SETTINGS, f"data.root={setting.faces}", f"data.limit={images}", f"data.batch_size={batch_size}"]
    cfg = setting.config("step", *words, f"trainer.max_epochs={epochs}")
    set_threads(threads)
    data = build_data(cfg)
    losses: dict[str, list[float]] = {}

    def ours() -> Cost:
        cost, losses["ours"] = through_our_stack(cfg, data)
        return cost

    def bare() -> Cost:
        cost, losses["bare"] = bare_loop(cfg, data)
        agree(losses)
        return cost

    ours()  # MLflow makes its database
    costs = in_turn({"ours": ours, "bare": bare}, repeats)
    steps = epochs * len(data.train_dataloader())
    what = (
        f"second per training step, validation spread over the steps: {steps} steps of {batch_size} faces "
        f"in {epochs} epochs, {threads} thread(s), on {setting.source}"
    )
    ours_per_step, bare_per_step = ([cost.per(steps) for cost in costs[name]] for name in ("ours", "bare"))
    yield compare(
        "training step, ours / bare loop", what, ours_per_step, bare_per_step, TARGET, clock="cpu", losses=losses["ours"]
    )  # fmt: skip


def agree(losses: dict[str, list[float]]) -> None:
    if not np.allclose(losses["ours"], losses["bare"], rtol=1e-4):
        raise BenchmarkError(f"the losses differ, so the two did not do the same work: {losses}")


def through_our_stack(cfg: DictConfig, data: FaceData) -> tuple[Cost, list[float]]:
    """A run of its own, tracked; its cost and its losses (training, validation) by epoch."""
    import uuid
    from pathlib import Path

    from pytorch_lightning import Callback

    from fer_lab.build import build_module
    from fer_lab.fit import history, make_trainer, run_trainer
    from fer_lab.learning.callbacks import Checkpoints
    from fer_lab.tracking.forward import tracked
    from fer_lab.tracking.record import open_run

    points: list[Cost] = []

    class Clock(Callback):
        def on_train_start(self, *_: object) -> None:
            points.append(now())

        def on_train_end(self, *_: object) -> None:
            points.append(now())

    module = build_module(cfg, data, None)
    with open_run(cfg.runs_dir, f"ours-{uuid.uuid4().hex[:8]}") as record:
        with tracked(record, cfg.tracking.uri, "bench"):
            trainer = make_trainer(cfg, record, Checkpoints(Path(record.folder), cfg.monitor, cfg.mode))
            trainer.callbacks.append(Clock())  # type: ignore[attr-defined]
            run_trainer(trainer, data, module, record, None)
        found = history(record)
    losses = [value for name in ("train/loss", "val/loss") for _, value in found[name]]
    return points[-1] - points[0], losses


def bare_loop(cfg: DictConfig, data: FaceData) -> tuple[Cost, list[float]]:
    """The same work as a page of PyTorch; cost and losses as above."""
    import torch

    from fer_lab.build import build_module
    from fer_lab.data.faces import Faces
    from fer_lab.learning.optimizers import parameter_groups

    start = build_module(cfg, data, None)
    net, task, preprocess, augment = start.net, start.task, start.preprocess, data.augment
    images, labels = torch.from_numpy(np.asarray(data.cache.images)), torch.from_numpy(data.index.labels)
    train, validation = torch.from_numpy(data.split.train), torch.from_numpy(data.split.validation)
    steps = -(-len(train) // cfg.data.batch_size)
    optimizer = start.make_optimizer(parameter_groups(net))
    assert start.make_scheduler is not None
    scheduler = start.make_scheduler(optimizer, epochs=cfg.trainer.max_epochs, steps_per_epoch=steps)[
        "scheduler"
    ]
    seeds = [1_000_003 * cfg.seed + epoch for epoch in range(cfg.trainer.max_epochs)]
    pools = [train[torch.from_numpy(data.balance(labels[train].numpy(), seed))] for seed in seeds]
    generator, train_losses, val_losses = torch.Generator(), [], []
    begin = now()
    for seed, pool in zip(seeds, pools, strict=True):
        generator.manual_seed(seed)
        net.train()
        total = 0.0
        for rows in pool[torch.randperm(len(pool), generator=generator)].split(cfg.data.batch_size):
            faces = augment.apply(images[rows], augment.draw(len(rows), generator))
            optimizer.zero_grad()
            loss = task.loss(net(preprocess(faces)), Faces(faces, labels[rows], rows))
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += float(loss.detach()) * len(rows)
        train_losses.append(total / len(train))
        net.eval()
        with torch.no_grad():
            batches = validation.split(2 * cfg.data.batch_size)
            logits = torch.cat([net(preprocess(augment.test_views(images[rows])[0])) for rows in batches])
            truth = Faces(validation, labels[validation], validation)
            val_losses.append(float(task.loss(logits, truth)))
            start.scores(logits, truth.labels, None)
    return now() - begin, train_losses + val_losses
