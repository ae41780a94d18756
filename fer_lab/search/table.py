"""What a sweep looks like while it runs: one table in a terminal, one line a trial elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from optuna import Study
from optuna.trial import FrozenTrial
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fer_lab.search.ledger import best_so_far, trials_of
from fer_lab.search.sweep import Sweep

STATES = ("complete", "pruned", "diverged", "out_of_memory", "failed")


def state_of(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("state") or trial.state.name.lower())


def counts(study: Study) -> Counter[str]:
    return Counter(state_of(trial) for trial in trials_of(study))


def summary(sweep: Sweep, studies: Mapping[str, Study]) -> str:
    """done / running / pruned / failed of the total, the best so far, and time left, on one line."""
    trials = studies["trials"]
    found, total = counts(trials), trials.user_attrs.get("n_trials", sweep.n_trials)
    done = sum(found[state] for state in STATES)
    parts = [f"{done}/{total} trials"]
    parts += [f"{found[state]} {state.replace('_', ' ')}" for state in (*STATES, "running") if found[state]]
    for job in ("confirm", "ablation"):
        others = counts(studies[job])
        if others:
            parts.append(f"{job} {others['complete']}/{others.total()}")
    best = best_so_far(trials_of(trials), sweep.directions[0])
    if best is not None:
        parts.append(f"best {best.values[0]:.4f} (trial {best.number})")
    left = seconds_left(sweep, studies)
    return " · ".join([*parts, f"about {timedelta(seconds=round(left))} left"] if left else parts)


def seconds_left(sweep: Sweep, studies: Mapping[str, Study]) -> float | None:
    """From what trials took so far; confirmation counted as whole trials."""
    trials = studies["trials"]
    known = [trial for trial in trials_of(trials) if "seconds" in trial.user_attrs]
    if not known or trials.user_attrs.get("over"):
        return None
    total = trials.user_attrs.get("n_trials", sweep.n_trials)
    mean = sum(trial.user_attrs["seconds"] for trial in known) / len(known)
    whole = max(trial.user_attrs["seconds"] for trial in known)
    plan = sweep.options.confirm
    confirms = plan.top * plan.seeds if plan and not sweep.multi_objective else 0
    confirms -= sum(state_of(trial) == "complete" for trial in trials_of(studies["confirm"]))
    ended = sum(trial.state.is_finished() for trial in trials_of(trials))
    workers = max(1, trials.user_attrs.get("checked", 1))
    return (max(0, total - ended) * mean + max(0, confirms) * whole) / workers


def live(sweep: Sweep, studies: Mapping[str, Study]) -> Group:
    """The whole sweep: what runs, the best five, the summary."""
    table = Table(box=None, pad_edge=False, expand=True)
    for title in ("trial", "state", "epoch", "score", "since"):
        table.add_column(title, no_wrap=True)
    table.add_column("settings", overflow="ellipsis", no_wrap=True, ratio=1)
    for job in ("preflight", "confirm", "ablation", "final", "trials"):
        for trial in trials_of(studies[job]):
            if state_of(trial) == "running":
                table.add_row(*cells(trial, job), style="bold")
    sign = 1 if sweep.directions[0] == "maximize" else -1
    complete = [trial for trial in trials_of(studies["trials"]) if trial.state.name == "COMPLETE"]
    for trial in sorted(complete, key=lambda trial: -sign * trial.values[0])[:5]:
        table.add_row(*cells(trial, "trials"))
    return Group(table, Text(summary(sweep, studies)))


def cells(trial: FrozenTrial, job: str) -> tuple[str, ...]:
    values = trial.values or list(trial.intermediate_values.values())[-1:]
    score = " ".join(f"{value:.4f}" for value in values)
    since = (trial.datetime_complete or datetime.now()) - (trial.datetime_start or datetime.now())
    number = str(trial.number) if job == "trials" else f"{job} {trial.number}"
    words = " ".join(trial.user_attrs.get("overrides", []))
    return number, state_of(trial), str(trial.last_step or ""), score, str(since).split(".")[0], words


def line(trial: FrozenTrial) -> str:
    """An ended trial, for a log."""
    score = " ".join(f"{value:.4f}" for value in trial.values or [])
    same = f", as trial {trial.user_attrs['same_as']}" if "same_as" in trial.user_attrs else ""
    words = " ".join(trial.user_attrs.get("overrides", []))
    error = f"  {trial.user_attrs['error']}" if "error" in trial.user_attrs else ""
    clock = time.strftime("%H:%M:%S")
    return f"{clock} trial {trial.number} {state_of(trial)} {score}{same}  {words}{error}"
