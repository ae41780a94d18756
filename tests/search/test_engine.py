"""What a sweep promises, with processes that are killed in the middle of it."""

from __future__ import annotations

import os
import signal
from collections import Counter

from optuna.trial import TrialState

from tests.search.conftest import wait_for


def states(trials) -> Counter[str]:
    return Counter(trial.user_attrs.get("state", trial.state.name) for trial in trials)


def test_four_workers_make_exactly_the_total_and_more_is_a_bigger_total(place):
    done = place.sweep("hydra.sweeper.n_trials=13", "hydra.sweeper.workers=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(place.trials) == 13
    assert {trial.state for trial in place.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({tuple(trial.params.items()) for trial in place.trials}) == 13, "workers proposed the same"
    assert "next: python -m fer_lab.train" in done.stdout.splitlines()[-1]

    before = len(place.epochs)
    again = place.sweep("hydra.sweeper.n_trials=13", "hydra.sweeper.workers=4")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(place.trials) == 13 and len(place.epochs) == before

    more = place.sweep("hydra.sweeper.n_trials=17", "hydra.sweeper.workers=4")
    assert more.returncode == 0, more.stdout + more.stderr
    assert len(place.trials) == 17


def test_a_killed_worker_s_trial_goes_on_from_its_checkpoint_elsewhere(place):
    running = place.start("hydra.sweeper.n_trials=4", "hydra.sweeper.pruner=none", TOY_EPOCH_SECONDS="0.7")
    wait_for(lambda: any(epoch["epoch"] == 2 for epoch in place.epochs))
    victim = next(epoch for epoch in place.epochs if epoch["epoch"] == 2)
    os.kill(victim["pid"], signal.SIGKILL)
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 0, out
    epochs = [(epoch["epoch"], epoch["pid"]) for epoch in place.epochs if epoch["run"] == victim["run"]]
    assert [epoch for epoch, _ in epochs] == [1, 2, 3]
    assert epochs[-1][1] != victim["pid"]
    assert states(place.trials) == {"complete": 4}
    (heir,) = (trial for trial in place.trials if "continues" in trial.user_attrs)
    assert sorted(heir.intermediate_values) == [1, 2, 3]
    assert heir.user_attrs["run"] == victim["run"]


def test_a_killed_controller_changes_nothing(place):
    words = ("hydra.sweeper.n_trials=5", "hydra.sweeper.workers=2", "hydra.sweeper.pruner=none")
    running = place.start(*words, TOY_EPOCH_SECONDS="0.4")
    wait_for(lambda: len(place.epochs) >= 3)
    running.kill()
    running.wait()
    wait_for(lambda: len([trial for trial in place.trials if trial.state.is_finished()]) == 5)
    again = place.sweep(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert states(place.trials) == {"complete": 5}
    assert len(place.epochs) == 15


def test_sigterm_hands_running_trials_back_and_the_same_command_ends_them(place):
    words = ("hydra.sweeper.n_trials=3", "hydra.sweeper.workers=2", "hydra.sweeper.pruner=none")
    running = place.start(*words, TOY_EPOCH_SECONDS="0.7")
    wait_for(lambda: len(place.epochs) >= 3)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "the same command goes on" in out
    assert not [trial for trial in place.trials if trial.state == TrialState.RUNNING]
    again = place.sweep(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert states(place.trials) == {"complete": 3}
    assert Counter(Counter(epoch["run"] for epoch in place.epochs).values()) == {3: 3}, "an epoch was trained twice"


def test_bad_trials_do_not_end_a_sweep_and_teach_the_sampler(place):
    done = place.sweep("name=diverge", "hydra.sweeper.n_trials=12")
    assert done.returncode == 0, done.stdout + done.stderr
    found = states(place.trials)
    assert found["diverged"] and found["complete"] and sum(found.values()) == 12
    for trial in place.trials:
        bad = trial.params["optimizer.lr"] > 0.05
        assert (trial.user_attrs["state"] == "diverged") == bad
        assert bool(trial.constraints) == bad


def test_the_same_error_three_times_in_a_row_ends_it_with_the_traceback(place):
    done = place.sweep("name=raise", "hydra.sweeper.n_trials=30", "hydra.sweeper.workers=1")
    assert done.returncode == 1
    assert "the same bug in every trial" in done.stderr and 'raise RuntimeError("the same bug' in done.stderr
    assert states(place.trials) == {"failed": 3}


def test_a_worker_that_dies_of_its_trial_gives_it_up_after_some_times(place):
    done = place.sweep("name=die", "hydra.sweeper.n_trials=1", "hydra.sweeper.workers=1", "hydra.sweeper.retries=1")
    assert done.returncode == 1, done.stdout + done.stderr
    (trial,) = place.trials
    assert trial.user_attrs["state"] == "failed" and "died 2 times" in trial.user_attrs["error"]
