"""Many trials of nothing: whether the store, the sampler and the tracking stay as quick as they begin.

The trials train nothing, but each is a run with a record, sent to MLflow as a child of the sweep's own run. Then
MLflow's server is asked what its page of that run asks for.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from fer_lab.benchmarks.measure import BenchmarkError, Figure, rounded
from fer_lab.sweep import Host

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting
    from fer_lab.search.host import Job
    from fer_lab.train import Result

TARGET = 1.3
PAGE_TARGET = 5.0
TROUBLE = re.compile("locked|OperationalError|Traceback", re.IGNORECASE)
VIEWS = 3
"""Looks at the page; the first also opens the database."""


class Empty(Host):
    """Trials without a training: a record with one number, forwarded as any other."""

    def probe(self, config: DictConfig) -> dict[str, Any]:
        return {"seconds_per_epoch": 0.001, "once_seconds": 0.0, "memory_bytes": 1, "epochs": 1}

    def trial(self, config: DictConfig, job: Job) -> Result:
        from fer_lab.fit import Result
        from fer_lab.tracking.forward import tracked
        from fer_lab.tracking.record import open_run

        score, metric = float(config.model.dropout), str(config.monitor)
        name = f"empty-{job.tags['fer.trial']}"
        with open_run(config.runs_dir, name) as record:
            record.tags({"mlflow.runName": job.name, "fer.parent": job.parent, **job.tags})
            with tracked(record, config.tracking.uri, config.tracking.experiment, linger=True):
                record.metrics({metric: score}, step=1)
        return Result(score, "finished", name, 1, 0.0, {metric: score})

    def final(self, config: DictConfig, sweep_name: str) -> dict[str, Any]:
        return {}


def measure(setting: Setting, trials: int, workers: int) -> Iterator[Figure]:
    from fer_lab.benchmarks.searches import our_sweep

    words = [
        "sweeps=none", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "model.dropout=interval(0,0.5)",
        "hydra.sweeper.pruner=none", "hydra.sweeper.host=fer_lab.benchmarks.store.Empty", "hydra.sweeper.keep=null",
    ]  # fmt: skip
    search = our_sweep(setting, "store", trials, workers, words)
    folder = setting.place / "store/store"
    refuse_trouble(folder)
    ends = [trial["ended"] for trial in search.trials]
    quarter = trials // 4
    first, last = ends[quarter] - ends[0], ends[-1] - ends[-1 - quarter]
    what = f"{trials} trials of nothing, tracked, {workers} workers, TPE, SQLite: seconds of {quarter} trials"
    also = {"trials_per_second": rounded((trials - 1) / (ends[-1] - ends[0])), "errors of locks": 0}
    yield Figure(
        "trials of nothing, last quarter / first", what, "s", [last], TARGET, True, [first], "wall time", also
    )
    yield Figure(
        f"MLflow's page of a sweep of {trials} trials", "seconds of the server for the parent run, its children and its files",
        "s", page(setting.place / "store", trials), PAGE_TARGET, True, clock="wall time",
    )  # fmt: skip


def refuse_trouble(folder: Path) -> None:
    """A lock that somebody waited for in vain is in a worker's log."""
    for log in sorted((folder / "workers").glob("*.log")):
        if found := TROUBLE.search(text := log.read_text()):
            raise BenchmarkError(f"{log.name}: {text[max(0, found.start() - 500) : found.end() + 500]}")


def page(place: Path, children: int) -> list[float]:
    """Seconds of each look at the parent's page."""
    took = []
    with server(place) as ask:
        experiment = ask("experiments/get-by-name?experiment_name=bench")["experiment"]["experiment_id"]
        (parent,) = ask(
            "runs/search", experiment_ids=[experiment], filter="tags.`fer.kind` = 'sweep'"
        )["runs"]  # fmt: skip
        run = parent["info"]["run_id"]
        for _ in range(VIEWS):
            begin = time.perf_counter()
            ask(f"runs/get?run_id={run}")
            ask(f"artifacts/list?run_id={run}")
            found = ask(
                "runs/search", experiment_ids=[experiment], filter=f"tags.`mlflow.parentRunId` = '{run}'", max_results=5000
            )["runs"]  # fmt: skip
            took.append(time.perf_counter() - begin)
            if len(found) != children:
                raise BenchmarkError(f"the sweep's page shows {len(found)} of {children} trials")
    return took


@contextmanager
def server(place: Path) -> Iterator[Any]:
    """`python -m fer_lab.ui` on the sweep's database, and a way to ask it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "fer_lab.ui", "--port", str(port), "--uri", f"sqlite:///{place}/mlflow.db"]
    with (place / "ui.log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)

    def ask(what: str, **body: Any) -> dict[str, Any]:
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/{what}"
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    try:
        wait_for(port, process)
        yield ask
    finally:
        process.terminate()
        process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchmarkError("python -m fer_lab.ui did not start")
        time.sleep(0.2)
