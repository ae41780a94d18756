"""What a trial costs beyond its training, in one warm worker.

A sweep of short runs with the real host, watched from inside: from the entry into one trial to the entry into the next,
less the time between the start and the end of each training epoch, validation included. What is left is asking, composing,
setting the run up, its record, reporting, pruning, telling, collecting garbage. MLflow is sent to beside the training,
in a thread of the same process; its CPU time is in the CPU figure, which leaves out the main thread's within epochs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from fer_lab.benchmarks.measure import Cost, Figure, middle
from fer_lab.sweep import Host

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting
    from fer_lab.search.host import Job
    from fer_lab.train import Result

TARGET = 0.3
WARM_UPS = 3
"""Trials that import, open and look up what later ones find."""


class Watched(Host):
    """Our host, with a line in watched.jsonl for every trial: when it began, and the cost of its epochs."""

    def trial(self, config: DictConfig, job: Job) -> Result:
        from fer_lab import fit

        make, entered, epochs = fit.make_trainer, (time.perf_counter(), time.process_time()), Epochs()

        def make_watched(*arguments: Any) -> Any:
            trainer = make(*arguments)
            trainer.callbacks.insert(0, callback(epochs))  # type: ignore[attr-defined]
            return trainer

        fit.make_trainer = make_watched  # type: ignore[assignment]
        try:
            return super().trial(config, job)
        finally:
            fit.make_trainer = make
            line = {"entered": entered, "inside": (epochs.wall, epochs.cpu), "job": job.tags["fer.job"]}
            with (Path(config.runs_dir) / "watched.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


class Epochs:
    """Sums of the epochs' seconds: of the clock, and of the thread that trains."""

    wall = cpu = 0.0

    def add(self, sign: int) -> None:
        self.wall += sign * time.perf_counter()
        self.cpu += sign * time.thread_time()


def callback(epochs: Epochs) -> Any:
    from pytorch_lightning import Callback

    class Clock(Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            epochs.add(-1)

        def on_train_epoch_end(self, *_: object) -> None:
            epochs.add(1)

    return Clock()


def measure(
    setting: Setting, trials: int, epochs: int, batches: int, train: int, validation: int
) -> Iterator[Figure]:
    from fer_lab.benchmarks.searches import lines, our_sweep
    from fer_lab.benchmarks.trials import SPACE, faces

    pictures = faces(setting, {"train": train, "validation": validation, "test": validation})
    words = [
        "sweeps=none", "data=fer2013", f"data.root={pictures}", "model=small", "trainer=smoke", f"trainer.max_epochs={epochs}",
        f"trainer.limit_train_batches={batches}", f"trainer.limit_val_batches={batches}", *SPACE,
        "hydra.sweeper.pruner=none", "hydra.sweeper.host=fer_lab.benchmarks.overhead.Watched",
    ]  # fmt: skip
    our_sweep(setting, "overhead", trials + 1, 1, words)
    seen = [line for line in lines(setting.place / "overhead/watched.jsonl") if line["job"] == "trials"]
    costs = [beyond(*pair) for pair in pairwise(seen[WARM_UPS:])]
    what = (
        f"seconds of a trial outside of its epochs, each of {len(costs)} trials of {epochs} epochs of {batches} batches, "
        f"small on {train} faces of {setting.source}, one warm worker of one thread"
    )
    yield Figure(
        "overhead of a trial", what, "s", [cost.wall for cost in costs], TARGET, True, clock="wall time",
        also={"cpu time of the worker": middle([cost.cpu for cost in costs])},
    )  # fmt: skip


def beyond(one: dict[str, Any], following: dict[str, Any]) -> Cost:
    return Cost(*following["entered"]) - Cost(*one["entered"]) - Cost(*one["inside"])
