"""A sweep of toy trials: the real command line, real processes and stores, and trials of milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

ROOT = Path(__file__).resolve().parents[2]
SPACE = (
    "sweeps=none",
    "optimizer=sgd",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))",
    "model.dropout=interval(0,0.6)",
    "trainer.max_epochs=3",
    "hydra.sweeper.name=toy",
    "hydra.sweeper.host=tests.search.toy.ToyHost",
    "hydra.sweeper.confirm=null",
)


class Place:
    """A folder of runs with the sweep `toy` in it."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.folder = self.runs / "toy"

    def line(self, *words: str, space: tuple[str, ...] = SPACE) -> list[str]:
        return [sys.executable, "-m", "fer_lab.sweep", "-m", *words, *space, f"runs_dir={self.runs}"]

    def command(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """status, stop, …"""
        return self.do([sys.executable, "-m", "fer_lab.sweep", command, *words, f"runs_dir={self.runs}"])

    def sweep(
        self, *words: str, space: tuple[str, ...] = SPACE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.do(self.line(*words, space=space), **environment)

    def do(self, line: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "COLUMNS": "200", **environment}
        return subprocess.run(
            line, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=180, check=False
        )

    def start(self, *words: str, space: tuple[str, ...] = SPACE, **environment: str) -> subprocess.Popen[str]:
        settings = {**os.environ, "COLUMNS": "200", **environment}
        return subprocess.Popen(
            self.line(*words, space=space),
            cwd=ROOT,
            env=settings,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def study(self, job: str = "") -> optuna.Study:
        from fer_lab.search.stores import open_storage

        storage = open_storage("sqlite", self.folder)
        return optuna.load_study(study_name=f"toy{job}", storage=storage)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Those that count."""
        from fer_lab.search.ledger import trials_of

        return trials_of(self.study())

    @property
    def epochs(self) -> list[dict]:
        """What was trained, one entry an epoch, in order of time."""
        path = self.runs / "toy.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
