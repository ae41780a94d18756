"""What a sweep promises, with processes that are killed in the middle of it."""

from __future__ import annotations

import os
import signal
from collections import Counter

from optuna.trial import TrialState

from tests.search.conftest import SPACE, wait_for


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

    more = place.sweep("hydra.sweeper.n_trials=17", "hydra.sweeper.workers=1")
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
    assert Counter(Counter(epoch["run"] for epoch in place.epochs).values()) == {3: 3}, (
        "an epoch was trained twice"
    )


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
    done = place.sweep(
        "name=die", "hydra.sweeper.n_trials=1", "hydra.sweeper.workers=1", "hydra.sweeper.retries=1"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (trial,) = place.trials
    assert trial.user_attrs["state"] == "failed" and "died 2 times" in trial.user_attrs["error"]


def test_a_full_memory_is_a_limit_that_the_sampler_learns(place):
    words = (
        "name=memory",
        "data.batch_size=choice(32,128)",
        "hydra.sweeper.n_trials=8",
        "hydra.sweeper.pruner=none",
    )
    points = "hydra.sweeper.points=[{data.batch_size: 128}, {data.batch_size: 32}]"
    done = place.sweep(*words, points)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(place.trials)) == {"out_of_memory", "complete"}
    for trial in place.trials:
        full = trial.params["data.batch_size"] == 128
        assert trial.user_attrs["state"] == ("out_of_memory" if full else "complete")
        assert bool(trial.constraints) == full


def test_a_trial_that_raises_or_ends_its_process_is_one_failed_trial(place):
    words = ("optimizer=choice(sgd,adamw)", "hydra.sweeper.n_trials=6", "hydra.sweeper.workers=1")
    space = tuple(word for word in SPACE if word != "optimizer=sgd")
    points = (
        "hydra.sweeper.points=[{optimizer: sgd}, {optimizer: adamw}, {optimizer: sgd}, {optimizer: adamw}]"
    )
    done = place.sweep("name=raise_sgd", *words, points, space=space)
    assert done.returncode == 0, done.stdout + done.stderr
    for trial in place.trials:
        assert (trial.user_attrs["state"] == "failed") == (trial.params["optimizer"] == "sgd")
    ended = place.sweep(
        "name=exit", "hydra.sweeper.name=exits", "hydra.sweeper.n_trials=9", "hydra.sweeper.workers=1"
    )
    assert ended.returncode == 1 and "SystemExit" in ended.stderr, ended.stdout + ended.stderr


def test_what_broke_a_sweep_can_be_mended(place):
    broken = place.sweep("name=raise", "hydra.sweeper.n_trials=8", "hydra.sweeper.places=[name,runs_dir]")
    assert broken.returncode == 1
    before = len(place.trials)
    mended = place.sweep("name=good", "hydra.sweeper.n_trials=8", "hydra.sweeper.places=[name,runs_dir]")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert len(place.trials) == 8 and states(place.trials)["failed"] == before < 8


def test_nan_is_no_score(place):
    done = place.sweep("name=no_number", "hydra.sweeper.n_trials=4", "hydra.sweeper.pruner=none")
    assert done.returncode == 1 and "none of 4 trials ended with a score" in done.stderr
    assert states(place.trials) == {"diverged": 4}


def test_a_configuration_is_trained_once_unless_seeds_are_wanted(place):
    words = ("optimizer.lr=choice(0.1,0.01)", "model.dropout=choice(0,0.3)", "hydra.sweeper.pruner=none")
    done = place.sweep(
        *words, "hydra.sweeper.n_trials=10", "hydra.sweeper.sampler=random", "hydra.sweeper.workers=3"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(place.trials) == 10
    configurations = {tuple(sorted(trial.params.items())) for trial in place.trials}
    assert len(place.epochs) == 3 * len(configurations)
    copies = [trial for trial in place.trials if "same_as" in trial.user_attrs]
    assert len(copies) == 10 - len(configurations)
    for copy in copies:
        assert copy.values == place.trials[copy.user_attrs["same_as"]].values

    more = place.sweep(
        *words, "hydra.sweeper.n_trials=20", "hydra.sweeper.sampler=random", "hydra.sweeper.seeds=2"
    )
    assert more.returncode == 0, more.stdout + more.stderr
    assert any("seed=1" in trial.user_attrs["overrides"] for trial in place.trials)


def test_a_grid_is_tried_whole_and_then_ends(place):
    words = (
        "optimizer.lr=choice(0.1,0.01,0.001)",
        "model.dropout=range(0,0.6,0.3)",
        "hydra.sweeper.sampler=grid",
    )
    done = place.sweep(
        *words, "hydra.sweeper.n_trials=50", "hydra.sweeper.pruner=none", "hydra.sweeper.workers=3"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(place.trials) == 6
    assert len({tuple(sorted(trial.params.items())) for trial in place.trials}) == 6


def test_a_space_of_ones_own_with_conditions(place, tmp_path):
    """Momentum for sgd alone, from a file outside the project."""
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/mine.yaml").write_text(
        """
# @package _global_
hydra:
  sweeper:
    params: {optimizer: "choice(sgd,adamw)"}
    when: {optimizer=sgd: {optimizer.momentum: "interval(0.5,0.9)"}}
    points: [{optimizer: sgd, optimizer.momentum: 0.75}]
"""
    )
    space = tuple(word for word in SPACE if word not in ("optimizer=sgd", "sweeps=none"))
    few = [
        f"data.source.{part}=28" for part in ("train", "validation", "test")
    ]  # trial 0 is really trained below
    words = ("--config-dir", str(tmp_path), "sweeps=mine", "data.size=32", *few, "hydra.sweeper.n_trials=10")
    done = place.sweep(*words, space=space)
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.trials[0].params["optimizer.momentum"] == 0.75
    again = place.command("rerun", "0")  # the flag that names the space goes along
    assert f"--config-dir {tmp_path} hydra.mode=RUN" in again.stdout
    for trial in place.trials:
        assert ("optimizer.momentum" in trial.params) == (trial.params["optimizer"] == "sgd")


def test_this_process_alone_will_do(place):
    done = place.sweep("hydra.sweeper.n_trials=3", "hydra.sweeper.workers=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(place.trials) == 3
    assert not list((place.folder / "workers").glob("*.log"))


def test_the_best_are_confirmed_on_seeds_of_their_own_and_the_winner_is_judged(place):
    words = (
        "hydra.sweeper.confirm={top: 2, seeds: 3}",
        "hydra.sweeper.ablate=2",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.pruner=none",
    )
    space = tuple(word for word in SPACE if "confirm" not in word)
    done = place.sweep(*words, space=space)
    assert done.returncode == 0, done.stdout + done.stderr
    confirm = place.trials_of("/confirm")
    assert Counter(trial.user_attrs["seed"] for trial in confirm) == {1: 2, 2: 2, 3: 2}
    assert {trial.state for trial in confirm} == {TrialState.COMPLETE}
    assert len(place.trials_of("/ablation")) == 4
    (final,) = place.trials_of("/final")
    assert final.user_attrs["result"]["test/accuracy"] > 0
    report = (place.folder / "report.md").read_text()
    assert "seeds" in report
    again = place.sweep(*words, space=space)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(place.trials_of("/confirm")) == 6 and len(place.trials_of("/final")) == 1


def test_a_wider_space_keeps_the_trials_that_belong_to_it(place):
    first = place.sweep("hydra.sweeper.n_trials=5", "hydra.sweeper.pruner=none")
    assert first.returncode == 0, first.stdout + first.stderr
    wider = tuple(word for word in SPACE if not word.startswith("optimizer"))
    words = (
        "optimizer=choice(sgd,adamw)",
        "optimizer.lr=tag(log,interval(1e-5,1))",
        "hydra.sweeper.n_trials=8",
    )
    second = place.sweep(*words, space=wider)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "5 of 5 trials belong to the new one" in second.stdout
    trials = place.trials_of("#2")
    assert len(trials) == 8
    assert [trial.params["optimizer"] for trial in trials[:5]] == ["sgd"] * 5
    assert len({epoch["run"] for epoch in place.epochs}) == 8

    longer = tuple(word.replace("max_epochs=3", "max_epochs=7") for word in wider)
    other = place.sweep(*words, space=longer)
    assert other.returncode == 2
    assert "trainer.max_epochs was 3, is 7" in other.stderr


def test_everything_that_is_wrong_is_said_at_once_before_the_first_trial(place):
    done = place.sweep(
        "name=bad_probe",
        "data.batch_size=interval(16,64)",
        "optimizer.momentun=choice(0.5,0.9)",
        "model=choice(small,smal)",
    )
    assert done.returncode == 2, done.stdout
    for words in ("int(interval(16,64))", "momentun", "smal", "choices: val/accuracy"):
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not place.epochs


def test_status_stop_rerun_and_join(place):
    words = ("hydra.sweeper.n_trials=30", "hydra.sweeper.workers=1", "hydra.sweeper.pruner=none")
    running = place.start(*words, TOY_EPOCH_SECONDS="0.3")
    wait_for(lambda: len({epoch["run"] for epoch in place.epochs}) >= 2)
    status = place.command("status")
    assert status.returncode == 0, status.stderr
    assert "/30 trials" in status.stdout and "not over" in status.stdout
    helper = place.line("hydra.sweeper.role=worker", *words)
    import subprocess

    joined = subprocess.Popen(
        helper, env={**os.environ, "TOY_EPOCH_SECONDS": "0.3"}, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: len({epoch["pid"] for epoch in place.epochs}) == 2)
    stopped = place.command("stop", "toy")
    assert stopped.returncode == 0 and "the same command goes on later" in stopped.stdout
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0, out
    assert joined.wait(30) == 0
    assert set(states(place.trials)) == {"complete"}
    assert len(place.epochs) == 3 * len(place.trials)
    checked = place.command("rerun", "0", "--check")
    assert "checked toy-" in checked.stdout, checked.stderr
    unknown = place.command("status", "toy", "--all")
    assert unknown.returncode == 2 and "--all: not understood" in unknown.stderr
    wrong = place.command("rerun", "99")
    assert wrong.returncode == 2 and "no trial 99" in wrong.stderr


def test_several_objectives_are_compared_without_pruning(place):
    words = (
        "hydra.sweeper.objectives={val/accuracy: max, cost/parameters: min}",
        "data.batch_size=choice(16,32,64)",
    )
    done = place.sweep(*words, "hydra.sweeper.n_trials=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without pruning" in done.stdout
    assert states(place.trials) == {"complete": 6}
    assert all(len(trial.values) == 2 for trial in place.trials)
