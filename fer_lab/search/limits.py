"""When a sweep has had enough: no new trials, or none at all."""

from __future__ import annotations

import time
from typing import NamedTuple

from omegaconf import DictConfig
from optuna import Study
from optuna.trial import FrozenTrial

from fer_lab.search.ledger import best_so_far, ended, trials_of

SAME_ERRORS = 3


class Enough(NamedTuple):
    """`kind`: done (the plan is fulfilled), limit, stop (somebody said so), broken (the same error again and again)."""

    kind: str
    why: str


def enough(study: Study, options: DictConfig, direction: str) -> Enough | None:
    """Why no new trial should be started; None while there is work left. Trials that wait or run may go on, but for stop
    and broken."""
    trials, facts = ended(study), study.user_attrs
    if facts.get("stop"):
        return Enough("stop", f"stopped ({facts['stop']})")
    since_then = [
        trial for trial in trials if trial.number >= facts.get("reopened", 0)
    ]  # an old bug may be mended
    if error := same_error(since_then):
        return Enough("broken", f"the last {SAME_ERRORS} trials failed in the same way: {error}")
    if len(trials_of(study)) >= facts.get("n_trials", 0):
        return Enough("done", f"{len(trials)} trials")
    if facts.get("exhausted"):
        return Enough("done", "every configuration was tried")
    if (until := facts.get("until")) and time.time() >= until:
        return Enough("limit", f"timeout={options.timeout} is over")
    spent = sum(trial.user_attrs.get("epochs", 0) for trial in trials if "same_as" not in trial.user_attrs)
    if options.epochs is not None and spent >= options.epochs:
        return Enough("limit", f"{spent} epochs were trained (epochs={options.epochs})")
    best = best_so_far(trials, direction)
    if best is None:
        return None
    if options.target is not None and reached(best.values[0], options.target, direction):
        return Enough("limit", f"{best.values[0]:.4f} reached (target={options.target})")
    since = sum(trial.number > best.number for trial in trials)
    if options.patience is not None and since >= options.patience:
        return Enough("limit", f"{since} trials without a better one (patience={options.patience})")
    return None


def reached(value: float, target: float, direction: str) -> bool:
    return value >= target if direction == "maximize" else value <= target


def same_error(trials: list[FrozenTrial]) -> str | None:
    """What the last trials all failed of, by kind and place of the exception; divergence and memory do not count."""
    last = sorted(trials, key=lambda trial: (trial.datetime_complete is not None, trial.datetime_complete))
    last = last[-SAME_ERRORS:]
    marks = {trial.user_attrs.get("where") for trial in last if trial.user_attrs.get("state") == "failed"}
    if len(last) < SAME_ERRORS or len(marks) != 1 or None in marks:
        return None
    if any(trial.user_attrs.get("state") != "failed" for trial in last):
        return None
    return str(last[-1].user_attrs.get("error"))
