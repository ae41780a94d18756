"""Confirmation: which trials go again over which seeds, and what their scores allow to be said."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
import scipy.stats
from optuna.trial import TrialState

from fer_lab.search.confirm import (
    ablation_jobs,
    best_trials,
    confirm_jobs,
    contributions,
    interval,
    verdict,
)

WHEN = {"optimizer.momentum": ["optimizer"], "optimizer.nesterov": ["optimizer.momentum"]}


def search(
    *values: float | None, direction: str = "maximize", lrs: list[float] | None = None
) -> optuna.Study:
    """A finished search, a trial per value; None: pruned. Trials differ in lr unless `lrs` says so."""
    study = optuna.create_study(direction=direction)
    for number, value in enumerate(values):
        lr = (lrs or [0.1 + 0.01 * place for place in range(len(values))])[number]
        study.add_trial(
            optuna.create_trial(
                state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
                value=value,
                params={"lr": lr},
                distributions={"lr": optuna.distributions.FloatDistribution(0, 1)},
                user_attrs={"overrides": [f"lr={lr}", "seed=0"]},
            )
        )
    return study


def jobs_done(jobs: list[dict], scores: dict) -> list[optuna.trial.FrozenTrial]:
    """The jobs as trials; `scores` by (of or reverted, seed), None: failed."""
    study = optuna.create_study(direction="maximize")
    for job in jobs:
        score = scores[job.get("reverted", job["of"]), job["seed"]]
        trial = study.ask()
        for key, value in job.items():
            trial.set_user_attr(key, value)
        study.tell(trial, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)
    return study.trials


def confirmed(study: optuna.Study, scores: dict[int, list[float | None]]):
    seeds = max(map(len, scores.values()))
    jobs = [job for job in confirm_jobs(study, 99, seeds, 0) if job["of"] in scores]
    by_job = {(number, seed): one for number, row in scores.items() for seed, one in enumerate(row, start=1)}
    return verdict(jobs_done([job for job in jobs if (job["of"], job["seed"]) in by_job], by_job), study)


def test_the_best_distinct_complete_trials_go_again_over_seeds_that_the_search_never_used():
    study = search(0.5, 0.9, None, 0.8, 0.9, 0.7, lrs=[0.1, 0.2, 0.3, 0.4, 0.2, 0.6])
    jobs = confirm_jobs(study, top=3, seeds=2, base_seed=7)
    assert [(job["of"], job["seed"]) for job in jobs] == [(1, 8), (3, 8), (5, 8), (1, 9), (3, 9), (5, 9)]
    assert jobs[4]["overrides"] == ["lr=0.4", "seed=9"]


def test_less_is_better_where_the_study_minimizes_and_infinite_scores_never_win():
    study = search(0.5, 0.2, 0.9, -math.inf, direction="minimize")
    assert [trial.number for trial in best_trials(study, 2)] == [1, 0]
    found = confirmed(study, {0: [0.41, 0.42, 0.40], 1: [0.61, 0.62, 0.63]})
    assert found.winner.number == 0
    assert found.probability > 0.99


def test_interval_and_probability_are_students():
    generator = np.random.default_rng(0)
    for _ in range(20):
        first, second = generator.normal(0.62, 0.01, 5).tolist(), generator.normal(0.61, 0.02, 4).tolist()
        found = confirmed(search(0.9, 0.8), {0: first, 1: second})
        low, high = scipy.stats.t.interval(0.95, 4, np.mean(first), scipy.stats.sem(first))
        expected = 1 - scipy.stats.ttest_ind(first, second, equal_var=False, alternative="greater").pvalue
        of_first = next(one for one in found.ranking if one.number == 0)
        assert (of_first.low, of_first.high) == pytest.approx((low, high))
        assert found.probability == pytest.approx(max(expected, 1 - expected))


def test_the_luckiest_of_the_search_loses_to_the_better_one():
    found = confirmed(search(0.80, 0.78), {0: [0.70, 0.71, 0.70, 0.72], 1: [0.75, 0.76, 0.75, 0.77]})
    assert (found.winner.number, found.winner.search_score, found.tied) == (1, 0.78, False)
    assert found.winner.words == ("lr=0.11", "seed=0")
    assert "Trial 1 wins: 0.7575 [" in found.sentence
    assert "beats trial 0 (0.7075 [" in found.sentence


def test_what_cannot_be_told_apart_is_tied():
    found = confirmed(
        search(0.8, 0.79, 0.5), {0: [0.70, 0.74, 0.72], 1: [0.71, 0.75, 0.72], 2: [0.5, 0.51, 0.5]}
    )
    assert (found.rivals, found.tied) == ((0,), True)
    assert found.sentence.startswith("Tied: trials 1 and 0 cannot be told apart")
    assert f"with probability {found.probability:.3g}" in found.sentence


def test_one_seed_says_nothing_of_the_spread():
    found = confirmed(search(0.8, 0.7), {0: [0.6], 1: [0.5]})
    assert math.isnan(found.probability)
    assert math.isnan(found.winner.low)
    assert "nothing can be said" in found.sentence


def test_missing_seeds_are_no_scores_and_a_lone_seed_does_not_win():
    found = confirmed(
        search(0.8, 0.7, 0.6), {0: [None, None, 0.99], 1: [0.70, None, 0.72], 2: [None, None, None]}
    )
    assert [(one.number, one.scores) for one in found.ranking] == [(1, (0.70, 0.72)), (0, (0.99,))]
    assert found.tied, "against a single seed nothing is sure"
    assert "too few seeds" in found.sentence
    assert confirmed(search(0.8), {0: [None]}) is None


def test_equal_scores_are_even_and_constant_ones_are_sure():
    even = confirmed(search(0.8, 0.7), {0: [0.5, 0.5], 1: [0.5, 0.5]})
    assert (even.probability, even.tied) == (0.5, True)
    sure = confirmed(search(0.8, 0.7), {0: [0.5, 0.5], 1: [0.6, 0.6]})
    assert (sure.winner.number, sure.probability, sure.tied) == (1, 1.0, False)


def test_a_reverted_key_takes_with_it_what_hangs_on_it():
    words = [
        "optimizer=sgd",
        "optimizer.momentum=0.9",
        "optimizer.nesterov=true",
        "data.batch_size=32",
        "lr=1",
    ]
    winner = optuna.create_trial(value=0.8, user_attrs={"overrides": words})
    winner.number = 4
    jobs = ablation_jobs(winner, WHEN, ["lr"], seeds=2, base_seed=0)
    assert [(job["reverted"], job["seed"]) for job in jobs][:4] == [
        ("optimizer", 1),
        ("optimizer.momentum", 1),
        ("optimizer.nesterov", 1),
        ("data.batch_size", 1),
    ]
    assert len(jobs) == 8
    assert jobs[0]["overrides"] == ["data.batch_size=32", "lr=1", "seed=1"]
    assert jobs[1]["overrides"] == ["optimizer=sgd", "data.batch_size=32", "lr=1", "seed=1"]
    assert jobs[7]["overrides"] == [*words[:3], "lr=1", "seed=2"]
    assert {job["of"] for job in jobs} == {4}


@pytest.mark.parametrize("maximize", [True, False])
def test_a_contribution_is_the_mean_difference_of_runs_with_the_same_seed(maximize):
    sign = 1 if maximize else -1
    winner = optuna.create_trial(value=0.8, user_attrs={"overrides": ["a=1", "b=1"]})
    winner.number = 0
    whole = jobs_done(
        confirm_jobs(search(0.8), 1, 3, 0), {(0, seed): sign * 0.7 + seed / 10 for seed in (1, 2, 3)}
    )
    jobs = ablation_jobs(winner, {}, [], seeds=3, base_seed=0)
    lost = {"a": [0.01, 0.02, 0.03], "b": [0.05, 0.07, None]}
    scores = {
        (key, seed): None if one is None else sign * (0.7 - one) + seed / 10
        for key, row in lost.items()
        for seed, one in enumerate(row, start=1)
    }
    found = contributions(jobs_done(jobs, scores), whole, 0, maximize)
    assert [(one.key, one.seeds) for one in found] == [("b", 2), ("a", 3)]
    assert (found[1].mean, found[1].low, found[1].high) == pytest.approx(interval(lost["a"]))
    assert contributions(jobs_done(jobs, scores), whole, 9, maximize) == []
    (without_third,) = {one.seeds for one in contributions(jobs_done(jobs, scores), whole[:2], 0, maximize)}
    assert without_third == 2
