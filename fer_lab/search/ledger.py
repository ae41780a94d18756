"""Who trains which trial: taking, handing on, ending; without a lock, for any number of workers on any store.

Trials carry their story in user attributes (`state`, `worker`, `beat`, `continues`, …). A trial whose worker died or
was interrupted gets a continuation, a new trial with its parameters and its intermediate values, before it is ended
itself: whoever dies in between leaves nothing behind but work that is done again. What could happen twice (two workers
take the last slot, two find the same dead worker) is decided by the trial's number: the lowest counts.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna import Study, create_trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

VOID = ("lost", "interrupted", "surplus")
"""States of trials that do not count: a continuation, or another trial, stands for them."""
MISSED_BEATS = 6


def trials_of(study: Study) -> list[FrozenTrial]:
    """All that count, in order, running and waiting ones included."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("state") not in VOID]


def ended(study: Study) -> list[FrozenTrial]:
    return [trial for trial in trials_of(study) if trial.state.is_finished()]


def waiting(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def unfinished(study: Study) -> list[FrozenTrial]:
    """Waiting and running ones at one moment: asked for one after the other, a trial could slip through."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))


def take(study: Study, storage: BaseStorage, total: int, begun_only: bool = False) -> int | None:
    """The id of a trial that is now ours: one that waits, else a new one while fewer than `total` count.

    `begun_only`: nothing new at all, only what somebody had begun.
    """
    for trial in waiting(study):
        if begun_only and "continues" not in trial.user_attrs:
            continue
        try:
            won = storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            continue
        if won:
            return trial._trial_id
    if len(trials_of(study)) >= total:
        return None
    return storage.create_new_trial(study._study_id)


def is_surplus(study: Study, trial: FrozenTrial, total: int) -> bool:
    """Whether others came first: to the last slot, to the same dead worker's trial, or to the same job."""
    others = [other for other in trials_of(study) if other.number < trial.number]
    if (before := trial.user_attrs.get("continues")) is not None:
        return any(other.user_attrs.get("continues") == before for other in others)
    if (job := trial.user_attrs.get("job")) is not None:
        return any(other.user_attrs.get("job") == job for other in others)
    return len(others) >= total


def twins(study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """Earlier trials of the same configuration that are trained or being trained, not copies or failures."""
    return [
        other
        for other in trials_of(study)
        if other.number < trial.number
        and other.params == trial.params
        and other.distributions.keys() == trial.distributions.keys()
        and "same_as" not in other.user_attrs
        and other.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    ]


def note(trial: Trial, **facts: Any) -> None:
    for key, value in facts.items():
        trial.set_user_attr(key, value)


def close(study: Study, number: int, state: str) -> None:
    """End a trial that does not count; nothing happens where it has ended already."""
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    try:
        study._storage.set_trial_user_attr(trial_id, "state", state)
        study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        pass


def hand_on(study: Study, trial: FrozenTrial, state: str) -> None:
    """Let another worker continue a running trial from its checkpoint."""
    if not any(other.user_attrs.get("continues") == trial.number for other in trials_of(study)):
        attempts = trial.user_attrs.get("attempts", 0) + (state == "lost")
        kept = {
            key: value for key, value in trial.user_attrs.items() if key not in ("worker", "beat", "state")
        }
        study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**kept, "continues": trial.number, "attempts": attempts},
                system_attrs=trial.system_attrs,
                intermediate_values=trial.intermediate_values,
            )
        )
    close(study, trial.number, state)


class Watch:
    """Finds trials whose worker is dead: at once on this machine, elsewhere after some beats were missed."""

    def __init__(self, heartbeat: float) -> None:
        self.patience = MISSED_BEATS * heartbeat
        self.seen: dict[tuple[str, int], tuple[Any, float]] = {}

    def reap(self, study: Study, retries: int) -> list[int]:
        """Hands on what dead workers left, up to `retries` times each; the numbers of those trials."""
        dead = [trial for trial in running(study) if self.is_dead(study, trial)]
        for trial in dead:
            if trial.user_attrs.get("attempts", 0) < retries:
                hand_on(study, trial, "lost")
            else:
                self.give_up(study, trial)
        return [trial.number for trial in dead]

    def is_dead(self, study: Study, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        if worker and worker["place"] == place():
            return not is_alive(worker["pid"], worker["started"])
        key, beat = (study.study_name, trial.number), (trial.user_attrs.get("beat"), worker)
        before, since = self.seen.get(key, (None, 0.0))
        if before != beat or since == 0.0:
            self.seen[key] = (beat, time.monotonic())
            return False
        return time.monotonic() - since > self.patience

    def give_up(self, study: Study, trial: FrozenTrial) -> None:
        times = trial.user_attrs.get("attempts", 0) + 1
        error = f"its worker died {times} times (out of memory?)"
        with suppress(UpdateFinishedTrialError):  # another one gave it up at the same moment
            study._storage.set_trial_user_attr(trial._trial_id, "error", error)
            close(study, trial.number, "failed")


def place() -> str:
    """This machine, or container: where a process number means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        boot, space = "", 0
    return f"{platform.node()} {boot} {space}"


def worker_facts() -> dict[str, Any]:
    """How others find out whether this process lives."""
    return {"place": place(), "pid": os.getpid(), "started": started(os.getpid())}


def started(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 where that is not known, -1 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except FileNotFoundError:
        return -1 if Path("/proc/self/stat").exists() else 0


def is_alive(pid: int, began: int) -> bool:
    found = started(pid)
    if found != 0:
        return found == began and not is_zombie(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def best_so_far(trials: Sequence[FrozenTrial], direction: str) -> FrozenTrial | None:
    """The complete trial of the best value; nothing for several objectives."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and len(trial.values) == 1]
    pick = max if direction == "maximize" else min
    return pick(complete, key=lambda trial: trial.values[0], default=None)
