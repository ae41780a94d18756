"""What the benchmark does on a GPU and with its results, on a processor: all but the CUDA calls, with a narrow net."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path

import pytest
import torch

from kernels import bench, tiles
from kernels.benchmark import figures, gpu, nets, ours, parts, peers, report, tuning
from kernels.benchmark.clock import CpuClock, DeviceLostError
from kernels.benchmark.contest import OURS, Plan
from kernels.geometry import Layer
from kernels.roofline import H100

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = Plan(rounds=2, samples=2, seconds=0.2)


def those(*words: str):
    """`peers.every`, but only those whose name has one of the words: the others compile for minutes."""
    every = peers.every
    return lambda *arguments: [one for one in every(*arguments) if any(word in one.name for word in words)]


@pytest.fixture(scope="module")
def compared(net) -> dict:
    """The GPU's comparison, on a processor: CUDA's peers fail, the twins compute for ours."""
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "every", those("eager", "unfold", "cuDNN", "TensorRT"))
        one = gpu.compare(
            net,
            2,
            "float16",
            H100,
            CpuClock(),
            QUICK,
            device="cpu",
        )
        rows = gpu.layer_table(32, 1, "float16", H100, CpuClock(), QUICK, device="cpu", divisor=4)
    cells = [{**one, "peak": 790.0, "tuning": {"seconds": 12.5, "tuned": 17, "layers": 18}}]
    taken = {
        "date": "2031-02-03T04:05:06+00:00", "cpu": "a processor", "cores": 2, "command": "python", "commit": "abc",
        "versions": {"torch": "2.11", "triton": "3.6"},
        "gpu": {"name": "NVIDIA Imaginary", "cudnn": 9, "driver, clock, its most, power": ""},
    }  # fmt: skip
    layers = [{"size": 32, "batch": 1, "precision": "float16", "rows": rows}]
    results = {
        "taken": taken,
        "net": "a narrow net",
        "machine": "m",
        "cells": cells,
        "layers": layers,
        "targets": gpu.targets(cells, "NVIDIA H100"),
    }
    return {"gpu": results}


def test_the_comparison_of_a_gpu_runs_whole_but_for_cuda(compared):
    (one,) = compared["gpu"]["cells"]
    peers = one["peers"]
    timed = {name for name, entry in peers.items() if "modes" in entry}
    variants = {name for name in peers if name.startswith(OURS)}
    assert variants == {
        OURS,
        "ours, Runner",
        "ours without fused pooling",
        *(f"ours {name}" for name in ours.KEEPS),
    }
    assert timed == {"eager NCHW", "eager channels_last", "unfold + cuBLAS", *variants}
    assert peers["TensorRT"]["absent"] == "torch_tensorrt is not installed"
    assert peers["cuDNN fused"]["failed"]
    assert all(peers[name]["error"]["relative"] < 0.1 for name in timed)
    assert (
        one["best"]["name"] in {"eager NCHW", "eager channels_last", "unfold + cuBLAS"}
        and one["ratio"]["value"] > 0
    )
    assert one["flops"] == sum(layer.flops(2) for layer in nets.layers(32, 4).values())
    (table,) = compared["gpu"]["layers"]
    assert [row["layer"] for row in table["rows"]] == list(nets.layers(32))
    assert all(row["peers"][OURS]["error"]["relative"] < 2e-3 for row in table["rows"])
    assert all(row["tile"]["kind"] in tiles.MODULES for row in table["rows"])


def test_what_a_gpu_measured_is_rendered_again_anywhere_with_its_device_and_date(compared, tmp_path):
    (tmp_path / "gpu-nvidia-imaginary.json").write_text(json.dumps(compared))
    bench.write(tmp_path, "cpu", {})
    text = (tmp_path / "cpu.md").read_text()
    assert "**NVIDIA Imaginary, 2031-02-03.** a narrow net" in text
    assert (
        "no speed of theirs is claimed" in text
        and "best peer / ours, 224 px, float16, batch 1 | >= 1.6 | not measured | – |" in text
    )
    assert "| 17 of 18, 12.5 s |" in text and "cuDNN's faster way" in text
    assert "unfold + cuBLAS" in text and "| TensorRT | absent: torch_tensorrt is not installed |" in text
    own = report.markdown(compared)
    assert "no speed" not in own and "## On a GPU" in own and "conv3_4" in own
    lines = report.rows_of(compared).splitlines()
    assert (
        lines[0].startswith("device,size,batch")
        and all(line.startswith("NVIDIA Imaginary,32,2,float16,") for line in lines[1:])
        and sum("unfold" in line and "timed" in line for line in lines) == 1
    )
    pictures = figures.draw(compared, tmp_path, "gpu-nvidia-imaginary")
    assert [path.name.rpartition("_")[2] for path in pictures] == [
        "latency.png",
        "ratios.png",
        "ablations.png",
        "layers.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_targets_are_met_missed_or_not_measured(compared):
    cell = copy.deepcopy(compared["gpu"]["cells"][0]) | {
        "size": 224,
        "batch": 1,
        "ratio": {"value": 1.7, "rounds": [1.7]},
    }
    cell["peers"][OURS]["modes"] = {
        "eager": {"p50": 400.0},
        "graph": {"p50": 131.0},
        "graph, cold L2": {"p50": 90.0},
    }
    cell["peers"][OURS]["error"]["relative"] = 3 * cell["peers"]["eager channels_last"]["error"]["relative"]
    rows = {row["name"]: row for row in gpu.targets([cell], "NVIDIA H100 80GB HBM3")}
    assert rows["best peer / ours, 224 px, float16, batch 1"] == {
        "name": "best peer / ours, 224 px, float16, batch 1", "target": ">= 1.6", "value": 1.7, "met": True
    }  # fmt: skip
    assert rows["ours in µs, 224 px, float16, batch 1"]["met"] is False
    assert rows["ours in µs, 224 px, float16, batch 1"]["value"] == 131.0
    assert rows["error of ours / of cuDNN, 224 px, float16, batch 1"]["met"] is False
    assert rows["best peer / ours, 224 px, tf32, batch 64"]["met"] is None
    elsewhere = gpu.targets([cell], "NVIDIA H200")
    assert {row["met"] for row in elsewhere} == {None}
    assert [row["value"] for row in elsewhere] == [row["value"] for row in rows.values()]
    del cell["peers"][OURS]["modes"]
    assert {
        row["met"] for row in gpu.targets([cell | {"ratio": None}], "H100") if "error" not in row["name"]
    } == {None}


def test_a_cell_measured_again_replaces_its_own_figures_only(tmp_path, compared, monkeypatch):
    before = {
        "cells": [
            {**compared["gpu"]["cells"][0], "size": 48, "batch": batch, "ratio": {"value": 9, "rounds": [9]}}
            for batch in (1, 8)
        ]
    }
    ratio = {"value": 1.5, "rounds": [1.5]}  # below 1 there would be a table of layers, too
    fresh = {**compared["gpu"]["cells"][0], "size": 48, "batch": 8, "ratio": ratio}
    monkeypatch.setattr(gpu, "compare", lambda *arguments: fresh)
    monkeypatch.setattr(parts, "CudaClock", lambda: None)
    monkeypatch.setattr(parts, "ceiling", lambda precision: H100)
    monkeypatch.setattr(tuning, "tune_layers", lambda *arguments: {"seconds": 1.0, "tuned": 18, "layers": 18})
    options = bench.parse(
        ["--sizes", "48", "--batches", "8", "--precisions", "float16", "--output", str(tmp_path)]
    )
    (found,) = parts.graphics(parts.Bench(options, 1), before)
    assert [(one["batch"], one["ratio"]) for one in found["cells"]] == [
        (1, before["cells"][0]["ratio"]),
        (8, fresh["ratio"]),
    ]


@pytest.fixture
def benched(tmp_path, monkeypatch):
    """The GPU's part of the benchmark over batches 1, 8 and 32 at 48 px, where `compare` and `tune` stand for the work."""

    def run(compare, tune=lambda *arguments: {"seconds": 1.0, "tuned": 18, "layers": 18}) -> list[dict]:
        monkeypatch.setattr(gpu, "compare", compare)
        monkeypatch.setattr(
            gpu, "layer_table", lambda *arguments: [{"layer": "conv1_1", "ratio": {"value": 0.7}}]
        )
        monkeypatch.setattr(tuning, "tune_layers", tune)
        monkeypatch.setattr(parts, "CudaClock", lambda: None)
        monkeypatch.setattr(parts, "ceiling", lambda precision: H100)
        words = [
            "--sizes",
            "48",
            "--batches",
            "1",
            "8",
            "32",
            "--precisions",
            "tf32",
            "--output",
            str(tmp_path),
        ]
        return [copy.deepcopy(found) for found in parts.graphics(parts.Bench(bench.parse(words), 1), {})]

    return run


def test_a_cell_is_tuned_before_it_is_timed_and_its_loss_has_a_reason(compared, benched):
    done = []

    def compare(net, batch, *more):
        done.append(("timed", batch))
        ratio = {"value": 0.9 if batch == 8 else 1.5, "rounds": [0.9]}
        known = {name: value for name, value in compared["gpu"]["cells"][0].items() if name != "tuning"}
        return {**known, "size": 48, "batch": batch, "precision": "tf32", "ratio": ratio}

    def tune(layers, batch, precision):
        assert len(list(layers)) == 18 and precision == "tf32"
        done.append(("tuned", batch))
        return {"seconds": 1.0, "tuned": 16, "layers": 18}

    found = benched(compare, tune)[-1]
    assert done == [(what, batch) for batch in (1, 8, 32) for what in ("tuned", "timed")]
    assert [(one["size"], one["batch"]) for one in found["layers"]] == [(48, 8)]  # none of the usual tables
    assert found["cells"][0]["tuning"]["tuned"] == 16 and not found["failed"]
    (line,) = report.losses(found)
    assert line == "- Below 1: 48 px, tf32, batch 8, 0.9: slower than cuDNN's by themselves: conv1_1 0.7."
    (line,) = report.losses({**found, "layers": []})
    assert "the reason is not known" in line
    assert "what lies between them" in report.why_lost([{"layer": "fc1", "ratio": {"value": 1.1}}])


def test_a_cell_that_fails_is_told_and_a_lost_gpu_keeps_what_was_measured(compared, benched):
    fresh = {**compared["gpu"]["cells"][0], "size": 48, "precision": "tf32", "ratio": None}

    def compare(net, batch, *more):
        if batch == 8:
            raise RuntimeError("out of memory\nmore")
        return {**fresh, "batch": batch}

    found = benched(compare)[-1]
    assert [one["batch"] for one in found["cells"]] == [1, 32]
    assert found["failed"] == ["48 px, batch 8, tf32: RuntimeError: out of memory"]
    assert report.faults({"gpu": found})[0] == "gpu: 48 px, batch 8, tf32: RuntimeError: out of memory"

    def lost(net, batch, *more):
        if batch == 8:
            raise DeviceLostError("illegal memory access")
        return {**fresh, "batch": batch}

    found = benched(lost)[-1]
    assert [one["batch"] for one in found["cells"]] == [1]
    assert found["failed"] == [
        "the GPU is out of order, and the rest was not measured: illegal memory access"
    ]


def test_layers_are_tuned_once_and_counted(tmp_path, monkeypatch):
    from kernels import tune

    asked = []

    def tune_all(keys, device, folder):
        asked.extend(keys)
        for key in keys[1:]:
            tile = tiles.heuristic(key.layer, key.batch, key.precision, tiles.HOPPER)
            tune.write(folder, key, tune.entry(key, [tune.Trial(tile, 1e-6)], tile))

    monkeypatch.setattr(tune, "tune_all", tune_all)
    monkeypatch.setattr(tiles, "TUNED", tmp_path)
    monkeypatch.setattr(tiles, "capability_of", lambda device: tiles.HOPPER)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Imaginary")
    layers = list(nets.layers(48).values())
    found = tuning.tune_layers(layers, 8, "float16")
    assert len(asked) == len(set(layers)) < 18  # a net repeats layers
    assert (found["tuned"], found["layers"]) == (17, 18)  # the stem, the first, found no tile
    asked.clear()
    assert tuning.tune_layers(layers, 8, "float16")["tuned"] == 17 and len(asked) == 1
    monkeypatch.setattr(tune, "tune_all", hangs)
    with pytest.raises(DeviceLostError, match="hangs"):
        tuning.tune_layers(layers, 1, "float16")


def hangs(keys, device, folder):
    raise SystemExit("a kernel hangs")


def test_figures_of_the_whole_benchmark_are_those_with_a_target(compared, tmp_path):
    from fer_lab.benchmarks import triton

    cases = [
        {"precision": precision, "error": error, "allowed": 1e-3, "faults": []}
        for precision, error in (("tf32", 5e-4), ("float16", 2e-4))
    ]
    results = {"parity": {"cases": cases, "seconds": 3.0}, "matrix": {"cases": cases}}
    found = [figure.facts() for figure in triton.figures(results, 250.0)]
    assert [(facts["value"], facts["target"], facts["met"]) for facts in found] == [
        (0.5, "<= 1", True),
        (0.0, "<= 0", True),
        (250.0, "<= 300", True),
    ]
    cell = {
        **compared["gpu"]["cells"][0],
        "size": 224,
        "batch": 1,
        "ratio": {"value": 1.5, "rounds": [1.4, 1.5, 1.55]},
    }
    taken = {"gpu": {"name": "NVIDIA H100 PCIe"}}
    (ratio,) = [figure.facts() for figure in triton.figures({"gpu": {"taken": taken, "cells": [cell]}}, 1.0)]
    other = {"gpu": {"taken": {"gpu": {"name": "NVIDIA H200"}}, "cells": [cell]}}
    assert [figure.facts()["met"] for figure in triton.figures(other, 1.0)] == [None]
    assert ", both launched from Python, medians" in ratio["what"]
    assert (ratio["value"], ratio["target"], ratio["met"], ratio["spread"]["value"]) == (
        1.5,
        ">= 1.6",
        False,
        [1.4, 1.55],
    )
    metrics = triton.metrics(results | compared)
    assert metrics["parity/seconds"] == 3.0 and metrics["gpu/32px_b2_float16/unfold_cuBLAS/eager_us"] > 0
    Path(tmp_path / "cpu.json").write_text("{}")
    with pytest.raises(triton.BenchmarkError, match="wrote no results"):
        triton.written(tmp_path, since=(tmp_path / "cpu.json").stat().st_mtime + 60)


def test_what_was_measured_is_recorded_although_something_failed(tmp_path, monkeypatch):
    from fer_lab.benchmarks import triton

    class Setting:
        output, threads = tmp_path, None

    def bench_process(words, **more):
        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels/cpu.json").write_text('{"floors": {}}')
        return subprocess.CompletedProcess(words, 1)

    recorded = []
    monkeypatch.setattr(triton.subprocess, "run", bench_process)
    monkeypatch.setattr(triton, "record", lambda setting, results, files: recorded.append(results))
    with pytest.raises(triton.BenchmarkError, match="ended with 1; what failed stands above"):
        list(triton.measure(Setting(), quick=True))
    assert recorded == [{"floors": {}}]


def test_a_variant_of_ours_is_denied_tiles_only_inside(net, monkeypatch):
    layer, device = Layer(3, 3, 512, 512, relu=True), torch.device("cpu")
    usual = tiles.choose(layer, 1, "float16", device)
    keep = ours.KEEPS["without swapped operands"][1]
    with ours.choosing(keep):
        assert tiles.choose(layer, 1, "float16", device).kind == "implicit"
    assert tiles.choose(layer, 1, "float16", device) == usual
    monkeypatch.setattr(tiles, "capability_of", lambda device: tiles.HOPPER)
    large = Layer(56, 56, 256, 256, relu=True)
    every = tiles.tilings(large, "float16", tiles.HOPPER)
    best = min(
        (tile for tile in every if tile.kind != "implicit"),
        key=lambda tile: tiles.cost(tile, large, 64, "float16", tiles.HOPPER),
    )
    assert best.kind in tiles.HOPPER_ONLY  # nobody tested it on a device: it may hang
    other = ours.instead(lambda tile: tile.kind != "implicit", large, 64, "float16", device)
    assert other is not None and other.kind == "split"
    monkeypatch.undo()
    with torch.no_grad():
        program = ours.swapped(net, "float16")
        whole, apart = (ours.module(program, "cpu") for _ in range(2))
        apart = ours.apart(apart)
        images = nets.images(2, 32, 3).half()
        assert torch.equal(whole(images), apart(images))
    calls = [node for node in apart.graph.nodes if node.target is torch.ops.fer_kernels.convolution.default]
    assert len(calls) == 16 and not any(node.args[7] for node in calls)
