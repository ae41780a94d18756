"""The benchmark of the kernels: all but the CUDA calls, on a processor, with nets that are narrow."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys

import pytest
import torch

from kernels import bench
from kernels.benchmark import checks, cpu, floors, gpu, machine, nets, parts, peers, report
from kernels.benchmark.clock import CpuClock
from kernels.benchmark.contest import OURS, Plan, hold
from kernels.geometry import Unsupported
from kernels.roofline import H100

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = Plan(rounds=2, samples=2, seconds=0.2)


def test_the_seeded_net_is_vgg19_and_tells_images_apart(net):
    whole = nets.Vgg19(48)
    assert [tuple(module.weight.shape) for module in whole.weighted()] == nets.shapes(48, 7)
    assert sum(layer.flops(1) for layer in nets.layers(224).values()) == pytest.approx(39.04e9, rel=1e-3)
    with torch.no_grad():
        logits = net(nets.images(64, 32, 5))
    assert len(logits.argmax(1).unique()) >= 4
    assert torch.equal(nets.images(2, 32, 5), nets.images(2, 32, 5)) and net.size == 32


def test_a_net_is_taken_out_of_an_exported_program(tmp_path):
    class Whole(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])

        def forward(self, pixels):
            return self.net(pixels / 255 - self.mean).softmax(1)

    net = nets.Vgg19(48, classes=5).eval()
    program = torch.export.export(Whole(net), (torch.zeros(2, 3, 48, 48),))
    torch.export.save(program, tmp_path / "whole.pt2")
    images = nets.images(2, 48, 1)
    with torch.no_grad():
        found = nets.loaded(tmp_path / "whole.pt2")
        assert found.size == 48 and torch.equal(found(images), net(images))
    other = torch.export.export(torch.nn.Linear(3, 3), (torch.zeros(1, 3),))
    torch.export.save(other, tmp_path / "other.pt2")
    with pytest.raises(Unsupported, match="of 1 layers with weights; this benchmark times a VGG19"):
        nets.loaded(tmp_path / "other.pt2")


def test_floors_are_those_of_the_notes():
    rows = {
        (row["size"], row["precision"], row["way"]): row["floors"]
        for row in floors.by_batch((224, 48), (1, 64), ("float16", "tf32"), H100)
    }
    ways = list(floors.WAYS.values())
    assert [rows[224, "float16", way]["1"] for way in ways] == pytest.approx([62, 67, 87, 107], rel=0.02)
    assert [rows[224, "float16", way]["64"] for way in ways] == pytest.approx(
        [3300, 3626, 4894, 6161], rel=0.02
    )
    assert rows[224, "tf32", ways[0]]["64"] == pytest.approx(6600, rel=0.02)
    layers = {row["layer"]: row for row in floors.by_layer(224, 1, "float16", H100)}
    assert layers["conv1_1"]["bound"] == layers["fc1"]["bound"] == "memory"
    assert layers["fc1"]["floor"] == pytest.approx(8.6, rel=0.02)


def test_without_results_of_a_gpu_it_says_that_none_were_measured(tmp_path):
    bench.write(tmp_path, "cpu", {})
    assert "No GPU results are recorded; not measured." in (tmp_path / "cpu.md").read_text()


def test_the_swap_goes_from_file_to_file(net):
    found = checks.round_trip(nets.exported(net))
    assert found["swapped"] == 18 and not found["kept"] and not found["failed"]
    assert found["megabytes"]["swapped"] < 0.7 * found["megabytes"]["exported"]
    assert "relative error" in report.swap({"net": "n", **found})[0]


def test_peers_on_a_processor_agree_and_say_what_they_lack(net, monkeypatch):
    with torch.no_grad():
        one = gpu.cell(net, 2, "float32", "cpu", None)
        peers = cpu.every(nets.exported(net), 1, one.inputs[0])
        monkeypatch.setattr("shutil.which", lambda name: None)
        found = hold(one, peers, CpuClock(), QUICK)
    entries = found["peers"]
    assert list(entries) == ["eager", "eager channels_last", "torch.compile", "ONNX Runtime", "OpenVINO"]
    assert "C++ compiler" in entries["torch.compile"]["absent"]
    for name in ("eager", "eager channels_last"):
        assert entries[name]["error"]["relative"] < 1e-4 and entries[name]["modes"]["eager"]["samples"] >= 2
    for name, module in (("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino")):
        assert "modes" in entries[name] or entries[name]["absent"] == f"{module} is not installed"
    assert sys.modules.get("openvino_telemetry") is None  # nothing is reported to anyone
    text = report.cpu_cell(found)
    assert "| torch.compile | absent: Inductor needs a C++ compiler" in text


def test_inductor_knows_the_options_of_its_peers(net):
    for options in peers.COMPILED.values():
        assert callable(torch.compile(net, options=options))
    with pytest.raises(RuntimeError, match="freezingg"):
        peers.compiled("misspelt", {"freezingg": True}, net, nets.images(1, 32, 1)).make()


@pytest.mark.parametrize("where", ["processor", "gpu"])
def test_the_weights_of_frozen_peers_are_constants(where, monkeypatch):
    from torch._inductor import freezing

    class Seen(Exception):
        pass

    def freeze(*arguments, original=freezing.freeze, **more):
        raise Seen(original(*arguments, **more)[1])

    monkeypatch.setattr(freezing, "freeze", freeze)
    torch.compiler.reset()
    net, images = (
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval(),
        torch.zeros(2, 3, 8, 8),
    )
    with torch.no_grad(), pytest.raises(Exception, match=r"Seen: \[\d\]"):  # one input is left: the images
        if where == "gpu":
            peers.compiled("frozen", peers.COMPILED["torch.compile, frozen"], net, images).make()
        else:
            cpu.inductor(torch.export.export(net, (images,)), images)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_the_reference_systems_scheme_is_corrected(tmp_path):
    """Its CUDA source as C++, a thread after the other."""
    stubs = '#define __global__\nstruct Place { int x; }; extern "C" Place threadIdx;\nPlace threadIdx;\n'
    (tmp_path / "r0.cpp").write_text(stubs + peers.R0_SOURCE)
    library = tmp_path / "r0.so"
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", tmp_path / "r0.cpp", "-o", library], check=True)
    convolve = ctypes.CDLL(str(library))
    image, weight = torch.randn(1, 3, 5, 6).double(), torch.randn(4, 3, 3, 3).double()
    bias, output = torch.randn(4).double(), torch.full((1, 4, 5, 6), torch.nan).double()
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (image, weight, bias, output)]
    for thread in range(4):
        ctypes.c_int.in_dll(convolve, "threadIdx").value = thread
        convolve.convolve(*pointers, 3, 5, 6)
    expected = torch.nn.functional.conv2d(image, weight, bias, padding=1).relu()
    torch.testing.assert_close(output, expected)


@pytest.mark.long
def test_inductor_is_a_peer_where_there_is_a_compiler(net):
    with torch.no_grad():
        one = gpu.cell(net, 2, "float32", "cpu", None)
        found = hold(
            one,
            [
                peer
                for peer in cpu.every(nets.exported(net), 1, one.inputs[0])
                if peer.name == "torch.compile"
            ],
            CpuClock(),
            QUICK,
        )
    assert found["peers"]["torch.compile"]["error"]["relative"] < 1e-4


def test_the_command_checks_the_kernels_and_claims_no_speed(tmp_path, capsys):
    assert (
        bench.main(["--quick", "--threads", "1", "--output", str(tmp_path), "--parts", "parity", "floors"])
        == 0
    )
    said = capsys.readouterr().out
    assert "no GPU: the speed of the kernels was not measured, and none is claimed" in said
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert list(results) == ["parity", "floors"]
    cases = results["parity"]["cases"]
    assert {case["kernel"] for case in cases} == {"implicit", "stem", "split"} and all(
        case["passed"] for case in cases
    )
    assert {"date", "cpu", "threads", "versions", "command"} <= set(results["parity"]["taken"])
    text = (tmp_path / "cpu.md").read_text()
    assert "0 failed" in text and "conv5_4" in text and "no speed of theirs is claimed" in text
    assert bench.main(["--parts", "gpu", "--output", str(tmp_path)]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_the_compile_matrix_is_part_of_the_report():
    found = checks.matrix(["conv3_2", "float16", "sm_80"])
    (row,) = [line for line in report.matrix(found)[1].splitlines() if line.startswith("| sm_80")]
    assert row.startswith("| sm_80 | float16 | 1 | 0 | 0 |") and "mma.sync" in row


def test_what_fails_is_told_and_the_other_parts_go_on(tmp_path, monkeypatch, capsys):
    def breaks(bench, before):
        raise checks.CheckError("python -m kernels.matrix ended with 1:\nTraceback")
        yield

    failed = {"failed": ["3x3, float16"], "cases": []}
    monkeypatch.setitem(parts.RUN, "matrix", breaks)
    monkeypatch.setitem(parts.RUN, "parity", lambda bench, before: iter([failed]))
    assert (
        bench.main(["--threads", "1", "--output", str(tmp_path), "--parts", "matrix", "parity", "floors"])
        == 1
    )
    said = capsys.readouterr().err
    assert (
        "FAILED matrix: python -m kernels.matrix ended with 1" in said
        and "FAILED parity: 3x3, float16" in said
    )
    assert (
        "Broken off" in (tmp_path / "cpu.md").read_text() and "conv5_4" in (tmp_path / "cpu.md").read_text()
    )
    row = {
        "name": "fc1",
        "precision": "tf32",
        "target": "sm_90",
        "faults": ["9 instructions spill registers"],
    }
    assert report.faults({"matrix": {"cases": [row]}}) == [
        "matrix: fc1, tf32, sm_90: 9 instructions spill registers"
    ]
    contest = {
        "size": 48,
        "batch": 1,
        "precision": "tf32",
        "peers": {OURS: {"wrong": "w"}, "TensorRT": {"absent": "a"}},
    }
    assert report.faults({"gpu": {"cells": [contest]}}) == ["gpu, 48 px, batch 1, tf32: ours wrong: w"]
    contest["peers"][OURS] = {"modes": {"eager": {}}, "not captured": "c"}
    assert report.faults({"gpu": {"cells": [contest], "failed": ["f"]}}) == [
        "gpu: f", "gpu, 48 px, batch 1, tf32: ours not captured: c"
    ]  # fmt: skip


def test_a_command_for_the_record_leaves_out_where_its_results_went():
    assert machine.command(["-m", "kernels.bench", "--output", "/home/me/out", "--quick"]) == (
        "python -m kernels.bench --quick"
    )
