"""What the tests share: the command line as a user types it, and where the real FER2013 may be."""

from __future__ import annotations

import os

# Triton decides when it is imported, and torch may import it, whether its kernels are interpreted: tests have no GPU.
# What compiles them runs in another process, without this (`command` and tests/kernels do).
os.environ.setdefault("TRITON_INTERPRET", "1")
# Several processes run the tests: threads that wait for each other's turn on a busy core cost many times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.preloaded import Preloaded

ROOT = Path(__file__).resolve().parent.parent
WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes that share the tests


DEAREST = (
    "test_readme.py", "test_engine.py", "test_matrix.py", "test_train.py", "test_sweep_command.py", "test_bench.py",
    "test_distributed.py", "test_predict.py", "test_export.py", "test_conf.py", "test_trial.py", "test_joint.py",
    "test_folds.py", "test_hopper.py",
)  # fmt: skip
"""Half a minute and more each, the longest first: what begins last would keep one worker at work when others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are handed to the workers in this order, by --no-loadscope-reorder; xdist's own goes by numbers of tests."""
    places = {name: place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder for what is made once, for all workers of these tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if WORKER else base


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory, shared) -> Callable[..., subprocess.CompletedProcess[str]]:
    """subprocess.run for a command of ours, without its imports of other people's packages."""
    owner = os.getppid() if WORKER else os.getpid()
    return Preloaded(tmp_path_factory.mktemp("preloaded"), shared, owner).run


@pytest.fixture(scope="session")
def empty_store(shared) -> Path:
    """An MLflow database as its first run makes it: a second of migrations, copied where a test starts a store."""
    from fer_lab.tracking.store import connect

    path = shared / "store/mlflow.db"
    connect(f"sqlite:///{path}", "fer_lab")
    return path


@pytest.fixture
def command(tmp_path: Path, preloaded, empty_store):
    """Runs `python -m fer_lab.<entry> …` with its runs, caches and tracking store below tmp_path."""

    def run(entry: str, *arguments: str, store: bool = True, wait: bool = True, **environment: str):
        places = [
            f"runs_dir={tmp_path}/runs",
            *([] if entry == "predict" else [f"cache_dir={tmp_path}/cache"]),
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        ]
        if store and not (tmp_path / "mlflow.db").exists():
            shutil.copy(empty_store, tmp_path / "mlflow.db")
        line = [sys.executable, "-m", f"fer_lab.{entry}", *(places if store else []), *arguments]
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        settings = {**inherited, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        if not wait:
            return subprocess.Popen(
                line, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        return preloaded(line, cwd=ROOT, env=settings)

    return run


@pytest.fixture(scope="session")
def fer2013() -> Path:
    """The real FER2013 as folders: FER2013=PATH, or the archive in ../shared unpacked below the cache."""
    if place := os.environ.get("FER2013"):
        return Path(place)
    archive = ROOT.parent / "shared/data/fer2013.zip"
    if not archive.exists():
        pytest.skip("no FER2013 here: set FER2013=PATH to its folder")
    target = ROOT / "cache/fer2013"
    with FileLock(ROOT / "cache/fer2013.lock"):  # several processes run the tests
        if not target.exists():
            import zipfile

            with zipfile.ZipFile(archive) as packed:
                packed.extractall(ROOT / "cache/unpacking")
            (ROOT / "cache/unpacking/fer2013").rename(target)
    return target
