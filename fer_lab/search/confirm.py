"""No lucky winner: the best trials of a search again over seeds that the search never saw.

The score that won a search flatters: it is the largest of many noisy ones. So it has no part in the ranking here.
A job is a dict that becomes the user_attrs of its trial: `of` (the trial's number), `seed`, `overrides` (the whole
list of words) and, for an ablation, `reverted` (the key that goes back to its default).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SURE = 0.95
"""Probability from which the first is said to beat the second, and the coverage of the intervals."""


@dataclass(frozen=True)
class Confirmed:
    """A configuration over its seeds; low..high is the 95% t interval of the mean, nan for a single seed."""

    number: int
    words: tuple[str, ...]
    search_score: float
    scores: tuple[float, ...]
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Verdict:
    """The ranking, best first. `probability` that the first beats the second (nan where nothing can be said),
    `rivals` the numbers of those that it does not beat with 95%."""

    ranking: tuple[Confirmed, ...]
    probability: float
    rivals: tuple[int, ...]

    @property
    def winner(self) -> Confirmed:
        return self.ranking[0]

    @property
    def tied(self) -> bool:
        return bool(self.rivals)

    @property
    def sentence(self) -> str:
        first, seeds = self.winner, len(self.winner.scores)
        if seeds == 1:
            return (
                f"Trial {first.number} has {first} on one new seed: nothing can be said of the spread; "
                "confirm with more seeds."
            )
        text = f"{first} over {seeds} new seeds"
        if len(self.ranking) == 1:
            return f"Trial {first.number} scores {text}; no other configuration was confirmed."
        second = self.ranking[1]
        against = f"trial {second.number} ({second})"
        if self.tied:
            names = ", ".join(str(number) for number in (first.number, *self.rivals[:-1]))
            chance = "" if math.isnan(self.probability) else f" with probability {_chance(self.probability)}"
            return (
                f"Tied: trials {names} and {self.rivals[-1]} cannot be told apart. Trial {first.number} leads "
                f"with {text} and beats {against}{chance or ' on too few seeds to say'}."
            )
        return f"Trial {first.number} wins: {text}; it beats {against} with probability {_chance(self.probability)}."


@dataclass(frozen=True)
class Contribution:
    """What a key's value brings over its default: mean difference of the score (positive: the value is better)
    over `seeds` seeds, with its 95% t interval (nan for a single seed)."""

    key: str
    mean: float
    low: float
    high: float
    seeds: int


def best_trials(study: Study, top: int) -> list[FrozenTrial]:
    """The `top` best complete trials of different parameters, best first; of several objectives the first counts."""
    maximize = study.directions[0].name == "MAXIMIZE"
    complete = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name == "COMPLETE" and math.isfinite(trial.values[0])
    ]
    ordered = sorted(complete, key=lambda trial: -trial.values[0] if maximize else trial.values[0])
    distinct: dict[tuple[tuple[str, Any], ...], FrozenTrial] = {}
    for trial in ordered:
        distinct.setdefault(tuple(sorted(trial.params.items())), trial)
    return list(distinct.values())[:top]


def confirm_jobs(study: Study, top: int, seeds: int, base_seed: int) -> list[dict[str, Any]]:
    """The best `top` configurations, each with seeds base_seed+1 .. base_seed+seeds: never the search's own.

    All configurations of a seed come before the next seed, so that an early end leaves them comparable.
    """
    return [
        {"of": trial.number, "seed": seed, "overrides": with_seed(trial.user_attrs["overrides"], seed)}
        for seed in range(base_seed + 1, base_seed + seeds + 1)
        for trial in best_trials(study, top)
    ]


def with_seed(words: Iterable[str], seed: int) -> list[str]:
    return [*(word for word in words if not word.startswith("seed=")), f"seed={seed}"]


def verdict(confirmations: Iterable[FrozenTrial], study: Study) -> Verdict | None:
    """What the seeds say so far; configurations whose seeds all failed are left out. None before the first score."""
    maximize = study.directions[0].name == "MAXIMIZE"
    searched = study.get_trials(deepcopy=False)
    by_seed = _scores(confirmations, "of")
    found = [_confirmed(searched[number], by_seed[number].values()) for number in by_seed]
    if not found:
        return None
    sign = 1 if maximize else -1
    ranking = sorted(found, key=lambda one: (len(one.scores) > 1, sign * one.mean), reverse=True)
    chances = [probability(ranking[0], other, maximize) for other in ranking[1:]]
    rivals = tuple(
        other.number for other, chance in zip(ranking[1:], chances, strict=True) if not chance >= SURE
    )
    return Verdict(tuple(ranking), chances[0] if chances else math.nan, rivals)


def _confirmed(trial: FrozenTrial, scores: Iterable[float]) -> Confirmed:
    scores = tuple(scores)
    mean, low, high = interval(scores)
    return Confirmed(
        trial.number, tuple(trial.user_attrs["overrides"]), trial.values[0], scores, mean, low, high
    )


def interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the bounds of its 95% t interval: nan for a single score."""
    from scipy.special import stdtrit

    mean, count = fmean(scores), len(scores)
    if count == 1:
        return mean, math.nan, math.nan
    half = float(stdtrit(count - 1, (1 + SURE) / 2)) * math.sqrt(variance(scores) / count)
    return mean, mean - half, mean + half


def probability(first: Confirmed, second: Confirmed, maximize: bool) -> float:
    """That the first's true mean is the better one: Student's t posterior of the difference under flat priors,
    with Welch's degrees of freedom. nan where one of them has a single seed."""
    from scipy.special import stdtr

    sizes = len(first.scores), len(second.scores)
    if min(sizes) < 2:
        return math.nan
    errors = [variance(one.scores) / len(one.scores) for one in (first, second)]
    lead = (first.mean - second.mean) * (1 if maximize else -1)
    if sum(errors) == 0:
        return 0.5 if lead == 0 else float(lead > 0)
    freedom = sum(errors) ** 2 / sum(error**2 / (size - 1) for error, size in zip(errors, sizes, strict=True))
    return float(stdtr(freedom, lead / math.sqrt(sum(errors))))


def ablation_jobs(
    winner: FrozenTrial,
    when: Mapping[str, Iterable[str]],
    unchanged: Iterable[str],
    seeds: int,
    base_seed: int,
) -> list[dict[str, Any]]:
    """The winner with one key after the other back at its default, over the seeds of `confirm_jobs`.

    `when` maps a swept key to the keys that its conditions name: what hangs on a reverted key goes back with
    it, since momentum means nothing without its optimizer. `unchanged`: keys that have their default already.
    """
    words = list(winner.user_attrs["overrides"])
    keys = [word.partition("=")[0] for word in words]
    jobs = []
    for seed in range(base_seed + 1, base_seed + seeds + 1):
        for reverted in (key for key in keys if key not in {*unchanged, "seed"}):
            gone = _hanging_on(reverted, when)
            kept = [word for word, key in zip(words, keys, strict=True) if key not in gone]
            job = {"of": winner.number, "seed": seed, "reverted": reverted}
            jobs.append({**job, "overrides": with_seed(kept, seed)})
    return jobs


def _hanging_on(key: str, when: Mapping[str, Iterable[str]]) -> set[str]:
    gone = {key}
    while more := {other for other, needs in when.items() if gone & set(needs)} - gone:
        gone |= more
    return gone


def contributions(
    ablations: Iterable[FrozenTrial], confirmations: Iterable[FrozenTrial], winner: int, maximize: bool
) -> list[Contribution]:
    """Per reverted key what its value is worth, largest first: differences of runs with the same seed."""
    whole = _scores(confirmations, "of").get(winner, {})
    mine = [trial for trial in ablations if trial.user_attrs.get("of") == winner]
    found = []
    for key, scores in _scores(mine, "reverted").items():
        sign = 1 if maximize else -1
        differences = [sign * (whole[seed] - score) for seed, score in scores.items() if seed in whole]
        if differences:
            found.append(Contribution(key, *interval(differences), seeds=len(differences)))
    return sorted(found, key=lambda one: one.mean, reverse=True)


def _scores(trials: Iterable[FrozenTrial], by: str) -> dict[Any, dict[int, float]]:
    """The scores of complete jobs by an attribute of theirs, then by seed."""
    found: dict[Any, dict[int, float]] = {}
    for trial in trials:
        if trial.state.name == "COMPLETE" and by in trial.user_attrs:
            found.setdefault(trial.user_attrs[by], {})[trial.user_attrs["seed"]] = trial.values[0]
    return found


def _chance(probability: float) -> str:
    return "over 0.999" if probability > 0.999 else f"{probability:.3g}"
