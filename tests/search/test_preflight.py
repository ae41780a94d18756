"""Before trial 0: what does not compose, what the sweep will cost, and what fits into the time there is."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import CONF, ROOT
from fer_lab.search.errors import SearchError
from fer_lab.search.preflight import (
    GOOD_TRIALS,
    Plan,
    Probe,
    composition_faults,
    duration,
    estimate,
    expected_share,
    fit,
    in_words,
)
from fer_lab.search.space.space import Space

SWEEPS = sorted({path.stem for path in (ROOT / "sweeps").glob("*.yaml")} - {"none"})


def compose(*words: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("sweep", overrides=list(words), return_hydra_config=True)


def shipped(name: str) -> Space:
    base = compose(f"sweeps={name}")
    return Space.read(OmegaConf.to_container(base.hydra.sweeper), [f"sweeps={name}"], base)


def faults(section: dict[str, Any]) -> list[str]:
    space = Space.read(section, [], compose("sweeps=none"))
    return composition_faults(lambda words: compose("sweeps=none", *words), space)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_shipped_space_composes_into_what_can_be_built(name):
    import torch

    from fer_lab.build import instantiate

    space, configs = shipped(name), {}

    def recorded(words: list[str]) -> DictConfig:
        return configs.setdefault(tuple(words), compose(*space.fixed, *words))

    assert composition_faults(recorded, space) == []
    weights = [torch.nn.Parameter(torch.ones(4, 4, 3, 3))]
    for words in space.combinations():
        cfg = configs[tuple(words)]
        optimizer = instantiate(cfg.optimizer)(weights)
        if "_target_" in cfg.scheduler:
            assert instantiate(cfg.scheduler)(optimizer, epochs=24, steps_per_epoch=3)["scheduler"]


def test_the_published_comparison_has_seven_optimizers_by_five_schedules():
    assert shipped("fer2013_vgg").size == 35


def test_every_shipped_space_says_what_it_is():
    for name in SWEEPS:
        package, first = Path(ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()[:2]
        assert package == "# @package _global_"
        assert first.startswith("# ")


def test_what_does_not_compose_is_told_once_with_the_condition_that_it_needs():
    found = faults(
        {
            "params": {
                "optimizer": "choice(sgd,adamw,muon,sdg)",
                "scheduler": "choice(onecycle,cosine)",
                "optimizer.momentum": "interval(0.5,0.99)",
                "scheduler.floor": "choice(0.0,0.1)",
                "model.droput": "interval(0,0.6)",
            }
        }
    )
    assert sorted(found) == [
        "model.droput: no such key (did you mean model.dropout?); +model.droput adds one",
        "optimizer.momentum does not exist with optimizer=adamw: "
        "put it under when: {optimizer=muon,sgd: {optimizer.momentum: …}}",
        "optimizer=sdg: no such optimizer (did you mean sgd?); choices: adam, adamw, lbfgs, muon, rmsprop, sgd, sgdw",
        "scheduler.floor does not exist with scheduler=onecycle: "
        "put it under when: {scheduler=cosine: {scheduler.floor: …}}",
    ]


def test_kinds_are_checked_under_the_choices_that_have_the_key():
    found = faults(
        {
            "params": {"split": "choice(official,kfold,holdout)", "optimizer": "choice(sgd,adamw)"},
            "when": {
                "split=kfold": {"split.folds": "interval(2,10)", "split.mix_subjects": "choice(1,2)"},
                "split=holdout": {"split.validation": "choice(few,0.2)"},
                "optimizer=sgd": {"optimizer.momentum": "range(1)"},
            },
        }
    )
    assert sorted(found) == [
        "split.folds: the range gives fractions, split.folds=5 is a whole number: write int(interval(2,10)) or choice(…)",
        "split.mix_subjects=1: expected true or false, such as false",
        "split.validation=few: expected a number, such as 0.1",
    ]


def test_added_keys_compose_and_a_group_takes_no_null():
    added = {"recipe": "choice(fer2013_small,fer2013_vgg)", "+trainer.accumulate_grad_batches": "1,2"}
    assert faults({"params": added}) == []
    [fault] = faults({"params": {"recipe": "fer2013_small,null"}})
    assert fault == "recipe=null: Config group override must be a string or a list. Got NoneType"


@pytest.mark.parametrize(("max_epochs", "min_resource"), [(9, 1), (27, 3), (30, 3), (10, 10)])
def test_the_expected_share_is_what_optunas_pruner_leaves(max_epochs, min_resource):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=min_resource, reduction_factor=3)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(pruner=pruner, direction="maximize")
    luck, trained, count = random.Random(0), 0, 400
    for _ in range(count):
        trial, score = study.ask(), luck.random()
        for epochs in range(1, max_epochs + 1):
            trial.report(score, epochs)
            trained += 1
            if trial.should_prune():
                break
        study.tell(trial, score)
    assert trained / count / max_epochs == pytest.approx(expected_share(max_epochs, min_resource, 3), rel=0.2)


def probe(seconds: float, epochs: int = 9, once: float = 0.0, *words: str, error: str = "") -> Probe:
    return Probe(words, seconds, once, 0, epochs, error)


def test_an_estimate_is_probes_times_trials():
    probes = [probe(1.0), probe(3.0), probe(50.0, error="out of memory")]
    plan = estimate(probes, n_trials=10, workers=2, confirm_runs=4)
    assert plan.seconds == pytest.approx(10 / 2 * 18 + 2 * 18)
    assert plan.seconds_at_most == pytest.approx((5 + 2) * 27)
    pruned = estimate(probes, 10, 2, min_resource=1, confirm_runs=4)
    assert pruned.seconds == pytest.approx(10 / 2 * 18 * (1 + 2 / 3 + 6 / 9) / 9 + 2 * 18)
    assert pruned.seconds_at_most == plan.seconds_at_most
    assert str(Plan(10, 1, 3000.0, 7800.0)) == "10 trials: about 50 min, at most 2 h 10 min"


def test_a_few_trials_on_many_workers_still_take_one_run():
    assert estimate([probe(2.0)], n_trials=2, workers=8).seconds == pytest.approx(18)


def test_features_are_paid_once_for_each_backbone():
    probes = [
        probe(1.0, 9, once, f"model={model}", f"data.batch_size={batch}")
        for model, batch, once in [
            ("vgg16", 8, 90.0),
            ("vgg16", 64, 100.0),
            ("vgg19", 8, 120.0),
            ("vgg19", 64, 110.0),
        ]
    ]
    plan = estimate(probes, n_trials=20, workers=1)
    assert plan.seconds == pytest.approx(20 * 9 + 100 + 120)


def test_no_probe_no_estimate():
    with pytest.raises(SearchError, match="no probe of the sweep succeeded: out of memory"):
        estimate([probe(1.0, error="out of memory")], 10, 1)


@pytest.mark.parametrize("hours", [0.5, 1, 3, 12, 100])
def test_the_fitting_plan_uses_the_time_and_no_more(hours):
    probes = [probe(8.0, 27), probe(12.0, 27)]
    plan = fit(probes, hours * 3600, workers=2, confirm_runs=6)
    assert plan.seconds <= hours * 3600
    one_more = estimate(probes, plan.n_trials + 1, 2, plan.min_resource, confirm_runs=6)
    assert one_more.seconds > hours * 3600
    assert plan == estimate(probes, plan.n_trials, 2, plan.min_resource, confirm_runs=6)


def test_more_time_means_less_pruning():
    def rungs() -> Iterator[int]:
        for hours in (0.4, 1, 1.5, 3, 100):
            plan = fit([probe(10.0, 27)], hours * 3600, workers=2, confirm_runs=6)
            assert plan.n_trials >= GOOD_TRIALS or plan.min_resource == 1
            yield plan.min_resource

    found = list(rungs())
    assert found == sorted(found)
    assert found[0] == 1
    assert found[-1] == 27


def test_too_little_time_is_refused_with_the_time_it_takes():
    with pytest.raises(
        SearchError, match=r"10 min is too short: 4 trials and 6 runs .* about 18 min with 2 workers"
    ):
        fit([probe(10.0, 27)], 600, workers=2, confirm_runs=6)
    assert fit([probe(10.0, 27)], 18.1 * 60, workers=2, confirm_runs=6).n_trials >= 4


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90),
        ("90", 90),
        (1.5, 1.5),
        ("45s", 45),
        ("90m", 5400),
        ("6h", 21600),
        ("1h30m", 5400),
        ("2d 1h", 176400),
    ],
)
def test_durations(written, seconds):
    assert duration(written) == seconds


@pytest.mark.parametrize("written", ["", "soon", "6 hours", "-3", "0", "m", "1h30", True, None, math.nan])
def test_what_is_no_duration_is_refused(written):
    with pytest.raises(SearchError, match=r"write 90 \(seconds\), 45s, 90m, 6h, 1h30m or 2d"):
        duration(written)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (40, "40 s"),
        (100, "2 min"),
        (7800, "2 h 10 min"),
        (21600, "6 h"),
        (273600, "3 d 4 h"),
        (259200, "3 d"),
    ],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words
