"""Hydra's words for ranges and values, and Optuna's distributions: from the one to the other and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fer_lab.search.errors import SearchError

Condition = tuple[tuple[str, tuple[str, ...]], ...]
"""((key, (value, …)), …): every key has one of its values, as written on a command line."""

FORMS = "choice(a,b), interval(0,1), int(interval(1,9)), tag(log,interval(1e-4,1e-1)), range(0,10,2), or a,b"

PARSER = OverridesParser.create()


@dataclass(frozen=True)
class Parameter:
    """One Optuna parameter: what `key` may be where `when` holds. `name` is the key, or tells it from its twins."""

    name: str
    key: str
    distribution: BaseDistribution
    when: Condition

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the values chosen so far, by key, ask for it."""
        return all(key in chosen and text(chosen[key]) in allowed for key, allowed in self.when)


def parse(word: str) -> Override:
    """A word of the command line; raises SearchError."""
    try:
        return PARSER.parse_override(word)
    except HydraException as error:
        first = str(error).splitlines()[0]
        if "choice(" in word and "null" in word:
            first = "choice() takes no null; list the values without it, such as 0.1,null"
        raise SearchError(f"{word}: {first}; a range is {FORMS}") from None


def read_range(key: str, written: Any) -> BaseDistribution:
    """The distribution of a range in Hydra's grammar; a plain value is a choice of one. Raises SearchError."""
    if isinstance(written, dict):
        raise SearchError(
            f"{key}: name each key in full, such as {key}.{next(iter(written), 'key')}: {FORMS}"
        )
    if isinstance(written, list):
        raise SearchError(
            f"{key}={written}: a list is no range; write choice({','.join(map(text, written))})"
        )
    return swept(parse(f"{key}={text(written)}"))


def swept(override: Override) -> BaseDistribution:
    """The distribution that an override asks for; raises SearchError."""
    word, value = override.input_line, override._value
    if override.is_force_add() or override.is_delete():
        raise SearchError(
            f"{word}: a range may not follow ++ or ~; name a key that exists, or add one by +key=…"
        )
    tags: set[str] = getattr(value, "tags", set()) - ({"log"} if isinstance(value, IntervalSweep) else set())
    if tags:
        raise SearchError(
            f"{word}: tag({', '.join(sorted(tags))}) means nothing here; tag(log,interval(…)) does"
        )
    if isinstance(value, IntervalSweep):
        return interval(word, value)
    if isinstance(value, RangeSweep) and not value.shuffle:
        return steps(word, value)
    if isinstance(value, Glob):
        raise SearchError(f"{word}: glob() is not taken; list the choices: choice(a,b)")
    if isinstance(value, RangeSweep) or (isinstance(value, ChoiceSweep) and value.shuffle):
        raise SearchError(
            f"{word}: shuffle() means nothing here, the sampler chooses the order; leave it out"
        )
    return choices(word, value.list if isinstance(value, ChoiceSweep) else [value])


def interval(word: str | None, value: IntervalSweep) -> FloatDistribution | IntDistribution:
    low, high, log = value.start, value.end, "log" in value.tags
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise SearchError(f"{word}: an interval goes from a number to a larger one")
    if log and low <= 0:
        raise SearchError(f"{word}: a logarithmic interval starts above 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def steps(word: str | None, value: RangeSweep) -> FloatDistribution | IntDistribution:
    """range(start, stop, step) without its stop, as Python has it; downwards holds the same values."""
    start, stop, step = (Decimal(str(number)) for number in (value.start, value.stop, value.step))
    count = (
        math.ceil((stop - start) / step) if step and all(map(Decimal.is_finite, (start, stop, step))) else 0
    )
    if count < 1:
        raise SearchError(f"{word}: holds no value; write range(start,stop,step), its stop left out")
    low, high = sorted((start, start + (count - 1) * step))
    if all(isinstance(number, int) for number in (value.start, value.stop, value.step)):
        return IntDistribution(int(low), int(high), step=int(abs(step)))
    return FloatDistribution(float(low), float(high), step=float(abs(step)))


def choices(word: str | None, values: Sequence[Any]) -> CategoricalDistribution:
    plain = [value.text if isinstance(value, QuotedString) else value for value in values]
    if any(isinstance(value, list | dict) for value in plain):
        raise SearchError(f"{word}: a choice is a word, a number, true, false or null, no list or dictionary")
    twice = sorted({text(value) for value in plain if plain.count(value) > 1})
    if twice:
        raise SearchError(f"{word}: names {', '.join(twice)} twice")
    return CategoricalDistribution(plain)


def read_condition(written: str) -> Condition:
    """`optimizer=adamw,muon model=small`: any of the values, all of the words. Raises SearchError."""
    conditions = []
    for word in str(written).split():
        try:
            found = swept(parse(word))
        except SearchError:
            found = None
        if not isinstance(found, CategoricalDistribution):
            raise SearchError(f"when: {written}: write key=value or key=a,b; several words must all hold")
        conditions.append((word.partition("=")[0], tuple(map(text, found.choices))))
    return tuple(conditions)


def text(value: Any) -> str:
    """As a command line has it: true, null, 0.1, word."""
    return (
        {True: "true", False: "false"}[value]
        if isinstance(value, bool)
        else "null"
        if value is None
        else str(value)
    )


def word(key: str, value: Any) -> str:
    """key=value that Hydra reads as this very value; a string that would be read as something else is quoted."""
    plain = f"{key}={text(value)}"
    if not isinstance(value, str):
        return plain
    try:
        read = parse(plain).value()
    except SearchError:
        read = None
    return (
        plain
        if read == value and isinstance(read, str)
        else f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    )


def values(distribution: BaseDistribution) -> list[Any] | None:
    """Every value in ascending or written order; None where they are infinitely many."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.single():
        return [distribution.low]
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if distribution.step is None:
        return None
    low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))
    return [
        float(low + index * step)
        for index in range(round((distribution.high - distribution.low) / distribution.step) + 1)
    ]


def ends(distribution: BaseDistribution) -> list[Any]:
    """Lowest and highest, or every choice."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low] if distribution.single() else [distribution.low, distribution.high]


def span(distribution: BaseDistribution) -> str:
    """What it holds, in words: `0.001 to 0.5`, `sgd, adamw`."""
    joined = ", " if isinstance(distribution, CategoricalDistribution) else " to "
    return joined.join(map(text, ends(distribution)))


def find(distribution: BaseDistribution, value: Any) -> list[Any]:
    """[value] in the distribution's own type (a choice None may be), or [] where it lies outside."""
    if isinstance(distribution, CategoricalDistribution):
        return [
            choice for choice in distribution.choices if text(choice) == text(value) or same(choice, value)
        ][:1]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    whole = isinstance(distribution, IntDistribution)
    if not distribution.low <= value <= distribution.high or (whole and value != int(value)):
        return []
    if distribution.step is not None:
        count = (value - distribution.low) / distribution.step
        if abs(count - round(count)) > 1e-8:
            return []
    return [int(value) if whole else float(value)]


def same(one: Any, other: Any) -> bool:
    """Equal as settings: 1 and 1.0 are, 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def kind_fault(parameter: Parameter, usual: Any) -> str | None:
    """A range that gives fractions for a whole number, or words for a number; `usual` is the config's own value."""
    key, distribution = parameter.key, parameter.distribution
    if isinstance(usual, int) and not isinstance(usual, bool) and isinstance(distribution, FloatDistribution):
        span = f"{math.ceil(distribution.low)},{math.floor(distribution.high)}"
        whole = f"tag(log,int(interval({span})))" if distribution.log else f"int(interval({span}))"
        return (
            f"{key}: the range gives fractions, {key}={usual} is a whole number: write {whole} or choice(…)"
        )
    if not isinstance(usual, int | float):
        return None
    expected = (
        "true or false"
        if isinstance(usual, bool)
        else "a whole number"
        if isinstance(usual, int)
        else "a number"
    )
    kinds = int if isinstance(usual, int) else (int, float)
    wrong = [
        value
        for value in ends(distribution)
        if value is not None
        and (isinstance(value, bool) != isinstance(usual, bool) or not isinstance(value, kinds))
    ]
    return f"{word(key, wrong[0])}: expected {expected}, such as {text(usual)}" if wrong else None


def near(wrong: str, known: Iterable[str]) -> str:
    found = get_close_matches(wrong, sorted(set(known)), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""
