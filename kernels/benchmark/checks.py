"""Correctness without a GPU: kernels in the interpreter, the compile matrix, and the swap from file to file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from kernels.benchmark import nets
from kernels.benchmark.contest import Facts, errors
from kernels.geometry import Precision
from kernels.swap import swap

ROOT = Path(__file__).resolve().parents[2]
SWAPPED_ALLOWED = 0.02
"""Relative error of a program swapped to float16: its activations are rounded 18 times."""
LOAD_AND_RUN = """
import sys, torch
import kernels
place = sys.argv[1]
with torch.no_grad():
    program = torch.export.load(f"{place}/swapped.pt2")
    torch.save(program.module()(torch.load(f"{place}/images.pt")), f"{place}/found.pt")
"""


class CheckError(RuntimeError):
    """A check did not run to its end; the text holds what it said last."""


def parity(precisions: Sequence[str] = ()) -> Facts:
    """`kernels.benchmark.parity` in a process that interprets; {"absent": why} where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return {"absent": "triton is not installed"}
    begin = time.perf_counter()
    text = python(
        ["-m", "kernels.benchmark.parity", *precisions], TRITON_INTERPRET="1", FER_KERNELS_INTERPRET="1"
    )
    cases = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {
        "cases": cases,
        "failed": [f"{case['case']}, {case['precision']}" for case in cases if not case["passed"]],
        "seconds": since(begin),
    }


def matrix(only: Sequence[str] = ()) -> Facts:
    """`kernels.matrix`: every kind of layer compiled ahead of time for sm_80, sm_90 and gfx942."""
    if importlib.util.find_spec("triton") is None:
        return {"absent": "triton is not installed"}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fer_kernels_") as place:
        report = Path(place) / "matrix.json"
        words = ["-m", "kernels.matrix", "--json", str(report), *(["--only", *only] if only else [])]
        said = python(words, may_fail=True)
        if not report.exists():
            raise CheckError(f"python {' '.join(words)} wrote no report:\n{said[-2000:]}")
        found = json.loads(report.read_text())
    return {**found, "seconds": since(begin)}


def round_trip(program: ExportedProgram, precision: Precision = "float16", batch: int = 3) -> Facts:
    """Saved, loaded, swapped, saved, loaded by a process that knows nothing else, run on another batch size."""
    begin = time.perf_counter()
    images = example(program, batch)
    with tempfile.TemporaryDirectory(prefix="fer_kernels_") as folder, torch.no_grad():
        place = Path(folder)
        torch.export.save(program, place / "exported.pt2")
        exported = torch.export.load(place / "exported.pt2")
        swapped, report = swap(exported, precision)
        torch.export.save(swapped, place / "swapped.pt2")
        torch.save(images, place / "images.pt")
        python(["-c", LOAD_AND_RUN, str(place)])
        found = torch.load(place / "found.pt")
        error = errors([found], [program.module()(images).double()])
        sizes = {
            name: round((place / f"{name}.pt2").stat().st_size / 1e6, 1) for name in ("exported", "swapped")
        }
    return {
        "precision": precision,
        "batch": batch,
        "swapped": len(report.swapped),
        "kept": [" ".join(map(str, kept)) for kept in report.kept],
        "report": str(report),
        "megabytes": sizes,
        "error": error,
        "allowed": SWAPPED_ALLOWED,
        "failed": [] if error["relative"] <= SWAPPED_ALLOWED else [f"relative error {error['relative']}"],
        "seconds": since(begin),
    }


def example(program: ExportedProgram, batch: int) -> Tensor:
    """Random images as the program takes them: float, or uint8 where it does its own preprocessing."""
    assert program.example_inputs is not None
    given = program.example_inputs[0][0]
    channels, height, width = given.shape[1:]
    if given.dtype.is_floating_point and channels == nets.CHANNELS and height == width:
        return nets.images(batch, height, 7).to(given.dtype)
    return torch.randint(0, 256, (batch, channels, height, width)).to(given.dtype)


def python(words: Sequence[str], may_fail: bool = False, **environment: str) -> str:
    """Standard output of a Python process that compiles, or interprets where `environment` says so."""
    kept = {key: value for key, value in os.environ.items() if "INTERPRET" not in key}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and not may_fail:
        raise CheckError(f"python {' '.join(words[:2])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout or done.stderr


def since(begin: float) -> float:
    return round(time.perf_counter() - begin, 1)
