"""trials.jsonl: every trial that was told, as a line of plain text beside the store.

It makes a broken store anew, moves a sweep to another kind of store, and reads well with pandas.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna import Study, create_study
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

TRIALS = "trials.jsonl"
STALE_SECONDS = 15
"""After which the lock of a killed writer is broken; writing takes milliseconds."""


class WholeLines(JournalFileOpenLock):
    """Its holder finds whole lines: the half line of a writer that was killed, or met a full disk, is cut off."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=STALE_SECONDS)
        self._path = path

    def acquire(self) -> bool:
        held = super().acquire()
        if self._path.exists():
            _cut_half_line(self._path)
        return held

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _cut_half_line(path: Path) -> None:
    """Nobody has read it, since readers take whole lines."""
    with path.open("r+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        if file.read() in (b"", b"\n"):
            return
        file.seek(0)
        text = file.read()
        whole = text.rfind(b"\n") + 1
        keep_damaged(path, [text[whole:]])
        file.truncate(whole)


def keep_damaged(path: Path, lines: list[bytes]) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    with aside.open("ab") as file:
        file.writelines(line.rstrip(b"\n") + b"\n" for line in lines)
    print(f"{path.name}: {len(lines)} torn or empty lines moved to {aside.name}")


def record_trial(folder: Path, study: Study, trial: FrozenTrial) -> None:
    """Append what is known of a finished trial, and of its study, to the folder's trials.jsonl."""
    line = {
        "study": study.study_name,
        "directions": [direction.name.lower() for direction in study.directions],
        "study_attrs": study.user_attrs,
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {key: distribution_to_json(found) for key, found in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": trial.intermediate_values,
        "started": trial.datetime_start and trial.datetime_start.isoformat(),
        "completed": trial.datetime_complete and trial.datetime_complete.isoformat(),
    }
    path = folder / TRIALS
    with WholeLines(path), path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")


def rebuild(storage: BaseStorage, folder: Path) -> int:
    """Make the studies of the folder's trials.jsonl in an empty store; returns how many trials they have.

    Trials keep their numbers; one that was never told leaves a lost trial in its place.
    """
    recorded = _recorded(folder)
    lost = create_trial(state=TrialState.FAIL, user_attrs={"state": "lost", "error": f"not in {TRIALS}"})
    for name, lines in recorded.items():
        newest = max(lines.values(), key=lambda line: line["completed"] or "")
        study = create_study(study_name=name, storage=storage, directions=newest["directions"])
        for key, value in newest["study_attrs"].items():
            study.set_user_attr(key, value)
        for number in range(max(lines) + 1):
            study.add_trial(_trial(lines[number]) if number in lines else lost)
    return sum(map(len, recorded.values()))


def fill(storage: BaseStorage, folder: Path, path: Path) -> None:
    if count := rebuild(storage, folder):
        print(f"{path} was made anew with {count} trials of {TRIALS} (delete both to start over)")


def agrees(storage: BaseStorage, folder: Path) -> bool:
    """Whether a store knows the trials of trials.jsonl by the same numbers."""
    known = {study.study_name: storage.get_all_trials(study._study_id) for study in storage.get_all_studies()}
    return all(
        number < len(known.get(name, ())) and known[name][number].params == line["params"]
        for name, lines in _recorded(folder).items()
        for number, line in lines.items()
    )


def _recorded(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """By study and trial number the last whole line."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    path = folder / TRIALS
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # its writer was killed
        found[line["study"]][line["number"]] = line
    return found


def _trial(line: dict[str, Any]) -> FrozenTrial:
    trial = create_trial(
        state=TrialState[line["state"]],
        values=line["values"],
        params=line["params"],
        distributions={key: json_to_distribution(text) for key, text in line["distributions"].items()},
        user_attrs=line["user_attrs"],
        system_attrs=line["system_attrs"],
        intermediate_values={int(step): value for step, value in line["intermediate_values"].items()},
    )
    trial.datetime_start = line["started"] and datetime.fromisoformat(line["started"])
    trial.datetime_complete = line["completed"] and datetime.fromisoformat(line["completed"])
    return trial
