"""A host without faces: milliseconds a trial, real processes, and every mishap that a trial can have.

Its config is the real one; `name` says what goes wrong, TOY_EPOCH_SECONDS how long an epoch lasts. What it did stands
in runs/toy.jsonl, one line an epoch; its checkpoints are files that hold the number of epochs.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig


class Diverged(RuntimeError):
    pass


class OutOfMemoryError(RuntimeError):
    pass


class Outcome(NamedTuple):
    score: float
    state: str
    run: str
    epochs: int
    seconds: float
    metrics: dict[str, float]


def score(config: DictConfig, epoch: int) -> float:
    """Best at lr 0.01 and dropout 0.3; climbs over the epochs."""
    import math

    peak = 1.0 - 0.1 * (math.log10(config.optimizer.lr) + 2) ** 2 - (config.model.dropout - 0.3) ** 2
    return peak * (1 - 0.5**epoch) + 1e-4 * config.seed


class Record:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, kind: str, values: Any) -> None:
        with (self.folder / "parent.jsonl").open("a") as file:
            file.write(json.dumps([kind, values], default=str) + "\n")

    def tags(self, values: Any) -> None:
        self.write("tags", values)

    def params(self, values: Any) -> None:
        self.write("params", values)

    def metrics(self, values: Any, step: int) -> None:
        self.write("metrics", {"step": step, **values})

    def artifact(self, path: Any) -> None:
        self.write("artifact", str(path))


class ToyHost:
    config_name = "train"

    def code(self) -> str:
        return "toy code"

    def trial(self, config: DictConfig, job: Any) -> Outcome:
        runs = Path(config.runs_dir)
        runs.mkdir(parents=True, exist_ok=True)
        mishap(str(config.name), config)
        run = (
            f"toy-{config.optimizer.lr:.6g}-{config.model.dropout:.4g}-{config.data.batch_size}-{config.seed}"
        )
        checkpoint = runs / f"{run}.ckpt"
        begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
        epochs = int(config.trainer.max_epochs)
        state = "finished"
        for epoch in range(begin + 1, epochs + 1):
            time.sleep(float(os.environ.get("TOY_EPOCH_SECONDS", 0)))
            line = {"run": run, "epoch": epoch, "pid": os.getpid(), "job": job.name, "time": time.time()}
            with (runs / "toy.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            checkpoint.write_text(str(epoch))
            if job.report(epoch, score(config, epoch)) and epoch < epochs:
                state, epochs = "pruned", epoch
                break
        value = float("nan") if config.name == "no_number" else score(config, epochs)
        metrics = {"val/accuracy": value, "cost/parameters": float(config.data.batch_size)}
        return Outcome(value, state, run, epochs, 0.0, metrics)

    def probe(self, config: DictConfig) -> dict[str, Any]:
        if config.name == "bad_probe":
            raise ValueError("monitor=val/acuracy is not logged; choices: val/accuracy")
        return {
            "seconds_per_epoch": 0.01, "once_seconds": 0.0, "memory_bytes": 1_000_000, "parameters": 10,
            "epochs": int(config.trainer.max_epochs), "logged": ["val/accuracy"],
        }  # fmt: skip

    def final(self, config: DictConfig, sweep_name: str) -> dict[str, Any]:
        return {
            "test/accuracy": score(config, int(config.trainer.max_epochs)),
            "registered": "models:/toy@champion",
        }

    def as_it_was(self, folder: Path) -> list[str]:
        return ["threads=3"]

    def check(self, config: DictConfig, run: str) -> bool:
        print(f"checked {run}")
        return config.name != "unsteady"

    @contextmanager
    def parent(self, sweep: Any) -> Any:
        yield Record(sweep.folder)

    def settle(self) -> None:
        pass


def mishap(kind: str, config: DictConfig) -> None:
    if kind == "raise":
        raise RuntimeError("the same bug in every trial")
    if kind == "raise_sgd" and "SGD" in config.optimizer._target_:
        raise RuntimeError("sgd is broken")
    if kind == "diverge" and config.optimizer.lr > 0.05:
        raise Diverged("the training loss is nan")
    if kind == "memory" and config.data.batch_size > 100:
        raise OutOfMemoryError("CUDA out of memory")
    if kind == "exit":
        raise SystemExit(3)
    if kind == "die":
        os.kill(os.getpid(), 9)
