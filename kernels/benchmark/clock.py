"""Clocks: how long a peer takes, call by call. The harness knows only `Clock`; tests give it one that is scripted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from kernels.tickets import TicketStore

Run = Callable[[Tensor], Tensor]
Take = Callable[[int], list[float]]
"""Seconds of each of so many calls."""

EAGER, GRAPH, COLD = "eager", "graph", "graph, cold L2"
"""eager: launched from Python, call by call, as its user would. graph: one CUDA graph replayed. cold: the same after
the L2 cache was overwritten, as between other work."""
AHEAD_CYCLES = 300_000
"""The GPU idles so long for each call, while the processor queues the calls: no gap of its making is timed."""


class Bound(Protocol):
    """A peer on its inputs, ready to be timed."""

    def result(self, number: int) -> Tensor:
        """Of inputs[number], written over NaN where the place can be known beforehand."""

    def seconds(self, count: int) -> list[float]:
        """Of each of `count` calls; the inputs take turns."""


class Clock(Protocol):
    def modes(self, batch: int, size: int) -> tuple[str, ...]: ...

    def bind(self, mode: str, run: Run, inputs: Sequence[Tensor], has_own_graph: bool) -> Bound: ...

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """What the call holds at its most above what was held before; None where the device does not count."""


class CpuBound:
    SHORT = 0.1
    """Seconds of a call that threads of the peer before, still spinning, can disturb."""

    def __init__(self, run: Run, inputs: Sequence[Tensor]) -> None:
        self.run, self.inputs = run, inputs
        self.last = 0.0

    def result(self, number: int) -> Tensor:
        return self.run(self.inputs[number])

    def seconds(self, count: int) -> list[float]:
        """After one that is not counted, where calls are short."""
        if self.last < self.SHORT:
            self.run(self.inputs[0])
        return [self.once(number % len(self.inputs)) for number in range(count)]

    def once(self, number: int) -> float:
        begin = time.perf_counter()
        self.run(self.inputs[number])
        self.last = time.perf_counter() - begin
        return self.last


class CpuClock:
    def modes(self, batch: int, size: int) -> tuple[str, ...]:
        return (EAGER,)

    def bind(self, mode: str, run: Run, inputs: Sequence[Tensor], has_own_graph: bool) -> Bound:
        return CpuBound(run, inputs)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        call()
        return None


class CudaEager:
    def __init__(self, run: Run, inputs: Sequence[Tensor]) -> None:
        self.run, self.inputs = run, inputs

    def result(self, number: int) -> Tensor:
        return self.run(self.inputs[number]).clone()

    def seconds(self, count: int) -> list[float]:
        """From an idle GPU to the last kernel's end: what the launches cost is part of it."""
        found = []
        for number in range(count):
            begin, end = events()
            torch.cuda.synchronize()
            begin.record()
            self.run(self.inputs[number % len(self.inputs)])
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        return found


class CudaGraph:
    """A peer's CUDA graph over an input of its own, into which `inputs` are copied between the timed replays."""

    def __init__(self, run: Run, inputs: Sequence[Tensor], has_own_graph: bool) -> None:
        self.run, self.inputs = run, inputs
        self.input = inputs[0].clone()
        self.output: Tensor | None = None
        self.replay: Callable[[], object] = lambda: run(self.input)
        side = torch.cuda.current_stream() if has_own_graph else torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, chooses algorithms and allocates what is kept
            for _ in range(3):
                run(self.input)
        torch.cuda.current_stream().wait_stream(side)
        if not has_own_graph:
            graph = torch.cuda.CUDAGraph()
            self.tickets = TicketStore(
                self.input.device
            )  # of the kernels that share sums; idle in the others' graphs
            with self.tickets, torch.cuda.graph(graph):
                self.output = run(self.input)
            self.replay = graph.replay

    def result(self, number: int) -> Tensor:
        self.input.copy_(self.inputs[number])
        if self.output is None:
            found = self.replay()
            assert isinstance(found, Tensor)
            return found.clone()
        self.output.fill_(torch.nan)
        self.replay()
        return self.output.clone()

    def seconds(self, count: int, flush: Tensor | None = None) -> list[float]:
        pairs = [events() for _ in range(count)]
        torch.cuda.synchronize()
        torch.cuda._sleep(AHEAD_CYCLES * count)
        for number, (begin, end) in enumerate(pairs):
            self.input.copy_(self.inputs[number % len(self.inputs)])
            if flush is not None:
                flush.add_(1)  # read and written: more than the L2 cache holds
            begin.record()
            self.replay()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


class Cold:
    """The same graph, over a cold cache: `flush` is larger than it."""

    def __init__(self, graph: CudaGraph, flush: Tensor) -> None:
        self.graph, self.flush = graph, flush

    def result(self, number: int) -> Tensor:
        return self.graph.result(number)

    def seconds(self, count: int) -> list[float]:
        return self.graph.seconds(count, self.flush)


class CudaClock:
    """Events on the GPU. With batch 1 and with small images, whose weights stay in the L2 cache, also a cold one."""

    FLUSHED = 256 * 2**20

    def __init__(self) -> None:
        self.buffer = torch.zeros(self.FLUSHED // 4, dtype=torch.int32, device="cuda")
        self.graphs: WeakValueDictionary[int, CudaGraph] = (
            WeakValueDictionary()
        )  # each holds its run: ids stay

    def modes(self, batch: int, size: int) -> tuple[str, ...]:
        return (EAGER, GRAPH, COLD) if batch == 1 or size <= 64 else (EAGER, GRAPH)

    def bind(self, mode: str, run: Run, inputs: Sequence[Tensor], has_own_graph: bool) -> Bound:
        if mode == EAGER:
            return CudaEager(run, inputs)
        graph = self.graphs.get(id(run))
        if graph is None:
            graph = self.graphs[id(run)] = CudaGraph(run, inputs, has_own_graph)
        return Cold(graph, self.buffer) if mode == COLD else graph

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


class DeviceLostError(RuntimeError):
    """A kernel has put the GPU out of order for this process: nothing more can be measured."""


HANGING = 60.0
"""Seconds: what was launched before takes far less."""


def check_device() -> None:
    """After something failed: raises DeviceLostError where everything else would fail too."""
    if not torch.cuda.is_available():
        return
    try:
        done, begin = torch.cuda.Event(), time.perf_counter()
        done.record()
        while not done.query():  # to synchronize would wait for ever where a kernel hangs
            if time.perf_counter() > begin + HANGING:
                raise RuntimeError("a kernel hangs")
            time.sleep(0.01)
    except RuntimeError as error:
        raise DeviceLostError(str(error).strip().partition("\n")[0]) from error


def in_turn(
    takes: Mapping[str, Take],
    rounds: int,
    samples: Mapping[str, int],
    failed: Callable[[str, Exception], None],
) -> dict[str, list[list[float]]]:
    """Seconds by peer and round. The order turns round every round, so that heat and other people's work hit all
    alike; the first round is dropped. Whoever raises is told to `failed` and has no seconds."""
    found: dict[str, list[list[float]]] = {name: [] for name in takes}
    for turn in range(rounds + 1):
        names = list(found)
        for name in names if turn % 2 == 0 else reversed(names):
            try:
                seconds = takes[name](samples[name])
            except Exception as error:
                failed(name, error)
                del found[name]
                continue
            if turn > 0:
                found[name].append(seconds)
    return found


MANY = 100
"""Samples from which a 99th percentile can be told from the most."""


def facts(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Microseconds: median and 99th percentile (None of fewer than MANY) of all samples, least, most, and the median of
    each round."""
    samples = sorted(second * 1e6 for one in rounds for second in one)
    return {
        "p50": rounded(statistics.median(samples)),
        "p99": rounded(samples[-(-99 * len(samples) // 100) - 1]) if len(samples) >= MANY else None,
        "least": rounded(samples[0]),
        "most": rounded(samples[-1]),
        "rounds": [rounded(statistics.median(one) * 1e6) for one in rounds],
        "samples": len(samples),
    }


def rounded(value: float) -> float:
    """Four figures: more than any spread leaves standing."""
    return float(f"{value:.4g}")
