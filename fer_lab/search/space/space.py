"""A search space: which settings a sweep may try, and which of them belong together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial

from fer_lab.search.errors import SearchError
from fer_lab.search.space.covering import covering
from fer_lab.search.space.grammar import Parameter, ends, find, same, text, values, word
from fer_lab.search.space.reading import read_space


@dataclass(frozen=True)
class Space:
    """`parameters` in the order of asking, `fixed` words of the command line, known `points` to try first.

    A configuration is a dictionary of Optuna parameters by name, with those only whose conditions hold. `base` is
    every setting of the fixed words by its key, group choices (`groups`) too, but for the places (runs_dir …).
    """

    parameters: tuple[Parameter, ...]
    fixed: tuple[str, ...]
    points: tuple[dict[str, Any], ...]
    base: Mapping[str, Any]
    groups: frozenset[str]
    faults: tuple[str, ...] = ()

    @classmethod
    def read(cls, section: Mapping[str, Any], words: Sequence[str], base: DictConfig) -> Space:
        """As `look`; raises SearchError with every fault."""
        space = cls.look(section, words, base)
        if space.faults:
            raise SearchError("\n".join(space.faults))
        return space

    @classmethod
    def look(cls, section: Mapping[str, Any], words: Sequence[str], base: DictConfig) -> Space:
        """From hydra.sweeper (params, when, points, places) and the words of the command line, faults and all.

        `base` is what the fixed words compose, hydra node included.
        """
        groups = {key: choice for key, choice in base.hydra.runtime.choices.items() if "/" not in key}
        settings = {**flat(base), **groups}
        parameters, fixed, points, faults = read_space(section, words, settings)
        places = tuple(section.get("places") or ())
        kept = {
            key: value
            for key, value in settings.items()
            if not any(key == place or key.startswith(f"{place}.") for place in places)
        }
        return cls(tuple(parameters), fixed, tuple(points), kept, frozenset(groups), tuple(faults))

    def suggest(self, trial: optuna.Trial) -> list[str]:
        """Asks for the parameters that apply; the words that set them."""
        return self.words(next(self.configurations(lambda parameter: [ask(trial, parameter)])))

    def words(self, params: Mapping[str, Any]) -> list[str]:
        """The words of a configuration, groups first; names that are none of this space's are passed over."""
        chosen = [one for one in self.parameters if one.name in params]
        chosen.sort(key=lambda one: one.key not in self.groups)
        return [word(one.key, params[one.name]) for one in chosen]

    def configurations(self, candidates: Callable[[Parameter], Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """Every combination of the candidates; they are called for after the choices that a parameter waits for."""

        def grow(index: int, by_key: dict[str, Any], params: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if index == len(self.parameters):
                yield params
                return
            parameter = self.parameters[index]
            if not parameter.applies(by_key):
                yield from grow(index + 1, by_key, params)
                return
            for value in candidates(parameter):
                yield from grow(
                    index + 1, {**by_key, parameter.key: value}, {**params, parameter.name: value}
                )

        return grow(0, {}, {})

    @property
    def deciding(self) -> frozenset[str]:
        """Keys that conditions name."""
        return frozenset(key for parameter in self.parameters for key, _ in parameter.when)

    @property
    def size(self) -> int | None:
        """How many configurations there are; None where infinitely many."""

        @cache
        def count(index: int, chosen: frozenset[tuple[str, str]]) -> float:
            """From parameter `index` on, after the choices that a later condition names."""
            if index == len(self.parameters):
                return 1
            parameter, later = self.parameters[index], self.parameters[index + 1 :]
            named = {key for one in later for key, _ in one.when}
            kept = frozenset(one for one in chosen if one[0] in named)
            if not parameter.applies(dict(chosen)):
                return count(index + 1, kept)
            listed = values(parameter.distribution)
            if parameter.key not in named or listed is None:
                return (math.inf if listed is None else len(listed)) * count(index + 1, kept)
            return sum(count(index + 1, kept | {(parameter.key, text(value))}) for value in listed)

        total = count(0, frozenset())
        return None if math.isinf(total) else int(total)

    def samples(self, limit: int = 256) -> list[dict[str, Any]]:
        """Configurations that show every choice and both ends of every parameter, and every combination of the
        structural ones (groups, and keys that conditions name); of more than `limit` combinations, every pair."""
        listed = {one.name: self.different(one) for one in self.parameters}
        found = list(islice(self.configurations(lambda one: listed[one.name]), limit + 1))
        if len(found) > limit:
            found = covering(self.parameters, listed)
        for parameter in self.parameters:
            if len(listed[parameter.name]) == 1:
                shown = ends(parameter.distribution)
                places = [params for params in found if parameter.name in params]
                while places and len(places) < len(shown):
                    places.append(dict(places[0]))
                    found.append(places[-1])
                for params, value in zip(places, cycle(shown), strict=False):
                    params[parameter.name] = value
        return found

    def different(self, parameter: Parameter) -> list[Any]:
        """The values of a structural parameter that may lead to another config; of any other one its first."""
        shown = ends(parameter.distribution)
        if parameter.key not in self.groups | self.deciding:
            return shown[:1]
        conditions = (condition for one in self.parameters for condition in one.when)
        named = {value for key, those in conditions if key == parameter.key for value in those}
        inside = [value for value in values(parameter.distribution) or () if text(value) in named]
        return [*shown, *(value for value in inside if value not in shown)]

    def combinations(self, limit: int = 256) -> list[list[str]]:
        """The words of `samples`."""
        return [self.words(params) for params in self.samples(limit)]

    def extremes(self, keys: Sequence[str]) -> list[list[str]]:
        """The words of every combination of the ends of `keys`: each choice of a group, lowest and highest of numbers.

        Other parameters have their first or lowest value.
        """

        def candidates(parameter: Parameter) -> list[Any]:
            found = ends(parameter.distribution)
            if parameter.key not in keys:
                return found[:1]
            numbers = [
                value for value in found if isinstance(value, int | float) and not isinstance(value, bool)
            ]
            return sorted({min(numbers), max(numbers)}) if len(numbers) == len(found) else found

        return [self.words(params) for params in self.configurations(candidates)]

    def facts(self) -> dict[str, Any]:
        """Everything that `carry_over` needs to know of this space later, as JSON has it."""
        parameters = [
            {
                "name": one.name,
                "key": one.key,
                "distribution": distribution_to_json(one.distribution),
                "when": one.when,
            }
            for one in self.parameters
        ]
        fixed = [written for written in self.fixed if written.partition("=")[0].lstrip("+") in self.base]
        return json.loads(json.dumps({"parameters": parameters, "fixed": fixed, "base": self.base}))

    def carry_over(self, trial: FrozenTrial, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The configuration of this space that a trial of the space of `facts` was; None where it was none.

        A key that was not swept then counts with the value that it had; one that is not swept now must have had
        the value of now.
        """
        keys = {one["name"]: one["key"] for one in facts["parameters"]}
        old = {keys[name]: value for name, value in trial.params.items() if name in keys}
        new: dict[str, Any] = {}
        params = {}
        for parameter in self.parameters:
            if parameter.applies(new):
                before = self.setting(parameter.key, old, facts)
                inside = [value for one in before for value in find(parameter.distribution, one)]
                if not inside:
                    return None
                params[parameter.name] = new[parameter.key] = inside[0]
        present = self.facts()
        for key in (facts["base"].keys() | self.base.keys() | old.keys()) - self.groups - new.keys():
            before, now = self.setting(key, old, facts), self.setting(key, new, present)
            if (before and now and not same(before[0], now[0])) or (key in old and not now):
                return None
        return params

    def setting(self, key: str, chosen: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Any]:
        """[the value of `key`] with the `chosen` values in a space of `facts`; [] where another choice of its
        group makes it unknown."""
        if key in chosen:
            return [chosen[key]]
        base, owner = facts["base"], key.partition(".")[0]
        elsewhere = owner in self.groups and owner in chosen and chosen[owner] != base.get(owner)
        said = key in {written.partition("=")[0].lstrip("+") for written in facts["fixed"]}
        return [base[key]] if key in base and (said or not elsewhere) else []


def ask(trial: optuna.Trial, parameter: Parameter) -> Any:
    name, distribution = parameter.name, parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(
        name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
    )


def flat(config: DictConfig) -> dict[str, Any]:
    """Every value by its dotted key; lists whole; hydra's own interpolations as they are written."""
    found: dict[str, Any] = {}

    def walk(section: Mapping[str, Any], prefix: str) -> None:
        for name, value in section.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping):
                walk(value, f"{key}.")
            elif isinstance(value, str) and "${" in value and "${hydra:" not in value:
                found[key] = OmegaConf.select(config, key, throw_on_resolution_failure=False)
            elif value != "???":
                found[key] = value

    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    walk(OmegaConf.to_container(settings), "")  # type: ignore[arg-type]
    return found
