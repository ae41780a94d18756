"""A long-lived worker: takes a job of the sweep, runs it, tells the study; imports and data stay warm between jobs."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from fer_lab.search import ledger
from fer_lab.search.attempt import IDLE_SECONDS, Attempt, Interrupted
from fer_lab.search.crew import is_controlled, module_name, present
from fer_lab.search.limits import enough
from fer_lab.search.plan import open_alone
from fer_lab.search.preflight import duration
from fer_lab.search.stages import advance, is_over
from fer_lab.search.sweep import JOBS, Sweep

ADVANCE = ".advance.lock"
LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are how SLURM warns of the wall time; submitit would throw an exception into the trial."""
MARGIN_SECONDS = 60.0
"""How long before the wall time a worker leaves."""


class Worker:
    """`Worker(sweep)()` works until the sweep has nothing left for it. Through a Hydra launcher it is the task function."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.module = module_name() or "fer_lab.sweep"  # of the controller, whose command the trials tell
        self.leaving = ""
        self.reaped = 0.0

    def __call__(self, _: DictConfig | None = None) -> None:
        self.open()
        if not self.is_of_this_space():
            return
        with present(self.sweep.folder), self.signals(), self.timer():
            while not self.leaving and self.step():
                pass
        self.sweep.host.settle()
        print(f"{self.sweep.name}: this worker leaves ({self.leaving or 'nothing left to do'})", flush=True)

    def is_of_this_space(self) -> bool:
        """A job that waited in a queue may come to a sweep whose space was changed meanwhile."""
        known = self.studies["trials"].user_attrs.get("space")
        if known is None or known["parameters"] == self.sweep.space.facts()["parameters"]:
            return True
        print(f"{self.sweep.name} searches another space by now; `join {self.sweep.name}` takes the new one")
        return False

    def open(self) -> Worker:
        """Here and not before, since a launcher sends workers to other machines."""
        self.watch = ledger.Watch(self.sweep.options.heartbeat)
        self.studies = self.sweep.studies()
        self.in_training = False
        return self

    def step(self) -> bool:
        """One job, or a short rest; False when there will be no more."""
        self.reap()
        for job in JOBS:
            if self.may_take(job) and self.work(job):
                return True
        if is_over(self.studies) or not self.is_wanted():
            return False
        with suppress(Timeout), FileLock(self.sweep.folder / ADVANCE, timeout=0):
            advance(self.sweep, self.studies)
        time.sleep(IDLE_SECONDS)
        return True

    def is_wanted(self) -> bool:
        """A sweep that is not open yet waits for its controller; without one, whoever is idle opens it."""
        if self.studies["trials"].user_attrs.get("open") or is_controlled(self.sweep.folder):
            return True
        with FileLock(self.sweep.folder / ADVANCE):
            return open_alone(self.sweep, self.studies)

    def may_take(self, job: str) -> bool:
        stopped = self.studies["trials"].user_attrs.get("stop")
        return not stopped and (job != "trials" or bool(self.studies["trials"].user_attrs.get("open")))

    def reap(self) -> None:
        if time.monotonic() - self.reaped < 2:
            return
        for study in self.studies.values():
            for number in self.watch.reap(study, self.sweep.options.retries):
                print(f"{study.study_name}: trial {number} had lost its worker", flush=True)
        self.reaped = time.monotonic()

    def work(self, job: str) -> bool:
        """Takes a job of this kind and sees it through; False where there is none."""
        study, total, begun_only = self.studies[job], 0, False
        if job == "trials":
            has_enough = enough(study, self.sweep.options, self.sweep.directions[0])
            if has_enough and has_enough.kind == "broken":
                study.set_user_attr("broken", has_enough.why)
            if has_enough and has_enough.kind in ("stop", "broken"):
                return False
            total = 0 if has_enough else study.user_attrs["n_trials"]
            begun_only = has_enough is not None and has_enough.kind == "limit"
        trial_id = ledger.take(study, self.sweep.storage, total, begun_only)
        if trial_id is None:
            return False
        self.sweep.storage.set_trial_user_attr(trial_id, "worker", ledger.worker_facts())
        frozen = self.sweep.storage.get_trial(trial_id)
        if ledger.is_surplus(study, frozen, total or 1 << 60):
            ledger.close(study, frozen.number, "surplus")
            return True
        study.sampler = self.sweep.sampler(frozen.number)
        study.pruner = self.sweep.pruner(study)
        trial = Trial(study, trial_id)
        with beating(trial, self.sweep.options.heartbeat):
            Attempt(self, job, trial).run()
        return True

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM, Ctrl-C and SLURM's warning let the running trial go; between trials they are only noted."""

        def leave(number: int, _: Any) -> None:
            self.leaving = signal.Signals(number).name
            if self.in_training:
                self.in_training = False  # once
                raise Interrupted(self.leaving)

        if threading.current_thread() is not threading.main_thread():
            yield  # a launcher's thread: its process gets no signals of ours
            return
        before = {number: signal.signal(number, leave) for number in LEAVE}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def timer(self) -> Iterator[None]:
        """Leaves before the wall time: hydra.sweeper.wall_time after the start, or what SLURM says."""
        seconds = math.inf
        if self.sweep.options.wall_time is not None:
            seconds = duration(self.sweep.options.wall_time)
        if end := os.environ.get("SLURM_JOB_END_TIME"):
            seconds = min(seconds, float(end) - time.time())
        if seconds == math.inf:
            yield
            return
        margin = min(MARGIN_SECONDS, seconds / 10)
        timer = threading.Timer(max(0.0, seconds - margin), os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def beating(trial: Trial, seconds: float) -> Iterator[None]:
    """Says now and then that this worker lives, for those on other machines."""
    stop = threading.Event()
    storage, trial_id = trial.storage, trial._trial_id

    def beat() -> None:
        count = 0
        while not stop.wait(seconds):
            count += 1
            try:
                storage.set_trial_user_attr(trial_id, "beat", count)
            except UpdateFinishedTrialError:
                return
            except Exception as error:  # a store that is away for a while: the next beat may reach it
                print(f"no heartbeat: {error}", flush=True)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(seconds)
