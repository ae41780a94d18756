"""What `python -m fer_lab.sweep status|stop|report|rerun` do with a sweep that exists."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from rich.console import Console

from fer_lab.search import table
from fer_lab.search.errors import SearchError, SearchFailed
from fer_lab.search.ledger import running, trials_of
from fer_lab.search.sweep import Sweep


def play(context: HydraContext, config: DictConfig, words: list[str]) -> None:
    """Reads the sweep and does what hydra.sweeper.role says."""
    sweep = Sweep.read(context, config, words)
    ROLES[sweep.options.role](sweep)


def status(sweep: Sweep) -> None:
    studies = sweep.studies()
    Console().print(table.live(sweep, studies))
    facts = studies["trials"].user_attrs
    state = facts.get("over") or (f"stopped: {facts['stop']}" if facts.get("stop") else "not over")
    print(f"sweep {sweep.name} · {state} · {sweep.folder}")


def stop(sweep: Sweep) -> None:
    """Running trials are finished; with `now` they are handed back at their next epoch, with their checkpoints."""
    study = sweep.studies()["trials"]
    study.set_user_attr("stop", "now" if sweep.options.now else "after the running trials")
    count = len(running(study))
    what = "stop at their next epoch and keep their checkpoints" if sweep.options.now else "are finished"
    print(f"sweep {sweep.name} stops: {count} running trials {what}; the same command goes on later")


def report(sweep: Sweep) -> None:
    from fer_lab.search.control import finish

    studies = sweep.studies()
    with sweep.host.parent(sweep) as parent:
        finish(sweep, studies, parent)


def rerun(sweep: Sweep) -> None:
    """The trial's own command line, as it would be typed, in place of this process."""
    trial = trial_of(sweep)
    module = getattr(sys.modules["__main__"].__spec__, "name", "fer_lab.sweep")
    run = trial.user_attrs.get("run", "")
    words = [
        *sweep.words,
        *trial.user_attrs["overrides"],
        *sweep.host.as_it_was(Path(sweep.config.runs_dir) / run),
    ]
    line = ["-m", module, *sweep.flags, "hydra.mode=RUN", *words, "rerun=true"]
    print(f"python {shlex.join(line)}", flush=True)
    os.execv(sys.executable, [sys.executable, *line])


def check(sweep: Sweep) -> None:
    from fer_lab.search.attempt import as_hydra_job

    trial = trial_of(sweep)
    run = trial.user_attrs.get("run")
    if not run:
        raise SearchError(f"trial {trial.number} left no run to compare with ({table.state_of(trial)})")
    config = sweep.compose(trial.user_attrs["overrides"])
    with as_hydra_job(config) as plain:
        same = sweep.host.check(plain, run)
    if not same:
        raise SearchFailed(f"trial {trial.number} of {sweep.name} does not repeat itself")


def trial_of(sweep: Sweep) -> FrozenTrial:
    wanted = sweep.options.trial
    for trial in trials_of(sweep.studies()["trials"]):
        if trial.number == wanted and "overrides" in trial.user_attrs:
            return trial
    raise SearchError(f"sweep {sweep.name} has no trial {wanted}; `status {sweep.name}` shows them")


def work(sweep: Sweep) -> None:
    from fer_lab.search.worker import Worker

    Worker(sweep)()


def control(sweep: Sweep) -> None:
    from fer_lab.search.control import control

    control(sweep)


ROLES = {
    "controller": control, "worker": work, "status": status, "stop": stop, "report": report, "rerun": rerun,
    "check": check,
}  # fmt: skip
