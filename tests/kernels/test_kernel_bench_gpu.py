"""What the benchmark does on a GPU and with its results, on a processor: all but the CUDA calls, with a narrow net."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import bench, tiles
from kernels.benchmark import figures, gpu, nets, ours, parts, report
from kernels.benchmark.clock import CpuClock
from kernels.benchmark.contest import OURS, Plan
from kernels.geometry import Layer
from kernels.roofline import H100

QUICK = Plan(rounds=2, samples=2, seconds=0.2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Test files run side by side; threads that wait for each other take longer than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net() -> nets.Vgg19:
    return nets.seeded(32, divisor=4)


def only(*words: str):
    return lambda peer: any(word in peer.name for word in words)


@pytest.fixture(scope="module")
def compared(net) -> dict:
    """The GPU's comparison, on a processor: CUDA's peers fail, the twins compute for ours."""
    with torch.no_grad():
        one = gpu.compare(
            net,
            2,
            "float16",
            H100,
            CpuClock(),
            QUICK,
            only("eager", "unfold", "cuDNN", "TensorRT", "ours"),
            device="cpu",
        )
        rows = gpu.layer_table(32, 1, "float16", H100, CpuClock(), QUICK, device="cpu", divisor=4)
    cells = [{**one, "peak": 790.0}]
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
        "targets": gpu.targets(cells),
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
    assert "unfold + cuBLAS" in text and "| TensorRT | absent: torch_tensorrt is not installed |" in text
    own = report.markdown(compared)
    assert "no speed" not in own and "## On a GPU" in own and "conv3_4" in own
    lines = report.rows_of(compared).splitlines()
    assert (
        lines[0].startswith("device,size,batch")
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
    rows = {row["name"]: row for row in gpu.targets([cell])}
    assert rows["best peer / ours, 224 px, float16, batch 1"] == {
        "name": "best peer / ours, 224 px, float16, batch 1", "target": ">= 1.6", "value": 1.7, "met": True
    }  # fmt: skip
    assert rows["ours in µs, 224 px, float16, batch 1"]["met"] is False
    assert rows["ours in µs, 224 px, float16, batch 1"]["value"] == 131.0
    assert rows["error of ours / of cuDNN, 224 px, float16, batch 1"]["met"] is False
    assert rows["best peer / ours, 224 px, tf32, batch 64"]["met"] is None
    del cell["peers"][OURS]["modes"]
    assert {row["met"] for row in gpu.targets([cell | {"ratio": None}]) if "error" not in row["name"]} == {
        None
    }


def test_a_cell_measured_again_replaces_its_own_figures_only(tmp_path, compared, monkeypatch):
    before = {
        "cells": [
            {**compared["gpu"]["cells"][0], "size": 48, "batch": batch, "ratio": {"value": 9, "rounds": [9]}}
            for batch in (1, 8)
        ]
    }
    fresh = {**compared["gpu"]["cells"][0], "size": 48, "batch": 8}
    monkeypatch.setattr(gpu, "compare", lambda *arguments: fresh)
    monkeypatch.setattr(parts, "CudaClock", lambda: None)
    monkeypatch.setattr(parts, "ceiling", lambda precision: H100)
    options = bench.parse(
        ["--sizes", "48", "--batches", "8", "--precisions", "float16", "--output", str(tmp_path)]
    )
    (found,) = parts.graphics(parts.Bench(options, 1), before)
    assert [(one["batch"], one["ratio"]) for one in found["cells"]] == [
        (1, before["cells"][0]["ratio"]),
        (8, fresh["ratio"]),
    ]


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
    (ratio,) = [figure.facts() for figure in triton.figures({"gpu": {"cells": [cell]}}, 1.0)]
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


def test_a_variant_of_ours_is_denied_tiles_only_inside(net):
    layer, device = Layer(3, 3, 512, 512, relu=True), torch.device("cpu")
    usual = tiles.choose(layer, 1, "float16", device)
    keep = ours.KEEPS["without swapped operands"][1]
    with ours.choosing(keep):
        assert tiles.choose(layer, 1, "float16", device).kind == "implicit"
    assert tiles.choose(layer, 1, "float16", device) == usual
    with torch.no_grad():
        program = ours.swapped(net, "float16")
        whole, apart = (ours.module(program, "cpu") for _ in range(2))
        apart = ours.apart(apart)
        images = nets.images(2, 32, 3).half()
        assert torch.equal(whole(images), apart(images))
    calls = [node for node in apart.graph.nodes if node.target is torch.ops.fer_kernels.convolution.default]
    assert len(calls) == 16 and not any(node.args[7] for node in calls)
