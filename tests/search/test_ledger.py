"""Who trains which trial, decided without locks: every interleaving of two workers that could go wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState

from fer_lab.search import ledger


@pytest.fixture
def study():
    return optuna.create_study(study_name="quick", direction="maximize")


def taken(study, total=10):
    number = ledger.take(study, study._storage, total)
    return None if number is None else study._storage.get_trial(number)


def of_worker(study, trial, **worker):
    me = ledger.worker_facts() | worker
    study._storage.set_trial_user_attr(trial._trial_id, "worker", me)
    return study._storage.get_trial(trial._trial_id)


def test_no_more_than_the_total_is_taken(study):
    assert [taken(study, 2).number for _ in range(2)] == [0, 1]
    assert taken(study, 2) is None
    assert taken(study, 3).number == 2


def test_of_two_who_took_the_last_slot_the_later_gives_it_back(study):
    storage = study._storage
    for _ in range(3):  # all three saw room for two, as processes do that ask at the same moment
        storage.create_new_trial(study._study_id)
    surplus = [ledger.is_surplus(study, trial, 2) for trial in study.trials]
    assert surplus == [False, False, True]
    ledger.close(study, 2, "surplus")
    assert len(ledger.trials_of(study)) == 2


def test_a_trial_handed_on_keeps_its_settings_and_its_curve(study):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.25, 1)
    trial.set_user_attr("overrides", ["x=0.5"])
    ledger.hand_on(study, study.trials[0], "interrupted")
    heir = taken(study, 1)
    assert (heir.number, heir.params, heir.intermediate_values) == (1, study.trials[0].params, {1: 0.25})
    assert heir.user_attrs["overrides"] == ["x=0.5"] and heir.user_attrs["attempts"] == 0
    again = optuna.Trial(study, heir._trial_id)
    assert again.suggest_float("x", 0, 1) == study.trials[0].params["x"]
    assert [trial.number for trial in ledger.trials_of(study)] == [1]


def test_two_who_find_the_same_dead_worker_continue_its_trial_once(study):
    study.ask().suggest_float("x", 0, 1)
    dead = study.trials[0]
    ledger.hand_on(study, dead, "lost")
    study._storage.create_new_trial(  # what the other one adds who looked at the same time
        study._study_id,
        optuna.create_trial(state=TrialState.WAITING, user_attrs={"continues": 0, "attempts": 1}),
    )
    ledger.hand_on(study, dead, "lost")  # and a third who comes later adds nothing
    first, second = taken(study), taken(study)
    assert not ledger.is_surplus(study, first, 10)
    assert ledger.is_surplus(study, second, 10)
    assert [trial.state for trial in study.trials] == [
        TrialState.FAIL,
        TrialState.RUNNING,
        TrialState.RUNNING,
    ]


def test_a_dead_process_of_this_machine_is_found_at_once(study):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    trial = of_worker(study, taken(study), pid=process.pid, started=ledger.started(process.pid))
    watch = ledger.Watch(heartbeat=1000)
    assert watch.reap(study, retries=2) == []
    process.kill()
    deadline = time.monotonic() + 10
    while ledger.is_alive(process.pid, trial.user_attrs["worker"]["started"]):  # a zombie counts as dead
        assert time.monotonic() < deadline
    assert watch.reap(study, retries=2) == [0]
    process.wait()
    assert study.trials[0].user_attrs["state"] == "lost" and study.trials[1].user_attrs["continues"] == 0


def test_a_process_number_that_was_given_out_again_is_another_process():
    assert ledger.is_alive(os.getpid(), ledger.started(os.getpid()))
    assert not ledger.is_alive(os.getpid(), ledger.started(os.getpid()) - 1)


def test_a_worker_elsewhere_is_dead_when_it_misses_its_beats(study):
    trial = of_worker(study, taken(study), place="another machine")
    watch = ledger.Watch(heartbeat=0.05)
    assert watch.reap(study, retries=1) == []
    for beat in range(3):
        time.sleep(0.2)
        study._storage.set_trial_user_attr(trial._trial_id, "beat", beat)
        assert watch.reap(study, retries=1) == [], "it has just shown that it lives"
    time.sleep(0.4)
    assert watch.reap(study, retries=1) == [0]
    of_worker(study, taken(study), place="another machine")
    watch.reap(study, retries=1)
    time.sleep(0.4)
    assert watch.reap(study, retries=1) == [1]
    assert study.trials[1].user_attrs["state"] == "failed", "its one retry was used"
    assert len(study.trials) == 2


def test_a_slow_worker_that_was_given_up_cannot_spoil_the_trial_of_its_heir(study):
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    ledger.hand_on(study, study.trials[0], "lost")
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.report(0.5, 1)


def test_twins_are_trained_trials_of_the_same_settings(study):
    for number in range(4):
        trial = study.ask({"x": optuna.distributions.IntDistribution(1, 1)})
        if number == 1:
            trial.set_user_attr("state", "failed")
            study.tell(trial, state=TrialState.FAIL)
        elif number == 2:
            trial.set_user_attr("same_as", 0)
            study.tell(trial, 1.0)
        elif number == 0:
            study.tell(trial, 1.0)
    assert [twin.number for twin in ledger.twins(study, study.trials[3])] == [0]
