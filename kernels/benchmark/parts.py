"""The parts of the benchmark, each a generator of its figures so far: what is there is written at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch

from kernels.benchmark import checks, cpu, floors, gpu, machine, nets, peers, report, tuning
from kernels.benchmark.clock import CpuClock, CudaClock, DeviceLostError, check_device
from kernels.benchmark.contest import Facts, Peer, Plan, first_line, hold, lacks_peers
from kernels.benchmark.nets import Vgg19
from kernels.geometry import Precision
from kernels.roofline import H100, Machine

CPU_CELLS = ((48, 1), (48, 8), (48, 64), (224, 1))
"""Size and batch."""
PLANS = {
    "cpu": Plan(4, 40, 8.0),
    "gpu": Plan(6, 50, 12.0),
    "layers": Plan(5, 50, 2.0),
    "quick": Plan(2, 2, 0.5),
}
FLOOR_BATCHES = (1, 2, 4, 8, 16, 32, 64)
Place = tuple[int, int, Precision]
"""A cell's size, batch and precision."""
LAYER_TABLES: tuple[Place, ...] = ((224, 1, "float16"), (224, 32, "float16"), (48, 1, "float16"))
"""And every cell in which a peer is faster than ours: its layers say why."""


class Bench:
    """What the parts share: the options and the nets, made when they are first needed."""

    def __init__(self, options: argparse.Namespace, threads: int) -> None:
        self.options, self.threads = options, threads
        self.quick: bool = options.quick
        self.nets: dict[int, Vgg19] = {}
        self.given = nets.loaded(options.program) if options.program else None

    def net(self, size: int) -> Vgg19:
        if self.given is not None:
            return self.given
        if size not in self.nets:
            self.nets[size] = nets.seeded(size)
        return self.nets[size]

    def sizes(self, wanted: tuple[int, ...]) -> list[int]:
        """A given program has one size."""
        return [self.given.size] if self.given is not None else list(wanted)

    def cells(self) -> list[tuple[int, int]]:
        """What is timed on the processor; large images one by one, since each takes it half a second."""
        if self.given is None:
            return list(CPU_CELLS[:1] if self.quick else CPU_CELLS)
        return [(self.given.size, batch) for batch in ((1, 8, 64) if self.given.size <= 64 else (1,))]

    @property
    def name(self) -> str:
        if self.given is not None:
            return (
                f"VGG19 of {self.options.program.name} ({self.given.size} px, {self.given.classes} classes)"
            )
        return "VGG19 with the head 512, 7 and seeded random weights"

    def plan(self, name: str) -> Plan:
        return PLANS["quick" if self.quick else name]


def parity(bench: Bench, _: Facts) -> Iterator[Facts]:
    yield checks.parity(["float16"] if bench.quick else [])


def matrix(bench: Bench, _: Facts) -> Iterator[Facts]:
    yield checks.matrix(["conv5_4", "float16"] if bench.quick else [])


def swap(bench: Bench, _: Facts) -> Iterator[Facts]:
    """The file itself where one is given, with all that it does before and after the net."""
    if bench.options.program:
        program = torch.export.load(bench.options.program)
    else:
        program = nets.exported(bench.net(48))
    yield {"net": bench.name, **checks.round_trip(program)}


def least(bench: Bench, _: Facts) -> Iterator[Facts]:
    of = {"size": 224, "batch": 1, "precision": "float16"}
    yield {
        "machine": H100.name,
        "by_batch": floors.by_batch((224, 48), FLOOR_BATCHES, ("float16", "tf32"), H100),
        "layers_of": of,
        "by_layer": floors.by_layer(224, 1, "float16", H100),
    }


def processor(bench: Bench, _: Facts) -> Iterator[Facts]:
    reached = machine.measured("cpu", "float32", 512 if bench.quick else 2048, 256)
    plan, cells = bench.plan("cpu"), []
    for size, batch in bench.cells():
        torch.compiler.reset()
        one = gpu.cell(bench.net(size), batch, "float32", "cpu", None)
        peers_here = cpu.every(nets.exported(bench.net(size)), bench.threads, one.inputs[0])
        facts = hold(one, peers_here, CpuClock(), plan)
        cells.append(facts)
        print(f"  {sentence(facts)}", flush=True)
        yield {
            "net": bench.name, "threads": bench.threads, "machine": reached.name, "plan": plan._asdict(), "cells": cells,
        }  # fmt: skip


def graphics(bench: Bench, before: Facts) -> Iterator[Facts]:
    """Cells that were measured before stay, if they are not asked for again. What fails is told and the next cell goes
    on; where the GPU itself is out of order, what is there is all."""
    options, clock = bench.options, CudaClock()
    cells: dict[Place, Facts] = {key(one): one for one in before.get("cells", [])}
    tables: dict[Place, Facts] = {key(one): one for one in before.get("layers", [])}
    failed: list[str] = []
    reached = {precision: ceiling(precision) for precision in options.precisions}

    def facts() -> Facts:
        names = "; ".join(one.name for one in reached.values())
        found = list(cells.values())
        return {
            "net": bench.name,
            "machine": names,
            "cells": found,
            "layers": list(tables.values()),
            "targets": gpu.targets(found, machine.gpu_name()),
            "failed": failed,
        }

    asked: list[Place] = [
        (size, batch, precision)
        for size, precision, batch in product(bench.sizes(options.sizes), options.precisions, options.batches)
    ]
    try:
        for place in asked:
            one = attempt(partial(graphics_cell, bench, reached, clock), place, failed)
            if one and replaces(one, cells.get(place)):
                cells[place] = one
            yield facts()
        lost = [place for place in asked if is_lost(cells.get(place))]
        for place in dict.fromkeys([*(place for place in LAYER_TABLES if place in asked), *lost]):
            table = attempt(partial(graphics_layers, bench, reached, clock), place, failed)
            if table:
                tables[place] = table
            yield facts()
    except DeviceLostError as error:
        failed.append(f"the GPU is out of order, and the rest was not measured: {error}")
        yield facts()


def graphics_cell(bench: Bench, reached: dict[Precision, Machine], clock: CudaClock, place: Place) -> Facts:
    """Tuned, then timed; --quick tunes nothing."""
    size, batch, precision = place
    net = bench.net(size)
    found: Facts = {}
    if not bench.quick:
        found["tuning"] = tuning.tune_layers(net.layers.values(), batch, precision)
    plan, most = bench.plan("gpu"), reached[precision]
    found |= gpu.compare(net, batch, precision, most, clock, plan, wanted(bench.options.peers))
    print(f"  {sentence(found)}", flush=True)
    return {**found, "peak": machine.peak(most, precision)}


def graphics_layers(bench: Bench, reached: dict[Precision, Machine], clock: CudaClock, place: Place) -> Facts:
    size, batch, precision = place
    rows = gpu.layer_table(size, batch, precision, reached[precision], clock, bench.plan("layers"))
    return {"size": size, "batch": batch, "precision": precision, "rows": rows}


def attempt(work: Callable[[Place], Facts], place: Place, failed: list[str]) -> Facts | None:
    """None where it fails, which is told. Raises DeviceLostError where nothing else would work either."""
    try:
        return work(place)
    except DeviceLostError:
        raise
    except Exception as error:
        size, batch, precision = place
        failed.append(f"{size} px, batch {batch}, {precision}: {first_line(error)}")
        check_device()
        return None


def replaces(one: Facts, before: Facts | None) -> bool:
    """A cell without some of the peers takes no whole one's place."""
    return before is None or not lacks_peers(one) or lacks_peers(before)


def is_lost(one: Facts | None) -> bool:
    """Whether a peer was faster."""
    return bool(one and one["ratio"] and one["ratio"]["value"] < 1)


def ceiling(precision: Precision) -> Machine:
    """What this GPU reaches today, in a matrix product of 8192^3 and a copy."""
    peers.set_precision(precision)
    return machine.measured("cuda", precision, 8192, 1024)


def key(facts: Facts) -> Place:
    return facts["size"], facts["batch"], facts["precision"]


def wanted(words: list[str] | None) -> Callable[[Peer], bool]:
    return lambda peer: words is None or not peer.is_peer or any(word in peer.name for word in words)


RUN: dict[str, Callable[[Bench, Facts], Iterator[Facts]]] = {
    "parity": parity, "matrix": matrix, "swap": swap, "floors": least, "cpu": processor, "gpu": graphics,
}  # fmt: skip


def sentence(facts: Facts) -> str:
    """A cell for the terminal."""
    timed = {
        name: min(taken["p50"] for mode, taken in entry["modes"].items() if "cold" not in mode) / 1e3
        for name, entry in facts["peers"].items()
        if "modes" in entry
    }
    times = ", ".join(
        f"{name} {time:.4g} ms" for name, time in sorted(timed.items(), key=lambda pair: pair[1])
    )
    ratio = f"; best peer / ours {facts['ratio']['value']}" if facts["ratio"] else ""
    others = "; ".join(
        f"{name} {report.reason(entry)}" for name, entry in facts["peers"].items() if "modes" not in entry
    )
    return f"{facts['size']} px, batch {facts['batch']}, {facts['precision']}: {times}{ratio}{'; ' * bool(others)}{others}"
