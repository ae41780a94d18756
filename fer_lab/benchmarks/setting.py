"""Where a benchmark works: a temporary folder for runs, tracking and drawn faces; caches that are warm."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from fer_lab.benchmarks.measure import BenchmarkError, Cost, now

DRAWN = {"train": 1280, "validation": 256, "test": 256}


@dataclass(frozen=True)
class Setting:
    """`place` is removed afterwards; `root` is FER2013 as folders, or None for drawn faces in its layout; `output` is for pictures.

    `runs_dir`, `uri`, `experiment`: where a part that leaves a run leaves it."""

    place: Path
    cache_dir: Path
    root: Path | None
    threads: int | None
    output: Path
    drawn: float = 1.0
    runs_dir: Path = Path("runs")
    uri: str = ""
    experiment: str = "fer_lab"

    @property
    def is_real(self) -> bool:
        return self.root is not None

    @cached_property
    def faces(self) -> Path:
        """FER2013 as folders: the real one, or as many drawn faces as `drawn` times DRAWN."""
        if self.root is not None:
            return self.root
        from fer_lab.data.draw import write_fer2013_folders

        counts = {usage: round(self.drawn * count) for usage, count in DRAWN.items()}
        return write_fer2013_folders(self.place / "fer2013", counts)

    @cached_property
    def jaffe(self) -> Path:
        from fer_lab.data.draw import write_jaffe

        return write_jaffe(self.place / "jaffe")

    @property
    def source(self) -> str:
        return "FER2013" if self.is_real else "drawn faces in FER2013's layout (no data.root)"

    def words(self, name: str, *more: str) -> list[str]:
        """What to say to fer_lab.train so that nothing of it lands outside `place` and the cache."""
        store = f"sqlite:///{(self.place / 'mlflow.db').as_posix()}"
        return [
            f"name={name}",
            f"runs_dir={self.place / name}",
            f"cache_dir={self.cache_dir}",
            f"tracking.uri={store}",
            f"threads={'null' if self.threads is None else self.threads}",
            "trainer.accelerator=cpu",
            *more,
        ]

    def config(self, name: str, *more: str) -> DictConfig:
        """The training config of such a run, for use in this process."""
        return hydra.compose("train", overrides=self.words(name, *more))


def run(script: Sequence[str], place: Path) -> tuple[Cost, dict[str, Any]]:
    """Runs `python …` in `place`: its cost, and the JSON object that it may print as its last line."""
    begin, started = now(), time.time()
    command = [sys.executable, *script]
    done = subprocess.run(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    cost, text = now() - begin, done.stdout.strip()
    if done.returncode:
        raise BenchmarkError(f"python {' '.join(script)} ended with {done.returncode}:\n{text[-2000:]}")
    last = text.rpartition("\n")[2]
    return cost, {"started": started} | (json.loads(last) if last.startswith("{") else {})
