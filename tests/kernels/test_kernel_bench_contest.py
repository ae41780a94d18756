"""A cell of the benchmark: who takes part, in what order, and what is said of them, by a clock that is scripted."""

from __future__ import annotations

import pytest
import torch

from kernels.benchmark import clock, parts, report
from kernels.benchmark.clock import CpuBound, CpuClock, DeviceLostError, facts, in_turn
from kernels.benchmark.contest import OURS, Absent, Cell, Peer, Plan, errors, hold

QUICK = Plan(rounds=2, samples=2, seconds=0.2)


class Scripted:
    """A clock on which a peer takes what its name's table says, a little more in each round."""

    def __init__(self, microseconds: dict[str, float]) -> None:
        self.microseconds, self.turns = microseconds, []

    def modes(self, batch, size):
        return ("eager", "graph")

    def bind(self, mode, run, inputs, has_own_graph):
        name = run.__name__
        if mode == "graph" and name == "uncapturable":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        if mode == "graph" and name.startswith("stale"):
            return CpuBound(lambda images: images * torch.nan, inputs)
        clock, calls = self, iter(range(1000))

        class Bound(CpuBound):
            def seconds(self, count):
                clock.turns.append((mode, name))
                self.run(self.inputs[0])
                call = next(calls)
                if name == "dying" and mode == "eager" and call == 2:
                    raise RuntimeError("out of memory\nmore")
                value = clock.microseconds[name] * (1 + call / 10) / (2 if mode == "graph" else 1)
                return [value * 1e-6] * count

        return Bound(run, inputs)

    def peak_bytes(self, call):
        call()
        return 7_000_000


def peer(name: str, result=lambda images: images, **more) -> Peer:
    def run(images):
        return result(images)

    run.__name__ = name
    return Peer(name, "a test", lambda: run, **more)


def test_a_contest_names_who_is_absent_broken_or_wrong_and_times_the_others():
    images = torch.randn(3, 5)
    cell = Cell(48, 3, "float16", [images, images + 1], [images.double(), images.double() + 1], 10)

    def absent():
        raise Absent("no wheel")

    def broken():
        raise ValueError("no plan\nand more")

    contestants = [
        peer("slow"), peer("quick"), peer(OURS, is_peer=False), peer("uncapturable"),
        peer("wrong", lambda images: images * 1.2), peer("nan", lambda images: images * torch.nan),
        peer("museum", is_peer=False, is_slow=True), peer("stale"), peer("dying"),
        peer("stale of ours", is_peer=False), peer("wrong museum", lambda images: images * 2, is_slow=True),
        Peer("absent", "a", absent), Peer("broken", "b", broken),
    ]  # fmt: skip
    times = {
        "slow": 90,
        "quick": 40,
        OURS: 20,
        "uncapturable": 5,
        "museum": 1e9,
        "wrong museum": 1,
        "stale": 70,
        "dying": 1,
    }
    clock = Scripted(times)
    found = hold(cell, contestants, clock, Plan(3, 4, 1.0))
    entries = found["peers"]
    assert entries["absent"]["absent"] == "no wheel"
    assert entries["broken"]["failed"] == "ValueError: no plan"
    assert "relative error 0.2" in entries["wrong"]["wrong"] and "modes" not in entries["wrong"]
    assert "nan" in entries["nan"]["wrong"] and "modes" not in entries["nan"]
    assert entries["uncapturable"]["not captured"].startswith("RuntimeError: operation not permitted")
    assert list(entries["uncapturable"]["modes"]) == ["eager"]
    assert (
        entries["museum"]["modes"]["eager"]["samples"] == 1 and entries["museum"]["error"]["relative"] < 1e-6
    )
    assert "modes" not in entries["wrong museum"] and "relative error 1.0" in entries["wrong museum"]["wrong"]
    assert list(entries["stale"]["modes"]) == ["eager"] and "wrong" in entries["stale"]["not captured"]
    assert "graph" in entries["stale of ours"]["wrong"] and "modes" not in entries["stale of ours"]
    assert entries["dying"]["failed"] == "eager, while timed: RuntimeError: out of memory"
    assert "modes" not in entries["dying"] and ("graph", "dying") not in clock.turns
    assert entries["quick"]["modes"]["graph"]["samples"] == 12
    assert found["best"] == {
        "name": "quick",
        "mode": "graph",
    }  # of the graphs, though one launched takes less
    assert found["ratio"] == {"value": 2.0, "rounds": [2.0, 2.0, 2.0]}
    assert found["launched"]["best"] == {"name": "uncapturable", "mode": "eager"}
    assert found["launched"]["ratio"] == {"value": 0.25, "rounds": [0.25] * 3}
    assert clock.turns.count(("eager", "museum")) == 1
    graph = [name for mode, name in clock.turns if mode == "graph"][3:]
    assert graph == ["slow", "quick", OURS, OURS, "quick", "slow"] * 2


def test_a_slow_peer_is_called_once():
    images, called = torch.randn(2, 3), []

    def make():
        return lambda given: called.append(given) or given

    slow = Peer("museum", "a test", make, is_slow=True)
    cell = Cell(48, 2, "float16", [images] * 4, [images.double()] * 4, 10)
    entry = hold(cell, [slow], Calling(), QUICK)["peers"]["museum"]
    assert len(called) == 1 and entry["modes"]["eager"]["samples"] == 1 and entry["error"]["relative"] < 1e-6


class Calling(CpuClock):
    """As a GPU's clock it calls nothing before what it times."""

    def bind(self, mode, run, inputs, has_own_graph):
        bound = CpuBound(run, inputs)
        bound.last = bound.SHORT
        return bound


def test_nothing_is_best_where_peers_were_left_out():
    images = torch.randn(3, 5)
    cell = Cell(48, 3, "float16", [images], [images.double()], 10)
    clock = Scripted({"slow": 90, OURS: 20})
    found = hold(
        cell,
        [peer(OURS, is_peer=False), peer("slow"), peer("quick")],
        clock,
        QUICK,
        lambda one: one.name != "quick",
    )
    assert "modes" in found["peers"]["slow"] and "modes" in found["peers"][OURS]
    assert found["best"] is None and found["ratio"] is None and found["launched"]["ratio"] is None
    assert report.reason(found["peers"]["quick"]) == "left out: not asked for"
    whole = hold(cell, [peer(OURS, is_peer=False), peer("slow")], clock, QUICK)
    assert parts.replaces(whole, found) and parts.replaces(found, None) and parts.replaces(found, found)
    assert not parts.replaces(found, whole)


def test_a_device_that_is_lost_ends_the_contest(monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    def broken():
        raise ValueError("no plan")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", lost)
    images = torch.randn(3, 5)
    cell = Cell(48, 3, "float16", [images], [images.double()], 10)
    with pytest.raises(DeviceLostError, match=r"illegal memory access was encountered$"):
        hold(cell, [Peer("broken", "b", broken), peer("slow")], Scripted({"slow": 90}), QUICK)


def test_peers_take_turns_and_the_first_round_is_dropped():
    calls: list[tuple[str, int]] = []

    def take(name):
        def seconds(count):
            calls.append((name, count))
            return [float(len(calls))] * count

        return seconds

    def failed(name, error):
        raise AssertionError(name) from error

    found = in_turn({"a": take("a"), "b": take("b")}, 2, {"a": 1, "b": 3}, failed)
    assert "".join(name for name, _ in calls) == "abbaab"
    assert found == {"a": [[4.0], [5.0]], "b": [[3.0] * 3, [6.0] * 3]}


def test_facts_are_microseconds_with_their_spread():
    rounds = [[1e-6 * value for value in range(1, 51)], [1e-6 * value for value in range(51, 101)]]
    assert facts(rounds) == {
        "p50": 50.5,
        "p99": 99.0,
        "least": 1.0,
        "most": 100.0,
        "rounds": [25.5, 75.5],
        "samples": 100,
    }
    assert facts([[1e-6] * 60, [2e-6] * 39])["p99"] is None  # the most of 99 is no percentile


def test_errors_are_relative_to_all_outputs_and_count_rows_of_the_same_class():
    wanted = [torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)]
    found = errors([torch.tensor([[3.0, 4.0], [2.0, 1.0]])], wanted)
    assert found == {"relative": pytest.approx(2 / 26**0.5, rel=1e-3), "largest": 2.0, "top1": 0.5}


def test_the_cold_and_the_warm_mode_replay_one_graph(monkeypatch):
    made = []

    class Graph:
        def __init__(self, run, inputs, has_own_graph):
            self.run = run
            made.append(run)

        def seconds(self, count, flush=None):
            return [0.0 if flush is None else 1.0] * count

    monkeypatch.setattr(clock, "CudaGraph", Graph)
    monkeypatch.setattr(clock.CudaClock, "FLUSHED", 4)
    monkeypatch.setattr(clock.torch, "zeros", lambda *size, **more: torch.ones(1))
    timer = clock.CudaClock()
    runs = [lambda images: images, lambda images: images + 1]
    bounds = [timer.bind(mode, run, [], False) for run in runs for mode in (clock.GRAPH, clock.COLD)]
    assert made == runs
    assert [bound.seconds(2) for bound in bounds] == [[0.0] * 2, [1.0] * 2] * 2
    del bounds
    assert not timer.graphs  # their memory is free for the next cell
