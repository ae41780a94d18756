"""From `params`, `when`, `points` and the command line to the parameters of a space, with every fault at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

from optuna.distributions import BaseDistribution

from fer_lab.search.errors import SearchError
from fer_lab.search.space.grammar import (
    Parameter,
    find,
    kind_fault,
    near,
    parse,
    read_condition,
    read_range,
    span,
    swept,
    text,
    values,
    word,
)

Read = TypeVar("Read")


class Words(NamedTuple):
    """The command line: what it fixes, as written and by key, and the ranges that it gives."""

    fixed: tuple[str, ...]
    fixed_keys: frozenset[str]
    ranges: dict[str, BaseDistribution]


def read_space(
    section: Mapping[str, Any], words: Sequence[str], base: Mapping[str, Any]
) -> tuple[list[Parameter], tuple[str, ...], list[dict[str, Any]], list[str]]:
    """Parameters, each after those that its condition names; fixed words; points; faults. `base`: every setting by its key."""
    faults: list[str] = []
    said = read_words(words, faults)
    written = read_file(section, faults)
    parameters = replaced(written, said)
    faults += condition_faults([*written, *parameters], said, base)
    parameters = named(in_order(decided(parameters, base), faults))
    faults += overlaps(parameters)
    for parameter in parameters:
        if not parameter.when and (fault := kind_fault(parameter, base.get(parameter.key))):
            faults.append(fault)
    points = read_points(section, parameters, said, base, faults)
    if not parameters and not faults:
        faults.append(
            "nothing is swept: give a range to a key, such as 'optimizer.lr=tag(log,interval(1e-4,1e-1))', "
            "or choose a space by sweeps=NAME"
        )
    return parameters, said.fixed, points, list(dict.fromkeys(faults))


def tried(faults: list[str], read: Callable[..., Read], argument: Any) -> Read | None:
    """What `read` gives, or None and one more fault."""
    try:
        return read(argument)
    except SearchError as error:
        faults.append(str(error))
        return None


def read_words(words: Sequence[str], faults: list[str]) -> Words:
    fixed: list[str] = []
    fixed_keys: set[str] = set()
    ranges: dict[str, BaseDistribution] = {}
    for written in words:
        override = tried(faults, parse, written)
        if override is not None and not override.is_sweep_override():
            fixed.append(written)
            fixed_keys.add(str(override.key_or_group))
        elif override is not None and (distribution := tried(faults, swept, override)):
            ranges[override.get_key_element()] = distribution
    return Words(tuple(fixed), frozenset(fixed_keys), ranges)


def read_file(section: Mapping[str, Any], faults: list[str]) -> list[Parameter]:
    """The parameters as the file has them: nothing is decided yet, each is named by its key."""
    found = []
    for condition, ranges in [("", section.get("params") or {}), *(section.get("when") or {}).items()]:
        when = tried(faults, read_condition, condition)
        if not isinstance(ranges, Mapping):
            faults.append(f"when: {condition}: {ranges}: expected key: range below it")
            continue
        for key, written in ranges.items():
            distribution = tried(faults, lambda one, key=key: read_range(str(key), one), written)
            if distribution is not None and when is not None:
                found.append(Parameter(str(key), str(key), distribution, when))
    return found


def replaced(parameters: Iterable[Parameter], said: Words) -> list[Parameter]:
    """The file's parameters as the command line leaves them: fixed keys vanish, ranges replace or add."""
    kept = [one for one in parameters if one.key.lstrip("+") not in said.fixed_keys]
    added = said.ranges.keys() - {one.key for one in kept}
    return [
        *(replace(one, distribution=said.ranges.get(one.key, one.distribution)) for one in kept),
        *(Parameter(key, key, said.ranges[key], ()) for key in said.ranges if key in added),
    ]


def admitted(parameters: Iterable[Parameter]) -> dict[str, dict[str, None] | None]:
    """By key: its values as words, in order; None where one of its ranges is an interval."""
    found: dict[str, dict[str, None] | None] = {}
    for parameter in parameters:
        listed, before = values(parameter.distribution), found.get(parameter.key, {})
        both = listed is not None and before is not None
        found[parameter.key] = {**(before or {}), **dict.fromkeys(map(text, listed or ()))} if both else None
    return found


def condition_faults(parameters: Sequence[Parameter], said: Words, base: Mapping[str, Any]) -> list[str]:
    """Conditions on keys that do not exist, and on values that none of their ranges holds."""
    faults = []
    known = admitted(parameters)
    for key, allowed in dict.fromkeys(one for parameter in parameters for one in parameter.when):
        told, owner = f"when: {key}={','.join(allowed)}", key.partition(".")[0]
        if key in said.fixed_keys:
            continue
        if key not in known:
            if "." in key and owner in known:
                faults.append(
                    f"{told}: {key} comes with {owner}, which is swept; write the condition on {owner}"
                )
            elif key not in base:
                faults.append(f"{told}: {key} is neither swept nor in the config{near(key, [*known, *base])}")
            continue
        ours = known[key]
        if ours is None:
            faults.append(f"{told}: {key} is swept over an interval; a condition needs choice(…) or range(…)")
            continue
        for value in allowed:
            if value not in ours:
                faults.append(
                    f"{told}: {key} is never {value}{near(value, ours)}; its values: {', '.join(ours)}"
                )
    return faults


def decided(parameters: list[Parameter], base: Mapping[str, Any]) -> list[Parameter]:
    """Conditions on keys that are not swept go, with their parameters where they do not hold."""
    known = admitted(parameters)
    kept = []
    for parameter in parameters:
        open_ones = tuple((key, allowed) for key, allowed in parameter.when if key in known)
        settled = (text(base.get(key)) in allowed for key, allowed in parameter.when if key not in known)
        possible = (known[key] is None or known[key].keys() & set(allowed) for key, allowed in open_ones)  # type: ignore[union-attr]
        if all(settled) and all(possible):
            kept.append(replace(parameter, when=open_ones))
    return kept if len(kept) == len(parameters) else decided(kept, base)


def in_order(parameters: list[Parameter], faults: list[str]) -> list[Parameter]:
    """Each after every parameter of the keys that its condition names, and as soon after them as can be."""
    waiting, placed = list(parameters), []
    while waiting:
        missing = {one.key for one in waiting}
        ready = [one for one in waiting if not missing & {key for key, _ in one.when}]
        if not ready:
            faults.append(
                f"when: the conditions of {', '.join(sorted(missing))} wait for each other; break the circle"
            )
            break
        placed.append(min(ready, key=lambda one: not one.when))
        waiting.remove(placed[-1])
    return placed


def named(parameters: list[Parameter]) -> list[Parameter]:
    """Twins of one key are told apart by their conditions."""
    count = Counter(parameter.key for parameter in parameters)
    return [
        replace(one, name=f"{one.key} ({in_words(one)})") if count[one.key] > 1 else one for one in parameters
    ]


def in_words(parameter: Parameter) -> str:
    return " ".join(f"{key}={','.join(allowed)}" for key, allowed in parameter.when)


def overlaps(parameters: Sequence[Parameter]) -> list[str]:
    """Keys with two ranges that may hold at once."""
    faults = []
    for one, other in combinations(parameters, 2):
        theirs = dict(other.when)
        apart = any(key in theirs and not set(allowed) & set(theirs[key]) for key, allowed in one.when)
        if one.key == other.key and not apart:
            places = " and ".join(
                f"when: {in_words(twin)}" if twin.when else "params" for twin in (one, other)
            )
            faults.append(
                f"{one.key} has two ranges at once ({places}): make the conditions exclude each other"
            )
    return faults


def read_points(
    section: Mapping[str, Any],
    parameters: Sequence[Parameter],
    said: Words,
    base: Mapping[str, Any],
    faults: list[str],
) -> list[dict[str, Any]]:
    """Known settings as Optuna's parameters; one that the command line rules out is left out."""
    sections = [section.get("params"), *(section.get("when") or {}).values()]
    known = {one.key for one in parameters} | {str(key) for ranges in sections for key in ranges or ()}
    told = {key.lstrip("+") for key in (*said.fixed_keys, *said.ranges)}
    found = []
    for point in section.get("points") or []:
        if not isinstance(point, Mapping):
            faults.append(f"points: {point}: expected {{key: value, …}}")
            continue
        if unknown := [key for key in point if key not in known]:
            faults += [f"points: {key} is not swept here{near(key, known)}" for key in unknown]
            continue
        if any(key in said.fixed_keys and text(base.get(key)) != text(value) for key, value in point.items()):
            continue
        params, wrong = placed(point, parameters)
        if wrong and not told & point.keys():
            faults += wrong
        elif params and not wrong and params not in found:
            found.append(params)
    return found


def placed(point: Mapping[str, Any], parameters: Sequence[Parameter]) -> tuple[dict[str, Any], list[str]]:
    """A point's values under every name that may ask for them, and what does not fit."""
    params: dict[str, Any] = {}
    wrong = []
    for key, value in point.items():
        twins = [one for one in parameters if one.key == key]
        asked = [
            one
            for one in twins
            if all(other not in point or text(point[other]) in allowed for other, allowed in one.when)
        ]
        fitting = {one.name: inside[0] for one in asked if (inside := find(one.distribution, value))}
        if twins and not asked:
            wrong.append(f"points: {word(key, value)} is asked only with {' or '.join(map(in_words, twins))}")
        elif twins and not fitting:
            spans = " or ".join(span(one.distribution) for one in asked)
            wrong.append(f"points: {word(key, value)} lies outside its range, {spans}")
        params |= fitting
    return params, wrong
