"""python -m tests.preloaded SOCKET OWNER: a process that has imported other people's packages, and forks for each command.

A command of the tests spends most of its time on importing torch, Lightning and MLflow, which nothing here changes.
What is forked is otherwise a process of its own: fer_lab itself is imported in it, it has its own arguments,
environment, files and exit code, and it ends as any Python does. What only a fresh process can show (--help, a kill,
the README's first command) is started afresh by its test.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

PACKAGES = (
    *("torch", "pytorch_lightning", "torchmetrics.functional.classification", "torchvision.models"),
    *(
        "mlflow.store.tracking.sqlalchemy_store",
        "alembic.command",
        "sklearn.model_selection",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "scipy.stats",
        "hydra",
        "rich",
    ),
)


class Preloaded:
    """The client's side; `run` is subprocess.run for `[python, -m, module, …]`."""

    def __init__(self, folder: Path, shared: Path, owner: int) -> None:
        """`folder` is ours alone; whoever comes first starts the process, for all who share `shared`, until the process
        `owner` is gone."""
        self.address, self.folder = shared / "socket", folder
        settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        with FileLock(shared / "preloaded.lock"):
            if (shared / "preloaded.log").exists():
                return
            with (shared / "preloaded.log").open("w") as log:
                subprocess.Popen(
                    [sys.executable, "-m", "tests.preloaded", str(self.address), str(owner)],
                    cwd=Path(__file__).resolve().parent.parent,
                    env=settings | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "DO_NOT_TRACK"), "1"),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip

    def run(
        self, line: list[str], cwd: Path, env: dict[str, str], timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        out, err = self.folder / "out", self.folder / "err"
        asked = {"line": line, "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
        with socket.socket(socket.AF_UNIX) as connection:
            self.connect(connection)
            connection.settimeout(timeout)
            connection.sendall(json.dumps(asked).encode() + b"\n")
            answer = connection.makefile().readline()
        code = int(answer) if answer else -1
        return subprocess.CompletedProcess(line, code, out.read_text(), err.read_text())

    def connect(self, connection: socket.socket) -> None:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                return connection.connect(str(self.address))
            if time.monotonic() > deadline:
                said = self.address.with_name("preloaded.log").read_text()
                raise RuntimeError(f"the process that runs the tests' commands did not start: {said}")
            time.sleep(0.05)


def serve(address: str, owner: int) -> None:
    """Until the process `owner` is gone."""
    for package in PACKAGES:
        importlib.import_module(package)
    assert threading.active_count() == 1, "a fork of a process with threads could wait for ever"
    gc.freeze()  # what is shared with the forks is not walked through in them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(1)
        while lives(owner):
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                if os.fork() == 0:  # several ask at once
                    listener.close()
                    answer(connection)
                connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def answer(connection: socket.socket) -> NoReturn:
    """Waits for the command in a process of its own, as a shell does, and tells its exit code."""
    code = 1
    try:
        connection.settimeout(None)
        asked = json.loads(connection.makefile().readline())
        child = os.fork()
        if child == 0:
            connection.close()
            become(asked)
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        code = 0
    finally:
        os._exit(code)


def become(asked: dict[str, Any]) -> NoReturn:
    """This process is now `python -m module arguments`."""
    for path, descriptor in ((os.devnull, 0), (asked["out"], 1), (asked["err"], 2)):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags), descriptor)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    _, _, module, *arguments = asked["line"]
    sys.argv = [module, *arguments]
    sys.orig_argv[:] = asked["line"]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # as Python ends, without taking every package apart
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
