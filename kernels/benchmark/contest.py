"""One cell of the tables: peers on the same weights and inputs, verified first, then timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.benchmark.clock import EAGER, Bound, Clock, Run, facts, in_turn, rounded
from kernels.geometry import Precision

ALLOWED: dict[Precision, float] = {"float32": 1e-3, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.5}
"""Relative error of a whole net's centred logits beyond which something else was computed. How much a precision loses
is shown and compared; each kernel by itself is held to far less (`checks.parity`, `layers.py`)."""

Facts = dict[str, Any]


class Absent(Exception):
    """A peer that cannot be had here; the text says why."""


@dataclass(frozen=True)
class Peer:
    """`make` builds it for the cell, raising Absent; what it returns takes the cell's inputs.

    `is_peer` is false for our own variants and for what only illustrates: the best peer is chosen among the others.
    `is_slow`: called once, not in turn with the others.
    """

    name: str
    what: str
    make: Callable[[], Run]
    is_peer: bool = True
    has_own_graph: bool = False
    is_slow: bool = False


@dataclass(frozen=True)
class Cell:
    """`inputs` take turns; `references` are the float64 results for each; `flops` of one call; `floor` in seconds."""

    size: int
    batch: int
    precision: Precision
    inputs: Sequence[Tensor]
    references: Sequence[Tensor]
    flops: int
    floor: float | None = None
    allowed: float | None = None

    def names(self) -> Facts:
        return {"size": self.size, "batch": self.batch, "precision": self.precision, "flops": self.flops}


class Plan(NamedTuple):
    """Rounds of a cell, samples of a peer in a round at the most, and seconds that a cell may take for timing."""

    rounds: int
    samples: int
    seconds: float


def hold(cell: Cell, peers: Sequence[Peer], clock: Clock, plan: Plan) -> Facts:
    """The cell's facts: what each peer took and how far off it was; a wrong one is not timed."""
    found: dict[str, Facts] = {}
    bounds: dict[tuple[str, str], Bound] = {}
    for peer in peers:
        found[peer.name] = entry = {"what": peer.what, "is_peer": peer.is_peer}
        try:
            bounds |= prepare(cell, peer, clock, entry)
        except Absent as reason:
            entry["absent"] = str(reason)
        except Exception as error:  # of anybody's compiler: it is told, and the others go on
            entry["failed"] = first_line(error)
    took = timed(bounds, plan, {peer.name for peer in peers if peer.is_slow})
    for (name, mode), rounds in took.items():
        found[name].setdefault("modes", {})[mode] = facts(rounds)
    floor = None if cell.floor is None else rounded(cell.floor * 1e6)
    return {**cell.names(), "floor": floor, "peers": found, **standing(found)}


def prepare(cell: Cell, peer: Peer, clock: Clock, entry: Facts) -> dict[tuple[str, str], Bound]:
    """Builds and verifies a peer, in each of the clock's modes; nothing is returned of a wrong one."""
    begin = time.perf_counter()
    run = peer.make()
    run(cell.inputs[0])
    entry["build_seconds"] = rounded(time.perf_counter() - begin)
    entry["peak_bytes"] = clock.peak_bytes(lambda: run(cell.inputs[0]))
    bounds: dict[tuple[str, str], Bound] = {}
    modes = (EAGER,) if peer.is_slow else clock.modes(cell.batch, cell.size)
    for mode in modes:
        try:
            bound = clock.bind(mode, run, cell.inputs, peer.has_own_graph)
        except Exception as error:
            if mode == EAGER:
                raise
            entry.setdefault("not captured", first_line(error))
            continue
        error_now = errors([bound.result(number) for number in range(len(cell.inputs))], cell.references)
        entry["error"] = max(entry.get("error", error_now), error_now, key=lambda one: one["relative"])
        allowed = ALLOWED[cell.precision] if cell.allowed is None else cell.allowed
        if not error_now["relative"] <= allowed:  # NaN is wrong too
            entry["wrong"] = f"{mode}: relative error {error_now['relative']}, allowed {allowed}: not timed"
            return {}
        bounds[peer.name, mode] = bound
    return bounds


def errors(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> Facts:
    """Against float64: relative error (Frobenius), largest difference, share of rows with the same largest entry."""
    ours = torch.cat([output.double().flatten(1) for output in outputs])
    theirs = torch.cat([reference.flatten(1) for reference in references]).to(ours.device)
    difference = ours - theirs
    return {
        "relative": rounded(float(difference.norm() / theirs.norm())),
        "largest": rounded(float(difference.abs().amax())),
        "top1": rounded(float((ours.argmax(1) == theirs.argmax(1)).double().mean())),
    }


def timed(
    bounds: dict[tuple[str, str], Bound], plan: Plan, slow: Collection[str] = ()
) -> dict[tuple[str, str], list[list[float]]]:
    """Seconds by peer, mode and round: a mode's peers take turns, with as many samples as the plan's time allows."""
    found = {key: [bound.seconds(1)] for key, bound in bounds.items() if key[0] in slow}
    bounds = {key: bound for key, bound in bounds.items() if key not in found}
    share = plan.seconds / max(1, len(bounds)) / (plan.rounds + 1)
    for mode in dict.fromkeys(mode for _, mode in bounds):
        takes = {name: bound.seconds for (name, its_mode), bound in bounds.items() if its_mode == mode}
        samples = {}
        for name, take in takes.items():
            (once,) = take(1)
            samples[name] = max(1, min(plan.samples, int(share / max(once, 1e-7)) - 1))
        for name, rounds in in_turn(takes, plan.rounds, samples).items():
            found[name, mode] = rounds
    return found


def standing(found: dict[str, Facts]) -> Facts:
    """The fastest peer, in whatever mode it is fastest, and where ours was timed its ratio to ours in the like mode.

    The ratio is the best peer's time over ours, round by round: above 1, ours is faster.
    """
    fastest = {name: quickest(entry) for name, entry in found.items() if "modes" in entry}
    peers = {name: mode for name, mode in fastest.items() if found[name]["is_peer"]}
    if not peers:
        return {"best": None, "ratio": None}

    def median(name: str) -> float:
        return found[name]["modes"][fastest[name]]["p50"]

    best = min(peers, key=median)
    verdict: Facts = {"best": {"name": best, "mode": fastest[best]}, "ratio": None}
    if OURS in fastest:
        rounds = (found[name]["modes"][fastest[name]]["rounds"] for name in (best, OURS))
        ratios = [rounded(theirs / ours) for theirs, ours in zip(*rounds, strict=True)]
        verdict["ratio"] = {"value": rounded(statistics.median(ratios)), "rounds": ratios}
    return verdict


OURS = "ours"


def quickest(entry: Facts) -> str:
    """The mode of its lowest median; the cold cache is a matter of its own."""
    modes = {mode: taken["p50"] for mode, taken in entry["modes"].items() if "cold" not in mode}
    return min(modes, key=modes.__getitem__)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
