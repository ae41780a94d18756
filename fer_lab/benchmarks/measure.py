"""Costs in wall and CPU seconds, peers taken in turn, and figures that carry their own spread and target."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple


class BenchmarkError(RuntimeError):
    """Two peers did not do the same work: there is nothing to compare."""


class Cost(NamedTuple):
    """Seconds; `cpu` is user + sys of all threads of this process, or of a command and its children."""

    wall: float
    cpu: float

    def __sub__(self, earlier: Cost) -> Cost:
        return Cost(self.wall - earlier.wall, self.cpu - earlier.cpu)

    def per(self, count: float) -> Cost:
        return Cost(self.wall / count, self.cpu / count)


def now() -> Cost:
    """A point in time: the cost of a piece of work is the difference of two."""
    used = os.times()
    ended = used.children_user + used.children_system
    living = sum(
        cpu_of(child.pid) for child in multiprocessing.active_children()
    )  # loader workers stay alive
    return Cost(time.perf_counter(), used.user + used.system + ended + living)


def cpu_of(process: int | None) -> float:
    """Seconds, user + sys, that a living process has used (Linux; 0 where there is no /proc)."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


Peer = Callable[[], Cost]


def in_turn(peers: Mapping[str, Peer], repeats: int, warm_ups: int = 1) -> dict[str, list[Cost]]:
    """Each peer's costs, one a round; the order turns round every round, the first `warm_ups` rounds are dropped."""
    found: dict[str, list[Cost]] = {name: [] for name in peers}
    names = list(peers)
    for turn in range(warm_ups + repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            cost = peers[name]()
            if turn >= warm_ups:
                found[name].append(cost)
    return found


Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Figure:
    """`values` of ours and `baselines` of the peer, round by round in `unit`; a `target` for their ratio.

    Without baselines the target is for the value itself. `at_most` says from which side the target is met.
    """

    name: str
    what: str
    unit: str
    values: Sequence[float]
    target: float | None
    at_most: bool
    baselines: Sequence[float] = ()
    clock: str = ""
    also: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        return [
            value / baseline
            for value, baseline in zip(self.values, self.baselines, strict=bool(self.baselines))
        ]

    @property
    def judged(self) -> Sequence[float]:
        return self.ratios if self.baselines else self.values

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        middle = statistics.median(self.judged)
        return middle <= self.target if self.at_most else middle >= self.target

    def facts(self) -> dict[str, Any]:
        """What the results file holds; spreads are [lowest, highest] over the repeats."""
        return {
            "name": self.name,
            "what": self.what,
            "clock": self.clock,
            "unit": self.unit,
            "value": middle(self.values),
            "baseline": middle(self.baselines),
            "ratio": middle(self.ratios),
            "target": None if self.target is None else f"{'<=' if self.at_most else '>='} {self.target:g}",
            "target_is_for": "ratio" if self.baselines else "value",
            "met": self.met,
            "repeats": len(self.values),
            "spread": {
                "value": spread(self.values),
                "baseline": spread(self.baselines),
                "ratio": spread(self.ratios),
            },
            "also": dict(self.also),
        }


def compare(
    name: str,
    what: str,
    ours: Sequence[Cost],
    peer: Sequence[Cost],
    target: float | None,
    *,
    clock: Clock,
    at_most: bool = True,
    images: int | None = None,
    **also: Any,
) -> Figure:
    """Seconds of ours against the peer's; with `images` images per second. The other clock stands in `also`."""

    def figure(of: Clock) -> Figure:
        sides = ([rate(getattr(cost, of)) for cost in costs] for costs in (ours, peer))
        values, baselines = sides
        return Figure(name, what, unit, values, target, at_most, baselines, f"{of} time")

    def rate(seconds: float) -> float:
        return seconds if images is None else images / max(seconds, 1e-9)

    unit = "s" if images is None else "images/s"
    main, other = figure(clock), figure("wall" if clock == "cpu" else "cpu")
    facts = other.facts()
    kept = {key: facts[key] for key in ("value", "baseline", "ratio", "spread")}
    return Figure(
        name,
        what,
        unit,
        main.values,
        target,
        at_most,
        main.baselines,
        main.clock,
        {other.clock: kept, **also},
    )


def middle(values: Sequence[float]) -> float | None:
    return rounded(statistics.median(values)) if values else None


def spread(values: Sequence[float]) -> list[float] | None:
    return [rounded(min(values)), rounded(max(values))] if values else None


def rounded(value: float) -> float:
    """Four figures: more than any spread leaves standing."""
    return float(f"{value:.4g}")
