"""The workers of a controller: processes of its own, or jobs of a Hydra launcher."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from omegaconf import OmegaConf

from fer_lab.search.errors import SearchFailed
from fer_lab.search.ledger import trials_of
from fer_lab.search.stages import Studies
from fer_lab.search.sweep import Sweep

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
PATIENCE_SECONDS = 60.0
MOST_LOCAL = 4


class Crew:
    """Local workers live in sessions of their own: Ctrl-C reaches the controller alone, which tells them to leave."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.gpus = gpus()
        wanted = sweep.options.workers
        self.size = wanted if wanted is not None else len(self.gpus) or min(MOST_LOCAL, os.cpu_count() or 1)
        self.launched = OmegaConf.select(sweep.config, "hydra.launcher._target_") != BASIC
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.deaths, self.ended_before = 0, 0

    def start(self) -> None:
        (self.sweep.folder / "workers").mkdir(exist_ok=True)
        if self.launched:
            self.thread = threading.Thread(target=self.launch, name="launcher", daemon=True)
            self.thread.start()
        elif self.size == 0:
            self.thread = None
        else:
            for index in range(self.size):
                self.spawn(index)

    def spawn(self, index: int) -> None:
        """The same command line as a worker, with a GPU or a share of the cores of its own."""
        main = sys.modules["__main__"]
        module = getattr(main.__spec__, "name", None)
        program = ["-m", module] if module else [str(Path(sys.argv[0]).absolute())]
        words = ["hydra.sweeper.role=worker", f"hydra.sweeper.name={self.sweep.name}"]
        settings = dict(os.environ)
        if self.gpus:
            settings["CUDA_VISIBLE_DEVICES"] = self.gpus[index % len(self.gpus)]
        else:
            settings.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.size)))
        with self.log(index) as log:
            self.processes[index] = subprocess.Popen(
                [sys.executable, *program, *sys.argv[1:], *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=settings, start_new_session=True,
            )  # fmt: skip

    def log(self, index: int) -> IO[bytes]:
        return (self.sweep.folder / "workers" / f"{index}.log").open("ab")

    def launch(self) -> None:
        """Blocks until every job of the launcher has ended."""
        from hydra.core.plugins import Plugins

        from fer_lab.search.worker import Worker

        try:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self.sweep.context, task_function=Worker(self.sweep), config=self.sweep.config
            )
            launcher.launch([list(self.sweep.words)] * max(1, self.size), initial_job_idx=0)
        except BaseException as error:
            self.failure = error

    def mend(self, studies: Studies) -> None:
        """Another worker for each that died; refuses to go on when they die without getting anything done."""
        if self.size == 0 and not self.launched:
            self.work_here()
            return
        if self.thread is not None and not self.thread.is_alive():
            raise SearchFailed(f"the launcher's workers ended before the sweep did: {self.failure or 'no reason given'}")
        ended = sum(trial.state.is_finished() for study in studies.values() for trial in trials_of(study))
        if ended > self.ended_before:
            self.ended_before, self.deaths = ended, 0
        for index, process in list(self.processes.items()):
            if process.poll() in (None, 0):
                continue
            self.deaths += 1
            if self.deaths > 3 * self.size:
                raise SearchFailed(f"workers die at once; the last one said:\n{self.last_words(index)}")
            self.spawn(index)

    def work_here(self) -> None:
        from fer_lab.search.worker import Worker

        worker = Worker(self.sweep)
        worker()
        if worker.leaving:
            raise KeyboardInterrupt

    def last_words(self, index: int) -> str:
        text = (self.sweep.folder / "workers" / f"{index}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-30:])

    def leave(self) -> None:
        """Tell the workers to hand on what they train, and wait for them."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        self.join()

    def join(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        if self.thread is not None:
            self.thread.join(max(0.1, deadline - time.monotonic()))


def gpus() -> list[str]:
    """The GPUs that this process may use, without importing torch for it."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [number for number in allowed.split(",") if number not in ("", "-1", "NoDevFiles")]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return []
    return [str(number) for number, _ in enumerate(listed.stdout.splitlines())] if listed.returncode == 0 else []

