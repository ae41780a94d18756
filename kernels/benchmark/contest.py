"""One cell of the tables: peers on the same weights and inputs, verified first, then timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.benchmark.clock import EAGER, GRAPH, Bound, Clock, Run, check_device, facts, in_turn, rounded
from kernels.geometry import Precision

ALLOWED: dict[Precision, float] = {"float32": 1e-3, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.5}
"""Relative error of a whole net's centred logits beyond which something else was computed. How much a precision loses
is shown and compared; each kernel by itself is held to far less (`checks.parity`, `gpu.LAYER_ALLOWED`)."""

Facts = dict[str, Any]


class Absent(Exception):
    """A peer that cannot be had here; the text says why."""


@dataclass(frozen=True)
class Peer:
    """`make` builds it for the cell, raising Absent; what it returns takes the cell's inputs.

    `is_peer` is false for our own variants and for what only illustrates: the best peer is chosen among the others.
    `is_slow`: called once on one input, not in turn with the others.
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


def hold(
    cell: Cell,
    peers: Sequence[Peer],
    clock: Clock,
    plan: Plan,
    wanted: Callable[[Peer], bool] = lambda peer: True,
) -> Facts:
    """The cell's facts: what each peer took and how far off it was; a wrong one is not timed.

    Raises DeviceLostError where a peer has put the GPU out of order.
    """
    found: dict[str, Facts] = {}
    bounds: dict[Contestant, Bound] = {}
    for peer in peers:
        found[peer.name] = entry = {"what": peer.what, "is_peer": peer.is_peer}
        if not wanted(peer):
            entry["left out"] = "not asked for"
            continue
        try:
            bounds |= once(cell, peer, clock, entry) if peer.is_slow else prepare(cell, peer, clock, entry)
        except Absent as reason:
            entry["absent"] = str(reason)
        except Exception as error:  # of anybody's compiler: it is told, and the others go on
            entry["failed"] = first_line(error)
            check_device()
    for (name, mode), rounds in timed(bounds, plan, found).items():
        if "failed" not in found[name]:
            found[name].setdefault("modes", {})[mode] = facts(rounds)
    floor = None if cell.floor is None else rounded(cell.floor * 1e6)
    return {**cell.names(), "floor": floor, "peers": found, **standing(found)}


Contestant = tuple[str, str]
"""A peer's name and a mode."""


def prepare(cell: Cell, peer: Peer, clock: Clock, entry: Facts) -> dict[Contestant, Bound]:
    """Builds and verifies a peer in each of the clock's modes. A peer keeps the modes in which it is right; of ours
    nothing is returned if one is wrong."""
    begin = time.perf_counter()
    run = peer.make()
    run(cell.inputs[0])
    entry["build_seconds"] = rounded(time.perf_counter() - begin)
    entry["peak_bytes"] = clock.peak_bytes(lambda: run(cell.inputs[0]))
    bounds: dict[Contestant, Bound] = {}
    for mode in clock.modes(cell.batch, cell.size):
        try:
            bound = clock.bind(mode, run, cell.inputs, peer.has_own_graph)
            outputs = [bound.result(number) for number in range(len(cell.inputs))]
        except Exception as error:
            if mode == EAGER:
                raise
            entry["not captured"] = first_line(error)
            check_device()
            break  # the modes that follow replay the same graph
        fault = verify(cell, outputs, cell.references, entry)
        if fault and (mode == EAGER or not peer.is_peer):
            entry["wrong"] = f"{mode}: {fault}: not timed"
            return {}
        if fault:
            entry["not captured"] = f"wrong: {fault}"
            break
        bounds[peer.name, mode] = bound
    return bounds


def once(cell: Cell, peer: Peer, clock: Clock, entry: Facts) -> dict[Contestant, Bound]:
    """One call of a slow peer on one input, timed and then verified; nothing is left to be timed with the others."""
    begin = time.perf_counter()
    run = peer.make()
    entry |= {"build_seconds": rounded(time.perf_counter() - begin), "peak_bytes": None}
    outputs: list[Tensor] = []

    @wraps(run)
    def keeping(images: Tensor) -> Tensor:
        outputs.append(run(images))
        return outputs[-1]

    seconds = clock.bind(EAGER, keeping, cell.inputs[:1], False).seconds(1)
    fault = verify(cell, outputs[-1:], cell.references[:1], entry)
    if fault:
        entry["wrong"] = fault
    else:
        entry["modes"] = {EAGER: facts([seconds])}
    return {}


def verify(cell: Cell, outputs: Sequence[Tensor], references: Sequence[Tensor], entry: Facts) -> str:
    """What is wrong with them; where nothing is, "", and the entry has the largest of its errors."""
    found = errors(outputs, references)
    allowed = ALLOWED[cell.precision] if cell.allowed is None else cell.allowed
    if not found["relative"] <= allowed:  # NaN is wrong too
        return f"relative error {found['relative']}, allowed {allowed}"
    entry["error"] = max(entry.get("error", found), found, key=lambda one: one["relative"])
    return ""


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
    bounds: dict[Contestant, Bound], plan: Plan, entries: dict[str, Facts]
) -> dict[Contestant, list[list[float]]]:
    """Seconds by peer, mode and round: a mode's peers take turns, with as many samples as the plan's time allows.

    One that fails meanwhile has that in its entry and takes part in nothing more.
    """
    found: dict[Contestant, list[list[float]]] = {}
    share = plan.seconds / max(1, len(bounds)) / (plan.rounds + 1)
    for mode in dict.fromkeys(mode for _, mode in bounds):
        takes = {
            name: bound.seconds
            for (name, its_mode), bound in bounds.items()
            if its_mode == mode and "failed" not in entries[name]
        }

        def failed(name: str, error: Exception, mode: str = mode) -> None:
            entries[name]["failed"] = f"{mode}, while timed: {first_line(error)}"
            check_device()

        samples = {}
        for name, take in list(takes.items()):
            try:
                (seconds,) = take(1)
            except Exception as error:
                failed(name, error)
                del takes[name]
                continue
            samples[name] = max(1, min(plan.samples, int(share / max(seconds, 1e-7)) - 1))
        for name, rounds in in_turn(takes, plan.rounds, samples, failed).items():
            found[name, mode] = rounds
    return found


def standing(found: dict[str, Facts]) -> Facts:
    """The fastest peer and its ratio to ours, as CUDA graphs where the clock has them; `launched`: the same of what is
    launched from Python then. Like is compared with like: what took turns. Nothing is said where a peer was left out."""
    modes = {mode for entry in found.values() for mode in entry.get("modes", {})}
    if GRAPH in modes:
        return {**within(found, GRAPH), "launched": within(found, EAGER)}
    return {**within(found, EAGER), "launched": None}


def within(found: dict[str, Facts], mode: str) -> Facts:
    """The mode's fastest peer; where ours was timed too, the peer's time over ours, round by round: above 1, ours is
    faster."""
    rounds = {name: entry["modes"][mode] for name, entry in found.items() if mode in entry.get("modes", {})}
    peers = [name for name in rounds if found[name]["is_peer"]]
    if not peers or lacks_peers({"peers": found}):
        return {"best": None, "ratio": None}
    best = min(peers, key=lambda name: rounds[name]["p50"])
    verdict: Facts = {"best": {"name": best, "mode": mode}, "ratio": None}
    if OURS in rounds:
        pairs = zip(rounds[best]["rounds"], rounds[OURS]["rounds"], strict=True)
        ratios = [rounded(theirs / ours) for theirs, ours in pairs]
        verdict["ratio"] = {"value": rounded(statistics.median(ratios)), "rounds": ratios}
    return verdict


def lacks_peers(facts: Facts) -> bool:
    """Whether the cell's best peer may be one that was left out."""
    return any("left out" in entry for entry in facts["peers"].values())


OURS = "ours"


def quickest(entry: Facts) -> str:
    """The mode of its lowest median; the cold cache is a matter of its own."""
    modes = {mode: taken["p50"] for mode, taken in entry["modes"].items() if "cold" not in mode}
    return min(modes, key=modes.__getitem__)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
