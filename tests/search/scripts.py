"""What the tests of stores share: scripts in processes of their own, and a study that looks like a sweep's."""

from __future__ import annotations

import subprocess
import sys

import optuna

from fer_lab.search.lines import record_trial
from fer_lab.search.stores import open_storage

FILES = {"sqlite": "study.db", "journal": "study.journal"}
SETUP = """
import os, signal, sys, time, optuna
from pathlib import Path
from fer_lab.search.lines import *
from fer_lab.search.stores import *

optuna.logging.set_verbosity(optuna.logging.ERROR)
address, folder = sys.argv[1], Path(sys.argv[2])
"""


def spawn(script, address, folder):
    command = [sys.executable, "-c", script, address, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready(process):
    """Waits for its first line."""
    assert process.stdout.readline() == "ready\n", process.stderr.read()


def train(study, folder, count=3):
    for _ in range(count):
        trial = study.ask()
        trial.report(trial.suggest_float("x", 0, 1), 1)
        trial.set_user_attr("run", f"run-{trial.number}")
        study.tell(trial, trial.params["x"])
        record_trial(folder, study, study.trials[trial.number])


def facts(trial):
    """All that there is to know, but the store's own id."""
    return {key.lstrip("_"): value for key, value in vars(trial).items() if key != "_trial_id"}


def study_of(tmp_path, address="sqlite", count=20):
    study = optuna.create_study(
        study_name="quick", storage=open_storage(address, tmp_path), direction="maximize"
    )
    study.set_user_attr("n_trials", 20)
    train(study, tmp_path, count)
    trials = [facts(trial) for trial in study.trials]
    if address == "sqlite":
        study._storage._backend.engine.dispose()  # as if this process had ended
    return trials
