"""The workers of a controller: processes of its own, or jobs of a Hydra launcher."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout
from hydra._internal.utils import get_args
from omegaconf import OmegaConf

from fer_lab.search.errors import SearchFailed
from fer_lab.search.ledger import MISSED_BEATS, is_alive, place, running, trials_of, worker_facts
from fer_lab.search.space.grammar import word
from fer_lab.search.stages import Studies
from fer_lab.search.sweep import Sweep

if TYPE_CHECKING:
    from fer_lab.search.worker import Worker

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
PATIENCE_SECONDS = 60.0
MOST_LOCAL = 4
CONTROLLER = ".controller.lock"
INDEX = "FER_LAB_WORKER"
"""Which of a controller's workers a process is."""


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
        self.here: Worker | None = None
        self.deaths, self.ended_before = 0, 0
        self.pulse, self.felt = "", -math.inf

    def start(self) -> None:
        """Local workers; a launcher waits until there is something to do."""
        (self.sweep.folder / "workers").mkdir(exist_ok=True)
        if not self.launched:
            self.fill()

    def fill(self) -> None:
        """As many workers as wanted: our own, those that an earlier controller left at work, and those who joined."""
        others = {worker["pid"]: worker for worker in living(self.sweep.folder)}
        for process in self.processes.values():
            others.pop(process.pid, None)
        taken = {index for index, process in self.processes.items() if process.poll() in (None, 0)}
        taken |= {worker["index"] for worker in others.values() if worker["index"] is not None}
        free = [index for index in range(self.size) if index not in taken]
        joined = sum(worker["index"] is None for worker in others.values())
        for index in free[: len(free) - joined if len(free) > joined else 0]:
            self.spawn(index)

    def spawn(self, index: int) -> None:
        """The same command line as a worker, with a GPU or a share of the cores of its own."""
        module = module_name()
        program = ["-m", module] if module else [str(Path(sys.argv[0]).absolute())]
        words = ["hydra.sweeper.role=worker", f"hydra.sweeper.name={self.sweep.name}"]
        settings = {**os.environ, INDEX: str(index)}
        if self.gpus:
            settings["CUDA_VISIBLE_DEVICES"] = self.gpus[index % len(self.gpus)]
        else:
            settings.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.size)))
        with self.log(index) as log:
            self.processes[index] = subprocess.Popen(
                [sys.executable, *program, *command_words(), *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=settings, start_new_session=True,
            )  # fmt: skip

    def log(self, index: int) -> IO[bytes]:
        return (self.sweep.folder / "workers" / f"{index}.log").open("ab")

    def launch(self) -> None:
        """Blocks until every job of the launcher has ended, or one of them badly."""
        from hydra.core.plugins import Plugins

        from fer_lab.search.worker import Worker

        try:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self.sweep.context,
                task_function=Worker(replace(self.sweep)),  # a copy without an open store: it travels
                config=self.sweep.compose([word("hydra.sweep.dir", str(self.sweep.folder / "workers"))]),
            )
            launcher.launch([list(self.sweep.words)] * max(1, self.size), initial_job_idx=0)
        except BaseException as error:
            self.failure = error

    def mend(self, studies: Studies) -> None:
        """Another worker for each that died; refuses to go on when they die without getting anything done."""
        if self.launched:
            self.mend_launched(studies)
            return
        if self.size == 0:
            self.work_here()
            return
        ended = sum(trial.state.is_finished() for study in studies.values() for trial in trials_of(study))
        if ended > self.ended_before:
            self.ended_before, self.deaths = ended, 0
        for index, process in list(self.processes.items()):
            if process.poll() not in (None, 0):
                self.deaths += 1
                if self.deaths > 3 * self.size:
                    raise SearchFailed(f"workers die at once; the last one said:\n{self.last_words(index)}")
                del self.processes[index]
        self.fill()
        if all(process.poll() == 0 for process in self.processes.values()) and not self.feels_life(studies):
            self.refuse_to_wait()

    def mend_launched(self, studies: Studies) -> None:
        """Asks the launcher once, unless jobs of an earlier command are still at work. While any job lives the sweep goes
        on, even where the launcher says that another one failed."""
        if self.thread is not None and self.thread.is_alive():
            return
        alive = self.feels_life(studies)
        busy = living(self.sweep.folder) or any(map(running, studies.values()))
        if self.thread is None and not (alive and busy):
            self.felt = -math.inf
            self.thread = threading.Thread(target=self.launch, name="launcher", daemon=True)
            self.thread.start()
        elif not alive:
            self.refuse_to_wait()

    def refuse_to_wait(self) -> NoReturn:
        raise SearchFailed(
            f"the workers ended before the sweep did: {self.failure or 'their time was over'}\n"
            "their trials keep their checkpoints, the same command goes on"
        )

    def feels_life(self, studies: Studies) -> bool:
        """Whether a worker lives: on this machine, or elsewhere by what happens to the trials."""
        trials = [trial for study in studies.values() for trial in study.get_trials(deepcopy=False)]
        pulse = str([(trial.number, trial.state, trial.user_attrs.get("beat")) for trial in trials])
        if pulse != self.pulse:
            self.pulse, self.felt = pulse, time.monotonic()
        patience = MISSED_BEATS * self.sweep.options.heartbeat
        return bool(living(self.sweep.folder)) or time.monotonic() - self.felt < patience

    @property
    def farewell(self) -> str:
        """After Ctrl-C or SIGTERM. A launcher's jobs outlive their controller, on purpose."""
        if self.thread is None:
            return "stopped; running trials keep their checkpoints, the same command goes on"
        return (
            "no longer watched; the launcher's jobs go on by themselves, the same command watches them again, "
            f"`python -m fer_lab.sweep stop {self.sweep.name} now` ends them"
        )

    def work_here(self) -> None:
        """One step of a worker in this process, where a debugger can follow it."""
        from fer_lab.search.worker import Worker

        self.here = self.here or Worker(self.sweep).open()
        self.here.step()
        if self.here.leaving:
            raise KeyboardInterrupt

    def last_words(self, index: int) -> str:
        text = (self.sweep.folder / "workers" / f"{index}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-30:])

    def leave(self) -> None:
        """Tell the workers of our own to hand on what they train, and wait for them."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        if self.launched:
            return
        for worker in living(self.sweep.folder):
            if worker["index"] is not None:  # of an earlier controller; who joined by hand leaves by hand
                with suppress(ProcessLookupError):
                    os.kill(worker["pid"], signal.SIGTERM)
        self.join()

    def join(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        while self.thread is not None and self.thread.is_alive() and living(self.sweep.folder):
            self.thread.join(0.1)  # the launcher itself may wait for jobs that are still in a queue
            if time.monotonic() > deadline:
                break
        if self.here is not None:
            self.sweep.host.settle()


def module_name() -> str | None:
    """What stands behind `python -m`, if this process was started so."""
    return getattr(sys.modules["__main__"].__spec__, "name", None)


def command_words() -> list[str]:
    """This command's words, flags first: argparse takes no words behind flags that stand between words."""
    given = get_args(sys.argv[1:])
    return [*(["--config-dir", given.config_dir] if given.config_dir else []), *given.overrides]


@contextmanager
def present(folder: Path) -> Iterator[None]:
    """While it works, a worker's name stands in the sweep's folder."""
    path = folder / "workers" / f"{platform.node()}-{os.getpid()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    index = os.environ.get(INDEX)
    path.write_text(json.dumps({**worker_facts(), "index": int(index) if index else None}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def living(folder: Path) -> list[dict[str, Any]]:
    """The workers of this machine that are at work on the sweep, whoever started them."""
    found = []
    for path in (folder / "workers").glob("*.json"):
        with suppress(OSError, ValueError):
            worker = json.loads(path.read_text())
            if worker["place"] != place():
                continue
            if is_alive(worker["pid"], worker["started"]):
                found.append(worker)
            else:
                path.unlink()
    return found


def is_controlled(folder: Path) -> bool:
    lock = FileLock(folder / CONTROLLER, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def gpus() -> list[str]:
    """The GPUs that this process may use, without importing torch for it."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [number for number in allowed.split(",") if number not in ("", "-1", "NoDevFiles")]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=False
        )
    except OSError:
        return []
    return (
        [str(number) for number, _ in enumerate(listed.stdout.splitlines())] if listed.returncode == 0 else []
    )
