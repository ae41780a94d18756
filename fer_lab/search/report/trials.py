"""The trials of a search as numbers: their scores, their keys as places on an axis, and which keys matter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

FEWEST = 8
"""Scored trials below which nothing is said of importance."""
GOOD = 5


@dataclass(frozen=True)
class Key:
    """A swept key over all the ranges that it has under its conditions; `names` are its Optuna parameters."""

    label: str
    ranges: Mapping[str, BaseDistribution]

    @property
    def choices(self) -> list[Any]:
        """In the order of the space, numbers in their own; empty for a range of numbers."""
        found = dict.fromkeys(one for part in self.ranges.values() for one in getattr(part, "choices", ()))
        numbers = all(isinstance(one, int | float) for one in found)
        return sorted(found) if numbers else list(found)

    @property
    def is_log(self) -> bool:
        return any(getattr(part, "log", False) for part in self.ranges.values())

    @property
    def bounds(self) -> tuple[float, float]:
        lows, highs = zip(*((part.low, part.high) for part in self.ranges.values()), strict=True)  # type: ignore[attr-defined]
        return min(lows), max(highs)

    def name(self, trial: FrozenTrial) -> str | None:
        """Which of its parameters the trial had; None where the key has no part in it."""
        return next((name for name in self.ranges if name in trial.params), None)

    def place(self, trial: FrozenTrial) -> float:
        """The value on an axis: log10 of it, or the number of its choice; nan where it has no part."""
        name = self.name(trial)
        if name is None:
            return math.nan
        value = trial.params[name]
        if self.choices:
            return float(self.choices.index(value))
        return math.log10(value) if self.is_log else float(value)

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of `place`, widened where there is but one."""
        if self.choices:
            return -0.5, len(self.choices) - 0.5
        low, high = (math.log10(end) if self.is_log else float(end) for end in self.bounds)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    def share(self, place: float) -> float:
        """0..1 between the limits."""
        low, high = self.limits
        return (place - low) / (high - low)

    def height(self, trial: FrozenTrial) -> float:
        return self.share(self.place(trial))

    @property
    def ticks(self) -> tuple[list[float], list[str]]:
        if self.choices:
            return [float(place) for place in range(len(self.choices))], [str(one) for one in self.choices]
        low, high = self.limits
        if self.is_log and high - low >= 1:
            places = [float(place) for place in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
            return places, [f"{10**place:g}" for place in places]
        places = marks(low, high, 4)
        return places, [f"{10**place if self.is_log else place:.3g}" for place in places]


@dataclass(frozen=True)
class Search:
    """What the figures are drawn from: the trials that count, and what they were scored by."""

    study: Study
    metrics: tuple[str, ...]
    trials: Sequence[FrozenTrial]

    @property
    def metric(self) -> str:
        return self.metrics[0]

    @property
    def maximize(self) -> bool:
        return self.study.directions[0].name == "MAXIMIZE"

    @property
    def scored(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if not math.isnan(self.score(trial))]

    @property
    def complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.scored if is_complete(trial)]

    @property
    def pruned(self) -> list[FrozenTrial]:
        return [trial for trial in self.scored if not is_complete(trial)]

    @property
    def span(self) -> tuple[float, float]:
        """The scores that are worth a look, low and high: from the best over three times the distance to the median.
        A few trials far off would press all the others together."""
        scores = [self.score(trial) for trial in self.complete]
        best, middle = pick(self.maximize)(scores), statistics.median(scores)
        worst = pick(self.maximize)(best + 3 * (middle - best), pick(not self.maximize)(scores))
        low, high = min(best, worst), max(best, worst)
        return (low, high) if high > low else (low - 0.01, high + 0.01)

    @property
    def best(self) -> FrozenTrial | None:
        return pick(self.maximize)(self.complete, key=self.score, default=None)

    def score(self, trial: FrozenTrial) -> float:
        """Of a pruned trial the best epoch that it reached; nan where there is none."""
        if is_complete(trial):
            return float(trial.values[0]) if math.isfinite(trial.values[0]) else math.nan
        return float(
            pick(self.maximize)(filter(math.isfinite, trial.intermediate_values.values()), default=math.nan)
        )

    @property
    def keys(self) -> list[Key]:
        """Those that differ between trials; parameters of one key under several conditions are one key,
        unless they are choices here and numbers there."""
        found: dict[tuple[str, bool], dict[str, BaseDistribution]] = {}
        for trial in self.trials:
            for name, part in trial.distributions.items():
                key = name.partition(" (")[0], hasattr(part, "choices")
                found.setdefault(key, {})[name] = part
        names = [name for name, _ in found]
        keys = [
            Key(name if names.count(name) == 1 else next(iter(ranges)), ranges)
            for (name, _), ranges in found.items()
        ]
        return [key for key in keys if len({key.place(trial) for trial in self.scored}) > 1]


def marks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, both included where they are round."""
    slack = 1e-6 * (high - low)
    return [mark for mark in MaxNLocator(most).tick_values(low, high) if low - slack <= mark <= high + slack]


def is_complete(trial: FrozenTrial) -> bool:
    return trial.state.name == "COMPLETE"


def pick(maximize: bool) -> Callable[..., Any]:
    return max if maximize else min


def importance(search: Search) -> dict[str, float]:
    """PED-ANOVA's share of each parameter (sum 1), largest first; empty where there are too few trials.

    Pruned trials take part with the score that they reached: without them the bad half of the space would be
    missing. At least GOOD trials count as good ones, as Optuna advises.
    """
    import warnings

    import optuna

    scored = search.scored
    if len(scored) < FEWEST or len(search.complete) < GOOD or not search.keys:
        return {}
    copy = optuna.create_study(directions=search.study.directions)
    for trial in scored:
        values = trial.values if is_complete(trial) else [search.score(trial)]
        copy.add_trial(
            optuna.create_trial(params=trial.params, distributions=trial.distributions, values=values)
        )
    quantile = min(0.5, max(0.1, GOOD / len(scored)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, and that some condition was rare
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        found = optuna.importance.get_param_importances(copy, evaluator=evaluator)
    return {name: share for name, share in found.items() if math.isfinite(share)}
