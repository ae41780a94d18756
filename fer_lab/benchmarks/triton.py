"""The Triton kernels: checks everywhere, speed on a GPU, and what a person without one can use.

`python -m kernels.bench` does the work in a process of its own, since it needs torch and triton alone; kernels/results
holds its report. Here its figures become a run in MLflow with the report's files, and the few that have a target
become figures of this benchmark. Without a GPU those are the checks; no speed of the kernels is claimed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.benchmarks.measure import BenchmarkError, Figure
from fer_lab.cli import ROOT

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

SECONDS = 300.0
"""For the whole report on two cores without a GPU."""

Results = dict[str, Any]


def measure(setting: Setting, quick: bool) -> Iterator[Figure]:
    is_record = setting.output == ROOT / "fer_lab/results"
    output = ROOT / "kernels/results" if is_record else setting.output / "kernels"
    words = [sys.executable, "-m", "kernels.bench", "--output", str(output), *(["--quick"] if quick else [])]
    words += [] if setting.threads is None else ["--threads", str(setting.threads)]
    begin, started = time.perf_counter(), time.time()
    done = subprocess.run(words, cwd=ROOT, check=False)
    seconds = time.perf_counter() - begin
    results, files = written(output, started)
    record(setting, results, files)  # what was measured counts, whatever failed beside it
    if done.returncode:
        raise BenchmarkError(f"{' '.join(words[1:])} ended with {done.returncode}; what failed stands above")
    yield from figures(results, seconds)


def written(output: Path, since: float) -> tuple[Results, list[Path]]:
    """The results that the process left, and all their files: gpu-NAME.* or cpu.*."""
    found = max(output.glob("*.json"), key=lambda path: path.stat().st_mtime, default=None)
    if found is None or found.stat().st_mtime < since - 1:
        raise BenchmarkError(f"kernels.bench wrote no results to {output}; why stands above")
    pictures = output.glob(f"{found.stem}_*.png")
    return json.loads(found.read_text()), [
        *(found.with_suffix(kind) for kind in (".json", ".md", ".csv")),
        *pictures,
    ]


def record(setting: Setting, results: Results, files: list[Path]) -> None:
    """A run of its own, with every time as a metric and the report's files as artifacts."""
    from fer_lab.tracking.environment import log_environment
    from fer_lab.tracking.forward import tracked
    from fer_lab.tracking.record import open_run

    name = f"bench-triton-{time.strftime('%Y%m%d-%H%M%S')}"
    with open_run(setting.runs_dir, name) as run, tracked(run, setting.uri, setting.experiment):
        log_environment(run, ROOT)
        run.tags({"fer.kind": "bench", "fer.device": device(results)})
        run.metrics(metrics(results), step=0)
        for path in files:
            shutil.copy2(path, run.folder / path.name)
            run.artifact(path.name)
    print(f"  run {name} in {setting.runs_dir}")


def device(results: Results) -> str:
    taken = next(iter(results.values()))["taken"]
    return str(taken.get("gpu", {}).get("name") or taken["cpu"])


def metrics(results: Results) -> dict[str, float]:
    """cpu/48px_b1_float32/ONNX_Runtime/eager_us: …; ratios of best peer to ours; errors and seconds of the checks."""
    found: dict[str, float] = {}
    for part in ("cpu", "gpu"):
        for cell in results.get(part, {}).get("cells", []):
            place = f"{part}/{cell['size']}px_b{cell['batch']}_{cell['precision']}"
            for name, verdict in (("ratio", cell), ("ratio_launched", cell.get("launched"))):
                if verdict and verdict["ratio"]:
                    found[f"{place}/{name}"] = verdict["ratio"]["value"]
            for peer, entry in cell["peers"].items():
                for mode, taken in entry.get("modes", {}).items():
                    found[f"{place}/{word(peer)}/{word(mode)}_us"] = taken["p50"]
    for part in ("parity", "matrix", "swap"):
        if "seconds" in results.get(part, {}):
            found[f"{part}/seconds"] = results[part]["seconds"]
    return found


MODES = {"graph": "as CUDA graphs", "eager": "launched from Python"}


def word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def figures(results: Results, seconds: float) -> Iterator[Figure]:
    """What has a target: on a GPU the ratios to the best peer, everywhere the checks."""
    if "cases" in results.get("parity", {}):
        yield parity(results["parity"])
    if "cases" in results.get("matrix", {}):
        yield matrix(results["matrix"])
    if "gpu" in results:
        yield from ratios(results["gpu"]["cells"], device(results))
    else:
        what = "python -m kernels.bench without a GPU: checks, compilations, five peers on the processor"
        yield Figure(
            "make bench-triton without a GPU", what, "s", [seconds], SECONDS, at_most=True, clock="wall time"
        )


def parity(facts: Mapping[str, Any]) -> Figure:
    """The worst case of each precision, in shares of what is allowed to it."""
    by_precision: dict[str, list[float]] = {}
    for case in facts["cases"]:
        by_precision.setdefault(case["precision"], []).append(case["error"] / case["allowed"])
    what = f"largest error over the error allowed, {len(facts['cases'])} cases in Triton's interpreter against float64"
    worst = sorted(max(shares) for shares in by_precision.values())
    return Figure(
        "kernels' error / allowed (interpreter)",
        what,
        "of what is allowed",
        worst[-1:],
        1.0,
        at_most=True,
        also=by_precision,
    )


def matrix(facts: Mapping[str, Any]) -> Figure:
    faults = sum(len(case["faults"]) for case in facts["cases"])
    what = f"spills, missing matrix instructions, too much shared memory, in {len(facts['cases'])} kernels compiled for sm_80, sm_90, gfx942"
    return Figure("faults of the compile matrix", what, "faults", [float(faults)], 0.0, at_most=True)


def ratios(cells: list[dict[str, Any]], device: str) -> Iterator[Figure]:
    """Best peer / ours: a figure per cell, with the issue's target where it has one for the device."""
    from kernels.benchmark.gpu import TARGETS, is_targeted

    wanted = {
        (target.size, precision, batch): target.ratio
        for target in TARGETS for precision in target.precisions for batch in target.batches if is_targeted(device)
    }  # fmt: skip
    for cell in cells:
        if not cell["ratio"]:
            continue
        where = (cell["size"], cell["precision"], cell["batch"])
        what = f"{cell['best']['name']} over ours, both {MODES[cell['best']['mode']]}, medians of each round"
        name = f"VGG19 {where[0]} px, {where[1]}, batch {where[2]}, best peer / ours"
        yield Figure(name, what, "×", cell["ratio"]["rounds"], wanted.get(where), at_most=False)
