"""Where figures were taken: processor, GPU, versions, and what both reach in a plain matrix product and copy."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kernels.benchmark.clock import rounded
from kernels.geometry import Precision
from kernels.packing import TYPES
from kernels.roofline import RATES, Machine

PACKAGES = ("torch", "triton", "onnx", "onnxscript", "onnxruntime", "openvino", "matplotlib")
ROOT = Path(__file__).resolve().parents[2]


def command(arguments: Sequence[str]) -> str:
    """As typed, but for the folder that the results go to: it is this machine's."""
    kept = list(arguments)
    if "--output" in kept:
        place = kept.index("--output")
        del kept[place : place + 2]
    return shlex.join(["python", *kept])


def taken(threads: int) -> dict[str, Any]:
    """Date, machine, versions, commit, command; what is not known is left out."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(sys.orig_argv[1:]),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions()},
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 2)
    if commit := said("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"):
        facts["commit"] = commit + (
            " and changes" if said("git", "-C", str(ROOT), "status", "--porcelain") else ""
        )
    if torch.cuda.is_available():
        facts["gpu"] = gpu()
    return facts


def gpu() -> dict[str, Any]:
    one = torch.cuda.get_device_properties(0)
    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit"
    return {
        "name": one.name,
        "capability": f"{one.major}.{one.minor}",
        "processors": one.multi_processor_count,
        "gib": round(one.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver, clock, its most, power": said("nvidia-smi", query, "--format=csv,noheader"),
    }


def gpu_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def said(*command: str) -> str:
    """A command's first line; empty where it cannot be had."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""


def measured(device: str, precision: Precision, side: int, megabytes: int) -> Machine:
    """What the device reaches in a product of two `side` x `side` matrices and in a copy; the `flops` are such that
    the rate of `precision` is the one measured."""
    left, right = (torch.randn(side, side, device=device).to(TYPES[precision]) for _ in range(2))
    product = best_of(lambda: left @ right, device)
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    copy = best_of(lambda: target.copy_(source), device)
    flops = 2 * side**3 / product
    bandwidth = 2 * source.numel() * 4 / copy
    name = f"measured: {flops / 1e12:.4g} TFLOP/s ({side}^3, {precision}), {bandwidth / 1e9:.4g} GB/s (copy)"
    return Machine(name, flops / RATES[precision], bandwidth)


def best_of(work: Callable[[], object], device: str, tries: int = 10) -> float:
    """Seconds of the fastest of `tries` calls, after two that do not count."""

    def once() -> float:
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        return time.perf_counter() - begin

    return min([once() for _ in range(2 + tries)][2:])


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(machine: Machine, precision: Precision) -> float:
    """TFLOP/s."""
    return rounded(machine.flops * RATES[precision] / 1e12)
