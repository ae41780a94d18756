"""A sweep of toy trials: the real command line, real processes and stores, and trials of milliseconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
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
    """A folder of runs with the sweep `toy` in it; `run` is subprocess.run."""

    def __init__(self, folder: Path, run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        self.run = run
        self.runs = folder / "runs"
        self.folder = self.runs / "toy"

    def line(self, *words: str, space: tuple[str, ...] = SPACE) -> list[str]:
        flags = words[:2] if words and words[0] == "--config-dir" else ()
        words = (*flags, *space, *words[len(flags) :])
        return [sys.executable, "-m", "fer_lab.sweep", "-m", *words, f"runs_dir={self.runs}"]

    def command(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """status, stop, …"""
        return self.do([sys.executable, "-m", "fer_lab.sweep", command, *words, f"runs_dir={self.runs}"])

    def sweep(
        self, *words: str, space: tuple[str, ...] = SPACE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """With one worker unless told otherwise: each takes seconds to start."""
        told = any(word.startswith(("hydra.sweeper.workers=", "hydra/launcher=")) for word in words)
        return self.do(
            self.line(*words, *([] if told else ["hydra.sweeper.workers=1"]), space=space), **environment
        )

    def do(self, line: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(line, cwd=ROOT, env={**os.environ, "COLUMNS": "200", **environment}, timeout=180)

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

    def study(self, job: str = "", address: str = "sqlite") -> optuna.Study:
        from fer_lab.search.stores import open_storage

        storage = open_storage(address, self.folder)
        return optuna.load_study(study_name=f"toy{job}", storage=storage)

    def trials_of(self, job: str = "") -> list[optuna.trial.FrozenTrial]:
        """Those that count: two workers may have taken the last slot, and one gave its trial back. The store is
        closed again."""
        from fer_lab.search.ledger import trials_of

        study = self.study(job)
        found = trials_of(study)
        study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
        return found

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.trials_of()

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
def place(tmp_path: Path, preloaded) -> Place:
    return Place(tmp_path, preloaded)


BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Server:
    """A PostgreSQL server of the test's own, on a socket in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o755)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        self.call("initdb", "--auth=trust", "--username=sweep", "--no-sync")
        self.call(
            "pg_ctl",
            "start",
            "--wait",
            "--log",
            f"{folder}/log",
            "-o",
            f"-c listen_addresses= -c fsync=off -c unix_socket_directories={folder}",
        )
        self.address = f"postgresql://sweep:secret@/postgres?host={folder}"

    def call(self, program, *words):
        user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        )
        command = [*user, BINARIES[-1] / program, *words]
        environment = os.environ | {"PGDATA": str(self.folder / "data")}
        subprocess.run(command, cwd="/", env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60)

    def restart(self):
        self.call("pg_ctl", "restart", "--wait", "--mode=immediate", "--log", f"{self.folder}/log")


@pytest.fixture(scope="module")
def server():
    """A real PostgreSQL, where Debian's package is installed."""
    if not BINARIES or (os.geteuid() == 0 and not shutil.which("setpriv")):
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="fer-pg-", dir="/tmp") as folder:  # a socket's path is short
        Path(folder).chmod(0o755)
        server = Server(Path(folder) / "server")
        try:
            yield server
        finally:
            server.call("pg_ctl", "stop", "--mode=immediate")
