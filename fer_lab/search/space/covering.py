"""Few configurations that show every pair of choices, for spaces with too many combinations to show them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

from fer_lab.search.space.grammar import Condition, Parameter, text


def covering(parameters: Sequence[Parameter], listed: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Configurations of the `listed` values, by parameter name, in which every pair of them occurs that can.

    Greedy: a pair not yet shown is completed by the values that were used least.
    """
    used: Counter[tuple[str, str]] = Counter()
    found: list[dict[str, Any]] = []
    shown: list[dict[str, str]] = []
    for demand in demands(parameters, listed):
        if any(shows(one, demand) for one in shown):
            continue
        params, by_key = completed(parameters, listed, closure(parameters, demand), used)
        if shows(by_key, demand):
            found.append(params)
            shown.append(by_key)
            used.update((name, text(value)) for name, value in params.items())
    return found


def demands(parameters: Sequence[Parameter], listed: Mapping[str, Sequence[Any]]) -> list[Condition]:
    """Each pair of values of two parameters, then each value alone, always with what their parameters wait for."""

    def demand(parameter: Parameter, value: Any) -> Condition:
        return ((parameter.key, (text(value),)), *parameter.when)

    pairs = [
        demand(one, value) + demand(other, their)
        for one, other in combinations(parameters, 2)
        if one.key != other.key
        for value, their in product(listed[one.name], listed[other.name])
    ]
    return [*pairs, *(demand(one, value) for one in parameters for value in listed[one.name])]


def closure(parameters: Sequence[Parameter], demand: Condition) -> dict[str, set[str]]:
    """By key: the values that a demand allows, with what the conditions of its keys ask of other keys."""
    allowed: dict[str, set[str]] = {}
    waiting = list(demand)
    while waiting:
        key, values = waiting.pop()
        if key not in allowed:
            twins = [one for one in parameters if one.key == key]
            waiting += twins[0].when if len(twins) == 1 else ()
        allowed[key] = allowed.get(key, set(values)) & set(values)
    return allowed


def completed(
    parameters: Sequence[Parameter],
    listed: Mapping[str, Sequence[Any]],
    allowed: Mapping[str, set[str]],
    used: Mapping[tuple[str, str], int],
) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration within `allowed` as far as can be, by parameter name and, in words, by key."""
    params: dict[str, Any] = {}
    by_key: dict[str, str] = {}
    for parameter in parameters:
        if parameter.applies(by_key):
            options = listed[parameter.name]
            fitting = [value for value in options if text(value) in allowed.get(parameter.key, {text(value)})]
            value = min(fitting or options, key=lambda value: used.get((parameter.name, text(value)), 0))
            params[parameter.name], by_key[parameter.key] = value, text(value)
    return params, by_key


def shows(by_key: Mapping[str, str], demand: Condition) -> bool:
    return all(by_key.get(key) in values for key, values in demand)
