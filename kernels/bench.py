"""python -m kernels.bench [--output DIR] [--program FILE.pt2] [--parts …] [--quick]: the kernels against what people use.

    parity   every kernel in Triton's interpreter against float64
    matrix   every kernel compiled ahead of time for sm_80, sm_90, gfx942
    swap     VGG19 exported, saved, loaded, swapped, saved, loaded by another process, run
    floors   the least that the net can take on an H100, by arithmetic and memory traffic
    cpu      what a person without a GPU can use, timed on the exported net: left out where there is a GPU
    gpu      all peers and ours, launched and as CUDA graphs, by size, batch and precision; layers; ablations; targets

Without a GPU the first five should take less than five minutes on two cores, and no speed of the kernels is claimed.
Everything is checked before it is timed. On a GPU layers that were not tuned are tuned before, and most of the time goes
into that and into torch.compile; `--sizes`, `--batches`, `--precisions` and `--peers` choose. DIR gets cpu.json, cpu.md, cpu.csv and pictures, or gpu-NAME.… on a GPU; a part that
is run again replaces its own figures, a cell its own. Exit status 0; 1 where a check failed; 2 for what cannot be asked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kernels.benchmark import figures, machine, report
from kernels.benchmark.checks import CheckError
from kernels.benchmark.contest import Facts
from kernels.benchmark.parts import RUN, Bench
from kernels.geometry import PRECISIONS, Unsupported

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "kernels/results"
PARTS = tuple(RUN)
GPU_CELLS: dict[str, tuple[Any, ...]] = {
    "sizes": (224, 48), "batches": (1, 8, 32, 64), "precisions": ("float16", "bfloat16", "tf32"),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of torch to itself
    threads = options.threads or available()
    torch.set_num_threads(threads)
    has_gpu = torch.cuda.is_available()
    parts = options.parts or [part for part in PARTS if part != ("cpu" if has_gpu else "gpu")]
    if "gpu" in parts and not has_gpu:
        print("--parts gpu needs a GPU that torch sees; there is none", file=sys.stderr)
        return 2
    stem = f"gpu-{slug(torch.cuda.get_device_name(0))}" if has_gpu else "cpu"
    results = known(options.output / f"{stem}.json")
    try:
        bench = Bench(options, threads)
    except (OSError, Unsupported) as error:
        print(error, file=sys.stderr)
        return 2
    with torch.no_grad():
        for part in parts:
            print(f"{part} …", flush=True)
            taken = machine.taken(threads)
            for facts in told(part, bench, results.get(part, {})):
                results[part] = {"taken": taken, **facts}
                write(options.output, stem, results)
    return conclude(options.output, stem, {part: results[part] for part in parts})


def told(part: str, bench: Bench, before: Facts) -> Iterator[Facts]:
    """The part's figures; a check that breaks off is a failure among them, and the next part goes on."""
    try:
        yield from RUN[part](bench, before)
    except CheckError as error:
        yield {"broken": str(error), "failed": [str(error).partition("\n")[0]]}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench",
        description="\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: kernels/results; with --quick cache/kernels"
    )
    parser.add_argument(
        "--program",
        type=Path,
        metavar="FILE",
        help="an exported VGG19 (.pt2, one you trust: torch.export.load runs what it says)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all that this machine can do")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=GPU_CELLS["sizes"], help="gpu: sides of the images"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=GPU_CELLS["batches"], help="gpu")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=GPU_CELLS["precisions"], help="gpu"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        metavar="WORD",
        help="gpu: only peers whose name has one of these, and ours: no ratio",
    )
    parser.add_argument("--threads", type=int, help="default: all cores that this process may use")
    parser.add_argument(
        "--quick", action="store_true", help="to see that it works: one small cell, few samples"
    )
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = ROOT / "cache/kernels" if options.quick else RESULTS
    return options


def available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def known(path: Path) -> Facts:
    """The parts that were measured before."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(output: Path, stem: str, results: Facts) -> None:
    """JSON, Markdown, CSV: whole files or none, in the order of the parts."""
    output.mkdir(parents=True, exist_ok=True)
    ordered = {part: results[part] for part in PARTS if part in results}
    recorded = [known(path) for path in sorted(output.glob("gpu-*.json"))]
    texts = {
        "json": json.dumps(ordered, indent=1) + "\n",
        "md": report.markdown(ordered, recorded),
        "csv": report.rows_of(ordered),
    }
    for kind, text in texts.items():
        draft = output / f".{stem}.{kind}"
        draft.write_text(text)
        draft.replace(output / f"{stem}.{kind}")


def conclude(output: Path, stem: str, results: Facts) -> int:
    """Pictures, what failed, what was not measured, and where it all lies."""
    pictures = figures.draw(results, output, stem)
    faults = report.faults(results)
    for fault in faults:
        print(f"FAILED {fault}", file=sys.stderr)
    if "gpu" not in results:
        print("no GPU: the speed of the kernels was not measured, and none is claimed")
        recorded = [path.name for path in sorted(output.glob("gpu-*.json"))]
        print(f"GPU results: {', '.join(recorded) or 'none are recorded; not measured'}")
    drawn = f", {len(pictures)} pictures" if pictures else ""
    drawn += "" if find_spec("matplotlib") else ", no pictures: matplotlib is not installed"
    print(f"written to {output}: {stem}.md, {stem}.json, {stem}.csv{drawn}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
