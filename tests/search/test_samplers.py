"""Samplers and pruners by their names, on real studies with a conditional space."""

from __future__ import annotations

import subprocess
import sys
import warnings
from itertools import product

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from scipy.stats import qmc

from fer_lab.search.errors import SearchError
from fer_lab.search.ledger import hand_on
from fer_lab.search.samplers import PRUNERS, SAMPLERS, check_space, make_pruner, make_sampler


def ask(study, choice, seed=0):
    """As a worker does: a sampler of its own for each trial."""
    number = len(study.get_trials(deepcopy=False))
    study.sampler = make_sampler(choice, seed, len(study.directions) > 1, number)
    return study.ask()


def suggest(trial):
    """A finite space: momentum for sgd alone, and a range of lr for each optimizer; 2 x 3 + 2 = 8 points."""
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    value = trial.suggest_int(f"lr (optimizer={optimizer})", 1, 2)
    if optimizer == "sgd":
        value += trial.suggest_float("momentum", 0.0, 1.0, step=0.5)
    trial.suggest_categorical("task", ["emotion"])
    return value


@pytest.mark.parametrize(("name", "objectives"), sorted({*product(SAMPLERS, (1, 2))} - {("cmaes", 2)}))
def test_every_sampler_searches_a_conditional_space_without_a_warning(name, objectives, recwarn, caplog):
    optuna.logging.enable_propagation()
    study = optuna.create_study(directions=["minimize"] * objectives)
    caplog.clear()
    for _ in range(13):
        trial = ask(study, name)
        value = suggest(trial)
        study.tell(trial, [value, -value][:objectives])
    optuna.logging.disable_propagation()
    branches = {trial.params["optimizer"]: set(trial.params) for trial in study.trials}
    assert branches == {
        "sgd": {"optimizer", "task", "lr (optimizer=sgd)", "momentum"},
        "adamw": {"optimizer", "task", "lr (optimizer=adamw)"},
    }
    assert [str(warning.message) for warning in recwarn if warning.category is not ResourceWarning] == []
    assert [
        r.message for r in caplog.records if r.levelname == "WARNING" and "greenlet" not in r.message
    ] == []


@pytest.mark.parametrize("name", ["tpe", "cmaes", "nsgaii"])
def test_samplers_made_anew_for_each_trial_still_learn(name):
    def late_values(choice, seed):
        study = optuna.create_study()
        for _ in range(40):
            trial = ask(study, choice, seed)
            study.tell(trial, sum((trial.suggest_float(key, -5, 5) - 1.7) ** 2 for key in "abc"))
        return sum(trial.value for trial in study.trials[20:])

    learned = [late_values(name, seed) < late_values("random", seed) for seed in range(5)]
    assert all(learned)


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "qmc", "cmaes"])
def test_four_workers_that_ask_at_once_get_distinct_settings(name):
    study = optuna.create_study()
    for _ in range(12):
        trial = ask(study, name)
        study.tell(trial, (trial.suggest_float("a", 0, 1) - 0.3) ** 2 + trial.suggest_float("b", 0, 1))
    trials = [ask(study, name) for _ in range(4)]
    asked = {(trial.suggest_float("a", 0, 1), trial.suggest_float("b", 0, 1)) for trial in trials}
    assert len(asked) == 4


def test_the_same_seed_proposes_the_same_and_another_seed_something_else():
    def proposals(seed):
        study = optuna.create_study()
        return [ask(study, "tpe", seed).suggest_float("a", 0, 1) for _ in range(3)]

    assert proposals(1) == proposals(1)
    assert not set(proposals(1)) & set(proposals(2))


def test_qmc_walks_one_sobol_sequence_and_draws_conditional_keys_anew():
    study = optuna.create_study()
    for number in range(9):
        trial = ask(study, "qmc", seed=5)
        value = trial.suggest_float("a", 0, 1) + trial.suggest_float("b", 0, 1)
        if number:  # not in the first trial's space, hence not in the sequence
            value += trial.suggest_float("momentum", 0, 1)
        study.tell(trial, value)
    points = [[trial.params["a"], trial.params["b"]] for trial in study.trials[1:]]
    assert points == qmc.Sobol(2, scramble=True, seed=5).random(8).tolist()
    assert len({trial.params["momentum"] for trial in study.trials[1:]}) == 8


@pytest.mark.parametrize("name", ["grid", "bruteforce"])
def test_grid_tries_each_point_once_with_four_open_at_a_time_and_says_when_it_is_through(name):
    study = optuna.create_study()
    for _ in range(2):
        trials = [ask(study, name) for _ in range(4)]
        values = [suggest(trial) for trial in trials]
        assert "exhausted" not in study.user_attrs
        for trial, value in zip(trials, values, strict=True):
            study.tell(trial, value)
    points = [tuple(value for key, value in trial.params.items() if key != "task") for trial in study.trials]
    sgd = product(["sgd"], [1, 2], [0.0, 0.5, 1.0])
    assert sorted(points) == sorted([("adamw", 1), ("adamw", 2), *sgd])
    assert study.user_attrs["exhausted"] is True


def test_grid_tries_again_what_was_given_back_untrained():
    study = optuna.create_study()
    study.tell(study.ask(), state=TrialState.FAIL)  # ended before it had any settings
    surplus = ask(study, "grid")
    surplus.suggest_int("a", 1, 2)
    surplus.set_user_attr("state", "surplus")
    study.tell(surplus, state=TrialState.FAIL)
    values = set()
    for _ in range(2):
        trial = ask(study, "grid")
        values.add(trial.suggest_int("a", 1, 2))
        study.tell(trial, 0.0)
    assert values == {1, 2}


RANGES = {
    "optimizer": CategoricalDistribution(["sgd", "adamw"]),
    "optimizer.lr": FloatDistribution(1e-4, 0.1, log=True),
    "model.dropout": FloatDistribution(0, 0.6),
    "data.limit": IntDistribution(1, 9),
}


def test_grid_refuses_every_range_without_a_step():
    with pytest.raises(SearchError) as refused:
        check_space("grid", RANGES)
    text = str(refused.value)
    assert "optimizer.lr: interval(0.0001,0.1)" in text and "range(0,0.6,STEP)" in text
    assert "data.limit" not in text and "sampler=tpe" in text
    check_space("grid", {"optimizer": RANGES["optimizer"], "lr": FloatDistribution(0, 1, step=0.1)})
    check_space("tpe", RANGES)


def test_cmaes_refuses_a_space_of_choices_several_objectives_and_a_missing_package(monkeypatch):
    with pytest.raises(SearchError, match=r"two or more numbers, and here is data.limit: take sampler=tpe"):
        check_space("cmaes", {"optimizer": RANGES["optimizer"], "data.limit": RANGES["data.limit"]})
    check_space("cmaes", RANGES)
    with pytest.raises(SearchError, match="follows one objective: choose tpe"):
        make_sampler("cmaes", 0, multi_objective=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SearchError, match=r"pip install 'fer_lab\[cmaes\]'"):
        make_sampler("cmaes", 0, multi_objective=False)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("tpee", ["'tpee' is unknown (did you mean tpe?)", *SAMPLERS]),
        ({"n_startup_trials": 5}, ["'None' is unknown", "nsgaii"]),
        (None, ["'None' is unknown"]),
        ({"name": "tpe", "n_startup": 5}, ["n_startup=5", "did you mean n_startup_trials", "constant_liar"]),
        (
            {"name": "tpe", "n_startup_trials": "few", "x": 1},
            ["'few': write a value of type int", "x=1: no such"],
        ),
        ({"name": "tpe", "n_startup_trials": True}, ["n_startup_trials=True"]),
        ({"name": "random", "seed": 3}, ["seed=3: no such option", "takes none"]),
        ({"name": "nsgaii", "population_size": 1}, ["sampler nsgaii", "population_size"]),
        ({"name": "qmc", "qmc_type": "lattice"}, ["sampler qmc", "halton"]),
    ],
)
def test_wrong_samplers_are_refused_with_the_choices(choice, words):
    with pytest.raises(SearchError) as refused:
        make_sampler(choice, 0, multi_objective=False)
    assert not [word for word in words if word not in str(refused.value)], refused.value


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("halfing", ["did you mean halving?", *PRUNERS]),
        ({"name": "halving", "min_resource": 20}, ["min_resource=20 is beyond max_epochs=9", "take 1"]),
        ({"name": "halving", "min_resource": 0}, ["pruner halving", "min_resource"]),
        ({"name": "hyperband", "max_resource": 5}, ["max_resource=5: no such option"]),
        ("threshold", ["lower: 0.3"]),
        ({"name": "threshold", "lower": "low"}, ["lower='low': write a value of type float"]),
        ({"name": "median", "n_warmup_steps": -1}, ["pruner median", "warmup"]),
    ],
)
def test_wrong_pruners_are_refused_with_the_choices(choice, words):
    with pytest.raises(SearchError) as refused:
        make_pruner(choice, max_epochs=9)
    assert not [word for word in words if word not in str(refused.value)], refused.value


def epochs_trained(choice, quality=lambda number, epoch: number, trials=9, max_epochs=9):
    """How long each trial trains; by default each is better than all before it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = optuna.create_study(
            direction="maximize", study_name="s", pruner=make_pruner(choice, max_epochs)
        )
        for _ in range(trials):
            trial = study.ask()
            for epoch in range(1, max_epochs + 1):
                trial.report(quality(trial.number, epoch), epoch)
                if trial.should_prune():
                    break
            study.tell(trial, quality(trial.number, epoch))
    return [trial.last_step for trial in study.trials]


def worse(number, epoch):
    return -number


def test_halving_ends_trials_at_its_rungs():
    assert epochs_trained("halving", worse) == [9] + 8 * [1]  # never among the best third
    assert epochs_trained("halving", max_epochs=18, quality=worse)[1:] == 8 * [2]
    assert epochs_trained({"name": "halving", "min_resource": 3}, worse) == [9] + 8 * [3]
    assert epochs_trained({"name": "halving", "reduction_factor": 2}) == 9 * [9]


@pytest.mark.parametrize(("choice", "rung"), [("halving", 1), ({"name": "hyperband", "min_resource": 4}, 4)])
def test_a_continued_trial_stands_in_a_rung_once(choice, rung):
    """Two of six go on; of seven, if the first stood there twice, too, and the second best would not be among them."""
    study = optuna.create_study(direction="maximize", pruner=make_pruner(choice, max_epochs=9))
    pruned = []
    for value in (1.0, 0.0, 0.0, 0.0, 0.0, 0.9):
        trial = study.ask()
        trial.report(value, rung)
        pruned.append(trial.should_prune())
        if value == 1.0:
            hand_on(study, study.trials[0], "interrupted")
            study.ask()  # the continuation
    assert sum("completed_rung_0" in trial.system_attrs for trial in study.trials) == 7
    assert pruned == [False, True, True, True, True, False]


def test_hyperband_gives_some_trials_longer():
    found = epochs_trained("hyperband", worse, trials=40)
    assert set(found) == {1, 3, 9}  # its three brackets for 9 epochs
    assert found.count(1) > found.count(3)


def test_median_patient_threshold_and_none():
    assert epochs_trained("median", worse) == 5 * [9] + 4 * [1]
    assert epochs_trained({"name": "median", "n_startup_trials": 1, "n_warmup_steps": 4}, worse)[1:] == 8 * [
        4
    ]
    fading = epochs_trained("patient", lambda number, epoch: -100 * number - epoch)
    assert fading == 5 * [9] + 4 * [4]  # worse for more than 2 epochs
    assert epochs_trained("patient", lambda number, epoch: epoch - 20 * number) == 9 * [9]
    assert epochs_trained({"name": "threshold", "lower": 2.5}) == 3 * [1] + 6 * [9]
    assert epochs_trained("none", worse) == epochs_trained(None, worse) == 9 * [9]


def test_options_may_come_from_a_config():
    section = OmegaConf.create({"name": "tpe", "n_startup_trials": 0})
    assert type(make_sampler(section, 0, multi_objective=False)) is optuna.samplers.TPESampler
    assert epochs_trained(OmegaConf.create({"name": "halving", "min_resource": 3}), worse)[1:] == 8 * [3]


def test_choosing_a_sampler_imports_no_torch():
    script = (
        "import sys; from fer_lab.search.samplers import *\n"
        "[make_sampler(name, 0, False) for name in SAMPLERS]; print({'torch', 'cmaes'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
