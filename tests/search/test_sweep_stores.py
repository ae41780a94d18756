"""Whole sweeps on every kind of store, and what becomes of a sweep when its store breaks."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from optuna.trial import TrialState

from fer_lab.search.ledger import trials_of
from tests.search.conftest import wait_for


@pytest.mark.parametrize("store", ["journal", "postgresql"])
def test_a_killed_worker_is_survived_on_every_store(place, store, request):
    address = request.getfixturevalue("server").address if store == "postgresql" else store
    words = (f"hydra.sweeper.storage='{address}'", "hydra.sweeper.n_trials=6", "hydra.sweeper.pruner=none")
    running = place.start(*words, "hydra.sweeper.workers=3", TOY_EPOCH_SECONDS="0.5")
    wait_for(lambda: any(epoch["epoch"] == 2 for epoch in place.epochs))
    os.kill(place.epochs[-1]["pid"], signal.SIGKILL)
    if store == "postgresql":
        request.getfixturevalue("server").restart()
    out, _ = running.communicate(timeout=150)
    assert running.returncode == 0, out
    trials = trials_of(place.study(address=address))
    assert len(trials) == 6 and {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len(place.epochs) == 18, "an epoch was trained twice, or was lost"
    assert (
        "secret"
        not in out + (place.folder / "sweep.yaml").read_text() + (place.folder / "report.md").read_text()
    )


def test_a_broken_store_is_made_anew_and_the_sweep_goes_on(place):
    first = place.sweep("hydra.sweeper.n_trials=4", "hydra.sweeper.pruner=none")
    assert first.returncode == 0, first.stdout + first.stderr
    before = {trial.number: trial.values for trial in place.trials}
    (place.folder / "study.db").write_bytes(b"nothing that SQLite knows" * 1000)
    again = place.sweep("hydra.sweeper.n_trials=6", "hydra.sweeper.pruner=none")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "made anew with" in again.stdout
    assert {trial.number: trial.values for trial in place.trials if trial.number < 4} == before
    assert len(place.trials) == 6 and len(place.epochs) == 18


def test_ctrl_c_hands_back_what_runs(place):
    running = place.start("hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=none", TOY_EPOCH_SECONDS="0.8")
    wait_for(lambda: place.epochs)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in out, out
    assert {trial.state for trial in place.trials} <= {TrialState.WAITING, TrialState.COMPLETE}


def test_a_worker_leaves_before_its_wall_time_and_needs_no_controller(place):
    """What an array of short SLURM jobs does: each joins, leaves in time, and the next one goes on."""
    words = ("hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=none", "hydra.sweeper.workers=1")
    running = place.start(*words, TOY_EPOCH_SECONDS="2")
    wait_for(lambda: place.epochs)
    running.kill()
    for epoch in place.epochs:
        os.kill(epoch["pid"], signal.SIGKILL)
    workers = 0
    while workers < 10 and {trial.state for trial in place.trials} != {TrialState.COMPLETE}:
        line = place.line("hydra.sweeper.role=worker", "hydra.sweeper.wall_time=7", *words)
        done = subprocess.run(line, env={**os.environ, "TOY_EPOCH_SECONDS": "2"}, timeout=60, check=False)
        assert done.returncode == 0
        workers += 1
    assert workers > 1
    assert {trial.state for trial in place.trials} == {TrialState.COMPLETE}
    assert sorted((epoch["run"], epoch["epoch"]) for epoch in place.epochs) == sorted(
        (run, number) for run in {epoch["run"] for epoch in place.epochs} for number in (1, 2, 3)
    )
