"""The controller: checks a sweep before its first trial, keeps workers alive, shows how it goes, reports at the end.

It trains nothing and imports no torch. When it dies the workers finish alone; the same command picks up again.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

import hydra
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.live import Live

from fer_lab.search import table
from fer_lab.search.crew import CONTROLLER, Crew, command_words, module_name
from fer_lab.search.errors import SearchError, SearchFailed
from fer_lab.search.host import Parent
from fer_lab.search.ledger import best_so_far, ended, running, trials_of
from fer_lab.search.limits import enough
from fer_lab.search.plan import check, follow_space, keep_points, make_plan
from fer_lab.search.preflight import duration
from fer_lab.search.stages import Studies, advance, confirmed, winner_of
from fer_lab.search.sweep import Sweep, without_password

if TYPE_CHECKING:
    from fer_lab.search.report.page import SweepFacts

POLL_SECONDS = 0.5


def control(sweep: Sweep) -> None:
    """Runs the sweep to its end. Raises SearchError before the first trial, SearchFailed for a sweep that broke."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    with alone(sweep), stoppable():
        studies = follow_space(sweep, sweep.studies())
        write_contract(sweep)
        reopen(sweep, studies)
        crew = Crew(sweep)
        try:
            crew.start()
            check(sweep, studies, crew)
            with sweep.host.parent(sweep) as parent:
                begin(sweep, studies, crew, parent)
                watch(sweep, studies, crew, parent)
                finish(sweep, studies, parent)
        except BaseException as error:
            crew.leave()
            if isinstance(error, SearchError):
                studies["trials"].set_user_attr("stop", "it was refused")
            if isinstance(error, KeyboardInterrupt):
                print(f"\n{crew.farewell}", flush=True)
                sys.exit(130)
            raise
        crew.join()
        refuse_success(sweep, studies)


@contextmanager
def alone(sweep: Sweep) -> Iterator[None]:
    """One controller a sweep; its workers may be as many as they like."""
    lock = FileLock(sweep.folder / CONTROLLER, timeout=1)  # a worker may be looking whether there is one
    try:
        lock.acquire()
    except Timeout:
        raise SearchError(
            f"sweep {sweep.name} is being run by another process; `python -m fer_lab.sweep join {sweep.name}` adds "
            f"a worker, `… status {sweep.name}` shows it, hydra.sweeper.name=NAME starts another"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM means what Ctrl-C means."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_contract(sweep: Sweep) -> None:
    """sweep.yaml: all that another terminal or machine needs to join, show or repeat this sweep."""
    facts = {
        "name": sweep.name,
        "command": [without_password(word) for word in command_words()],
        "module": module_name(),
        "storage": without_password(sweep.options.storage),
        "objectives": sweep.objectives,
        "space": {key: OmegaConf.to_container(sweep.options[key]) for key in ("params", "when", "points")},
    }
    part = sweep.folder / "sweep.yaml.part"
    part.write_text(OmegaConf.to_yaml(OmegaConf.create(facts)))
    part.replace(sweep.folder / "sweep.yaml")


def reopen(sweep: Sweep, studies: Studies) -> None:
    """The study may go on: a new total, a new deadline, nobody's word to stop, known settings first."""
    trials = studies["trials"]
    timeout = sweep.options.timeout
    facts = {
        "stop": "",
        "over": "",
        "open": False,
        "checked": 0,
        "n_trials": sweep.n_trials,
        "until": time.time() + duration(timeout) if timeout is not None else 0,
        "space": sweep.space.facts(),
        "pruner": None,  # one that `fit` chose
        "broken": "",
        "reopened": len(trials.get_trials(deepcopy=False)),
        "session": time.time(),
    }
    for key, value in facts.items():
        if trials.user_attrs.get(key) != value:
            trials.set_user_attr(key, value)


def begin(sweep: Sweep, studies: Studies, crew: Crew, parent: Parent) -> None:
    """Says what is about to happen, and lets the workers go."""
    trials = studies["trials"]
    print(make_plan(sweep, studies, crew.size))
    keep_points(sweep, trials)
    if sweep.multi_objective:
        print(
            "several objectives are compared without pruning: no trial can be told the worse before its end"
        )
    parent.params(
        {
            "space": OmegaConf.to_container(sweep.options.params),
            "when": OmegaConf.to_container(sweep.options.when),
        }
    )
    kept = ("sampler", "pruner", "seed", "seeds")
    parent.params({"sweep": {key: sweep.options[key] for key in kept}})
    trials.set_user_attr("open", True)
    advance(sweep, studies)  # nobody has to be launched where nothing is left to do


def watch(sweep: Sweep, studies: Studies, crew: Crew, parent: Parent) -> None:
    """Until the sweep is over: the table, the parent's numbers, workers in place of dead ones."""
    trials, shown, over = studies["trials"], len(ended(studies["trials"])), False
    console = Console()
    screen = Live(console=console, refresh_per_second=2) if console.is_terminal else None
    told = 0  # of trials in the order of their ends; those of an earlier controller go to the parent alone
    with screen or nullcontext():
        while not over:
            over = bool(trials.user_attrs.get("over")) or stopped(
                studies
            )  # asked first: all that ended is told
            done = sorted(ended(trials), key=lambda trial: trial.datetime_complete or datetime.max)
            for count in range(told + 1, len(done) + 1):
                tell(sweep, done[:count], parent)
                if screen is None and count > shown:
                    print(f"{table.line(done[count - 1])}\n    {table.summary(sweep, studies)}", flush=True)
            told = len(done)
            if screen:
                screen.update(table.live(sweep, studies))
            if not over:
                crew.mend(studies)
                time.sleep(POLL_SECONDS if crew.size else 0)


def stopped(studies: Studies) -> bool:
    """Somebody said stop, or the same error came again and again, and nothing runs any more."""
    facts = studies["trials"].user_attrs
    return bool(facts.get("stop") or facts.get("broken")) and not any(map(running, studies.values()))


def tell(sweep: Sweep, done: Sequence[FrozenTrial], parent: Parent) -> None:
    """The last of the ended trials as the parent's numbers; the step is how many there are."""
    found = Counter(table.state_of(trial) for trial in done)
    values = {f"trials/{state}": float(found[state]) for state in table.STATES if found[state]}
    if done[-1].values and not sweep.multi_objective:
        values["score"] = done[-1].values[0]
    best = best_so_far(done, sweep.directions[0])
    if best is not None:
        values["best"] = best.values[0]
    parent.metrics(values, step=len(done))


def finish(sweep: Sweep, studies: Studies, parent: Parent) -> None:
    """The report into the sweep's folder and the parent run; the last lines."""
    from fer_lab.search.report.page import SweepFacts, headline, write_report  # matplotlib

    trials = studies["trials"]
    final = [trial.user_attrs["result"] for trial in ended(studies["final"]) if "result" in trial.user_attrs]
    winner = winner_of(sweep, studies)
    facts = SweepFacts(
        name=sweep.name,
        study=trials,
        objectives=sweep.objectives,
        parameters=sweep.space.parameters,
        winner=winner,
        compose=sweep.compose,
        compose_train=lambda words: hydra.compose(
            sweep.host.config_name, list(words), return_hydra_config=True
        ),
        command=without_password(shlex.join(["python", "-m", str(module_name()), *sys.argv[1:]])),
        code=sweep.host.code(),
        confirm=confirmed(sweep, studies),
        ablation=ended(studies["ablation"]),
        final=final[-1] if final else {},
        estimate=trials.user_attrs.get("estimate", ""),
        seconds=sum(
            trial.user_attrs.get("seconds", 0.0) for study in studies.values() for trial in ended(study)
        ),
        workers=len(
            {str(trial.user_attrs["worker"]) for trial in ended(trials) if "worker" in trial.user_attrs}
        ),
    )
    for path in write_report(facts, sweep.folder):
        parent.artifact(sweep.folder / path)
    parent.tags({"mlflow.note.content": without_pictures((sweep.folder / "report.md").read_text())})
    parent.metrics(numbers(facts), step=len(trials_of(trials)))
    if winner is not None:
        parent.tags({"fer.best_trial": winner.number, "fer.best_run": winner.user_attrs.get("run", "")})
        parent.params({"best": dict(word.partition("=")[::2] for word in winner.user_attrs["overrides"])})
    print(f"\n{headline(facts)}")
    print(
        f"sweep {sweep.name} · report {sweep.folder / 'report.md'} · next: python -m fer_lab.train --config-dir "
        f"{sweep.folder} recipe=best · make ui"
    )


def without_pictures(report: str) -> str:
    """What MLflow can show as the run's description: its pictures are artifacts, which a description cannot name."""
    return "\n".join(part for part in re.split(r"\n(?=## )", report) if "![" not in part)


def numbers(facts: SweepFacts) -> dict[str, float]:
    """The confirmed score and what the winner reached on the test faces."""
    found = {key: value for key, value in facts.final.items() if isinstance(value, float)}
    if facts.verdict is not None:
        first = facts.verdict.winner
        found |= {"confirmed": first.mean, "confirmed_low": first.low, "confirmed_high": first.high}
    return found


def refuse_success(sweep: Sweep, studies: Studies) -> None:
    """A sweep that broke, or found nothing, is a failed command."""
    trials = ended(studies["trials"])
    has_enough = enough(studies["trials"], sweep.options, sweep.directions[0])
    if has_enough and has_enough.kind == "broken":
        failed = [trial for trial in trials if "traceback" in trial.user_attrs]
        last = max(failed, key=lambda trial: trial.datetime_complete or datetime.min)
        raise SearchFailed(
            f"{last.user_attrs['traceback']}\n{has_enough.why}; logs in {sweep.folder / 'workers'}"
        )
    if trials and not any(trial.state.name == "COMPLETE" for trial in trials):
        raise SearchFailed(
            f"none of {len(trials)} trials ended with a score; see {sweep.folder / 'report.md'}"
        )
