"""Before trial 0: does every choice compose, how long will it take, what fits into the time there is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fer_lab.search.errors import SearchError
from fer_lab.search.space.grammar import Parameter, kind_fault, near, text
from fer_lab.search.space.space import Space, flat

FEW_TRIALS, GOOD_TRIALS = 4, 30
"""Fewer are no search; so many let TPE propose two thirds of them after its ten random ones."""


def composition_faults(compose: Callable[[list[str]], DictConfig], space: Space) -> list[str]:
    """Every way in which a configuration of the space does not compose, or sets a value of the wrong kind, once each.

    `compose` gives the config of the space's fixed words and of these. It is called for every sample of the space
    and, where values are swept too, for the groups of each sample alone: that config shows which keys exist.
    """
    usual: dict[tuple[str, ...], Mapping[str, Any]] = {}
    faults: dict[str, None] = {}
    present: dict[Parameter, list[dict[str, str]]] = {}
    absent: dict[Parameter, list[dict[str, str]]] = {}
    for params in space.samples():
        asked = [one for one in space.parameters if one.name in params]
        groups = {one.key: text(params[one.name]) for one in asked if one.key in space.groups}
        inner = [one for one in asked if one.key not in space.groups]
        choices = tuple(space.words({one.name: params[one.name] for one in asked if one.key in space.groups}))
        try:
            if inner and choices not in usual:
                usual[choices] = flat(compose(list(choices)))
            missing = [one for one in inner if not one.key.startswith("+") and one.key not in usual[choices]]
            for one in inner:
                (absent if one in missing else present).setdefault(one, []).append(groups)
                if fault := kind_fault(one, usual[choices].get(one.key)):
                    faults[fault] = None
            if not missing:
                compose(space.words(params))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            faults[refusal(error, space.words(params))] = None
    known = {key for config in usual.values() for key in config}
    for parameter, places in absent.items():
        faults[absence(parameter, places, present.get(parameter, []), known)] = None
    return list(faults)


def refusal(error: Exception, words: Sequence[str]) -> str:
    """A composition that Hydra refuses, in our words."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: no such {group}{near(choice, error.options)}; choices: {', '.join(error.options)}"
    return f"{' '.join(words)}: {str(error).splitlines()[0]}"


def absence(
    parameter: Parameter,
    without: Sequence[Mapping[str, str]],
    having: Sequence[Mapping[str, str]],
    known: set[str],
) -> str:
    """A key that the config lacks with some choices of groups: which ones, and the condition that it needs."""
    key = parameter.key
    if not having:
        return f"{key}: no such key{near(key, known)}; +{key} adds one"
    owner = key.partition(".")[0]
    for group in sorted(without[0], key=lambda group: group != owner):
        lacking, holding = ({one.get(group, "") for one in places} for places in (without, having))
        if not lacking & holding:
            condition = f"{group}={','.join(sorted(holding))}"
            return (
                f"{key} does not exist with {group}={','.join(sorted(lacking))}: "
                f"put it under when: {{{condition}: {{{key}: …}}}}"
            )
    example = " ".join(f"{group}={choice}" for group, choice in without[0].items())
    return f"{key} does not exist with {example}: put it under when:, with the choices that have it"


@dataclass(frozen=True)
class Probe:
    """One configuration's step: seconds of an epoch, of the work done once (frozen features), and memory at its peak.

    `epochs` is what a whole run has; a probe with an `error` counts for no time.
    """

    words: tuple[str, ...]
    seconds_per_epoch: float
    once_seconds: float
    memory_bytes: int
    epochs: int
    error: str = ""

    @property
    def seconds(self) -> float:
        """A whole run, without what is done once for all runs."""
        return self.epochs * self.seconds_per_epoch


@dataclass(frozen=True)
class Plan:
    """A sweep of `n_trials`, whose pruning first looks after `min_resource` epochs, and its seconds, confirmation
    included: expected, and at most (every trial the dearest and none pruned)."""

    n_trials: int
    min_resource: int
    seconds: float
    seconds_at_most: float

    def __str__(self) -> str:
        return f"{self.n_trials} trials: about {in_words(self.seconds)}, at most {in_words(self.seconds_at_most)}"


def expected_share(max_epochs: int, min_resource: int, reduction: int = 3) -> float:
    """The mean share of max_epochs that a trial trains when one in `reduction` passes each rung.

    The rungs of successive halving: min_resource, min_resource * reduction, … epochs. Optuna's asynchronous kind
    lets a few more pass among the first trials, which have nobody to be compared with.
    """
    epochs, reached, passing = 0.0, 0, 1.0
    rung = min_resource
    while rung < max_epochs:
        epochs += passing * (rung - reached)
        reached, rung, passing = rung, rung * reduction, passing / reduction
    return (epochs + passing * (max_epochs - reached)) / max_epochs


def estimate(
    probes: Sequence[Probe],
    n_trials: int,
    workers: int,
    min_resource: int | None = None,
    reduction: int = 3,
    confirm_runs: int = 0,
) -> Plan:
    """What a sweep takes. `min_resource` None: nothing is pruned. Raises SearchError where no probe succeeded."""
    good = timed(probes)
    max_epochs = max(probe.epochs for probe in good)
    first_rung = min(min_resource or max_epochs, max_epochs)
    share = expected_share(max_epochs, first_rung, reduction)
    mean = sum(probe.seconds for probe in good) / len(good)
    dearest = max(probe.seconds for probe in good)
    once = done_once(good)
    rounds, last = math.ceil(n_trials / workers), math.ceil(confirm_runs / workers)
    searching = mean * max(n_trials / workers * share, 1.0)
    return Plan(n_trials, first_rung, once + searching + last * mean, once + (rounds + last) * dearest)


def fit(
    probes: Sequence[Probe], seconds: float, workers: int, reduction: int = 3, confirm_runs: int = 0
) -> Plan:
    """The plan that is expected to take `seconds`: as little pruning as leaves GOOD_TRIALS, else as many trials as go.

    Raises SearchError where even the harshest pruning leaves less than FEW_TRIALS.
    """
    max_epochs = max(probe.epochs for probe in timed(probes))
    plans = []
    min_resource = max_epochs
    while True:
        plans.append(longest(probes, seconds, workers, min_resource, reduction, confirm_runs))
        if plans[-1].n_trials >= GOOD_TRIALS or min_resource == 1:
            break
        min_resource = max(1, min_resource // reduction)
    best = max(plans, key=lambda plan: plan.n_trials)
    if best.n_trials < FEW_TRIALS:
        least = estimate(probes, FEW_TRIALS, workers, 1, reduction, confirm_runs).seconds
        raise SearchError(
            f"{in_words(seconds)} is too short: {FEW_TRIALS} trials and {confirm_runs} runs to confirm the best take about "
            f"{in_words(least)} with {workers} workers; give that much, or fewer epochs (trainer.max_epochs=…), less data "
            "(data.limit=…) or less to confirm (hydra.sweeper.confirm.seeds=…)"
        )
    return best


def longest(
    probes: Sequence[Probe],
    seconds: float,
    workers: int,
    min_resource: int,
    reduction: int,
    confirm_runs: int,
) -> Plan:
    """The plan with the most trials that takes no more than `seconds`, with 0 trials where none does."""

    def plan(n_trials: int) -> Plan:
        return estimate(probes, n_trials, workers, min_resource, reduction, confirm_runs)

    low, high = 0, 1
    while plan(high).seconds <= seconds and high < 1_000_000:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan(middle).seconds <= seconds else (low, middle)
    return plan(low)


def timed(probes: Sequence[Probe]) -> list[Probe]:
    good = [probe for probe in probes if not probe.error]
    if not good:
        errors = "; ".join(dict.fromkeys(probe.error for probe in probes)) or "none was made"
        raise SearchError(f"no probe of the sweep succeeded: {errors}")
    return good


def done_once(probes: Sequence[Probe]) -> float:
    """Seconds of what later runs find in the cache, such as a frozen backbone's features: once for each choice of
    groups, as batch size and the like do not change it."""
    longest_of: dict[tuple[str, ...], float] = {}
    for probe in probes:
        groups = tuple(word for word in probe.words if "." not in word.partition("=")[0])
        longest_of[groups] = max(longest_of.get(groups, 0.0), probe.once_seconds)
    return sum(longest_of.values())


UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def duration(written: str | int | float) -> float:
    """Seconds of 90 (seconds), 45s, 90m, 6h, 1h30m or 2d. Raises SearchError."""
    parts = re.fullmatch(r"\s*((?:\d+(?:\.\d+)?\s*[dhms]\s*)+|\d+(?:\.\d+)?)\s*", str(written))
    found = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms]?)", parts[1]) if parts else []
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in found)
    if not seconds > 0:
        raise SearchError(f"{written} is no length of time; write 90 (seconds), 45s, 90m, 6h, 1h30m or 2d")
    return seconds


def in_words(seconds: float) -> str:
    """40 s, 50 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    large, small, names = (minutes // 60, minutes % 60, ("h", "min"))
    if large >= 48:
        large, small, names = (large // 24, large % 24, ("d", "h"))
    return f"{large} {names[0]} {small} {names[1]}" if small else f"{large} {names[0]}"
