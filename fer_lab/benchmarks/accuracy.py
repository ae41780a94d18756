"""What a recipe reaches on FER2013, and what it costs: the train command as typed, once for each seed.

The epoch is chosen on PublicTest, PrivateTest is judged once by the run itself. CPU seconds are user + sys of the
whole process: imports, decoding from a cold cache, training, validation, figures and tracking included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lab.benchmarks.measure import BenchmarkError, Figure
from fer_lab.cli import ROOT, UsageError

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting


def measure(
    setting: Setting, recipe: str, seeds: int, at_once: int, accuracy: float, cpu_seconds: float
) -> Iterator[Figure]:
    if setting.root is None:
        raise UsageError("part=accuracy needs the real FER2013: data.root=PATH")
    words = [f"recipe={recipe}", f"data.root={setting.root}"]
    with ThreadPoolExecutor(at_once) as pool:
        found = list(
            pool.map(
                lambda seed: train(setting.place / f"seed{seed}", [*words, f"seed={seed}"]), range(seeds)
            )
        )
    what = f"recipe={recipe}, {seeds} seeds, {at_once} at once"
    for part, target in (("validation", None), ("test", accuracy)):
        values = [100 * scores[part] for scores, _, _ in found]
        name = {"validation": "PublicTest", "test": "PrivateTest"}[part]
        yield Figure(f"{name} accuracy", what, "%", values, target, at_most=False)
    yield Figure(
        "CPU time of a run",
        f"user + sys of the whole process, {what}",
        "s",
        [cpu for _, cpu, _ in found],
        cpu_seconds,
        at_most=True,
    )
    yield Figure("peak memory of a run", what, "GB", [size for _, _, size in found], 2.0, at_most=True)


def train(place: Path, words: list[str]) -> tuple[dict[str, float], float, float]:
    """Accuracies by part, CPU seconds and peak resident GB of one run, with nothing from an earlier one."""
    places = [
        f"runs_dir={place}/runs",
        f"cache_dir={place}/cache",
        f"tracking.uri=sqlite:///{place}/mlflow.db",
    ]
    place.mkdir(parents=True)
    with (place / "log").open("w") as log:
        line = [sys.executable, "-m", "fer_lab.train", *words, *places]
        process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise BenchmarkError(f"{' '.join(line)} ended with {status}:\n{(place / 'log').read_text()[-2000:]}")
    (figures,) = (place / "runs").glob("*/figures")
    parts = ("validation", "test")
    scores = {
        part: json.loads((figures / f"{part}.json").read_text())["scores"]["accuracy"] for part in parts
    }
    return scores, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
