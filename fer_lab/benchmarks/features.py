"""An epoch of R0 (VGG19 at 224, frozen, on JAFFE's stand-in): cached features against recomputing them.

Both run through fer_lab's own Trainer, record and checkpoints, validation included. Each round trains a run on
cached features and takes the median of its epochs after the first, then trains one epoch that recomputes
(about a minute each on two cores). The first epoch's losses must agree. A first cached run, which decodes the
pictures and computes the features, is dropped; its time is told beside the figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_lab.benchmarks.measure import BenchmarkError, Cost, Figure, compare, now, rounded

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fer_lab.benchmarks.setting import Setting

SETTINGS = (
    "recipe=r0_jaffe_vgg19",
    "augment=none",
    "augment.views=null",
    "model.weights=null",
    "patience=null",
)
TARGET = 50


def measure(setting: Setting, repeats: int, epochs: int, size: int) -> Iterator[Figure]:
    from fer_lab.train import set_threads

    fresh = f"cache_dir={setting.place / 'cache'}"  # so that the first use really computes
    words = [*SETTINGS, f"data.root={setting.jaffe}", f"data.size={size}", fresh]
    cached_cfg = setting.config("cached", *words, f"trainer.max_epochs={epochs}")
    plain_cfg = setting.config("recomputed", *words, "trainer.max_epochs=1", "cache_features=false")
    set_threads(cached_cfg.threads)
    begin = now()
    costs, _ = epoch_costs(cached_cfg)  # decodes, computes the features, and MLflow makes its database
    first_use = (now() - begin).wall - sum(cost.wall for cost in costs)
    cached: list[Cost] = []
    recomputed: list[Cost] = []
    for _ in range(repeats):
        costs, losses = epoch_costs(cached_cfg)
        cached.append(Cost(*(statistics.median(cost[clock] for cost in costs[1:]) for clock in (0, 1))))
        costs, plain_losses = epoch_costs(plain_cfg)
        recomputed.append(costs[0])
        if not np.allclose(losses[0], plain_losses[0], rtol=1e-3):
            raise BenchmarkError(f"cached features learn differently: {losses[0]} against {plain_losses[0]}")
    what = (
        f"seconds per epoch of 213 drawn faces at {size}x{size}, VGG19 frozen: {repeats} epochs recomputed, "
        f"{repeats} runs of {epochs} epochs cached, each without its first"
    )
    name = "epoch of frozen VGG19, recomputed / cached"
    also: dict[str, Any] = {"seconds_of_first_use_decoding_and_computing_features": rounded(first_use)}
    yield compare(name, what, recomputed, cached, TARGET, clock="cpu", at_most=False, **also)


def epoch_costs(cfg: DictConfig) -> tuple[list[Cost], list[float]]:
    """Costs and training losses of a run's epochs, with features from the cache where the config says so."""
    import uuid
    from pathlib import Path

    from pytorch_lightning import Callback

    from fer_lab.build import build_data, build_module
    from fer_lab.fit import history, make_trainer, run_trainer
    from fer_lab.frozen import use_frozen_features
    from fer_lab.learning.callbacks import Checkpoints
    from fer_lab.tracking.forward import tracked
    from fer_lab.tracking.record import open_run

    points: list[Cost] = []

    class Clock(Callback):
        def on_train_start(self, *_: object) -> None:
            points.append(now())

        def on_train_epoch_end(self, *_: object) -> None:
            points.append(now())

    data = build_data(cfg)
    module = build_module(cfg, data, None)
    if cfg.cache_features and not use_frozen_features(data, module, cfg.cache_dir):
        raise BenchmarkError("the recipe of R0 does not cache its features")
    with open_run(cfg.runs_dir, f"{cfg.name}-{uuid.uuid4().hex[:8]}") as record:
        with tracked(record, cfg.tracking.uri, "bench"):
            trainer = make_trainer(cfg, record, Checkpoints(Path(record.folder), cfg.monitor, cfg.mode))
            trainer.callbacks.append(Clock())  # type: ignore[attr-defined]
            run_trainer(trainer, data, module, record, None)
        losses = [value for _, value in history(record)["train/loss"]]
    return [end - begin for begin, end in pairwise(points)], losses
