"""Measures on this machine's GPU which tile computes a layer the quickest, and keeps it in `tuned/`.

    python -m kernels.tune [--net vgg19] [--size 224 48] [--batches 1 2 4 8 16 32 64]
        [--precisions float16 bfloat16 tf32] [--again]

By default all that `kernels.bench` times and `kernels.Runner` captures, for which many kernels are compiled; it may be
broken off and started again: what was measured before on the same device with the same versions is not measured again,
but with --again. A candidate is compared with its torch twin before it is timed; one that does not compile or is wrong
is told and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from kernels import roofline, tiles
from kernels.geometry import Layer, Precision
from kernels.problem import INPUTS, problem
from kernels.runner import BATCHES
from kernels.tickets import TicketStore
from kernels.tiles import Key, Tile

NETS = {"vgg19": roofline.vgg19}
SIZES = (224, 48)
PRECISIONS: tuple[Precision, ...] = ("float16", "bfloat16", "tf32")
ERRORS: dict[Precision, float] = {"float16": 1e-3, "bfloat16": 8e-3, "tf32": 2e-3, "float32": 1e-5}
"""Of a result that is right: the norm of what it is off over its own norm, at the most."""
LAUNCHES = 16  # of a graph, at the least: short kernels are timed together
MOST_WEIGHTS = 64
"""Copies. More of a small layer's would be needed, but its weights are little of what it reads."""
SAMPLES = 15


class Wrong(Exception):
    """A candidate's result is not its twin's."""


class Trial(NamedTuple):
    """`seconds` is infinite where there is a `fault`."""

    tile: Tile
    seconds: float
    fault: str = ""


def verify(output: Tensor, expected: Tensor, precision: Precision) -> None:
    """Raises Wrong. NaN, from what was never written, is wrong too."""
    error = float((output.float() - expected.float()).norm() / expected.float().norm())
    if not error <= ERRORS[precision]:
        raise Wrong(f"off by {error:.1e}, more than {ERRORS[precision]:.0e}")


def measurer(layer: Layer, batch: int, precision: Precision, device: torch.device) -> Callable[[Tile], float]:
    """What verifies a tile on the GPU and says its seconds."""
    inputs, weight, bias, expected = problem(layer, batch, precision, device)
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = weight_copies(weight.nbytes, sum(image.nbytes for image in inputs), cache)
    weights = [weight.clone() for _ in range(count)]

    def measure(tile: Tile) -> float:
        launch = tiles.module(tile.kind).launch
        check_first(tile, layer, batch, precision, device)
        # new tensors are NaN then: no old result in the same memory passes for a new one
        torch.use_deterministic_algorithms(True)
        try:
            output = launch(inputs[0], weight, bias, layer, tile, precision)
        finally:
            torch.use_deterministic_algorithms(False)
        verify(output, expected, precision)
        return seconds(
            [
                partial(launch, inputs[number % INPUTS], one, bias, layer, tile, precision)
                for number, one in enumerate(weights)
            ]
        )

    return measure


def weight_copies(weight: int, inputs: int, cache: int) -> int:
    """How many copies of `weight` bytes take turns, so that each has left a cache of so many bytes before it is read
    again, as in a net, where all other layers' weights come between. All `inputs` are read in between, too."""
    return min(MOST_WEIGHTS, max(INPUTS, ceil((cache - inputs) / weight) + 1))


def check_first(tile: Tile, layer: Layer, batch: int, precision: Precision, device: torch.device) -> None:
    """Raises Wrong; ends everything where a kernel hangs, since nothing else runs on the device then."""
    if tile.kind in tiles.HOPPER_ONLY:
        try:
            if not tiles.selfcheck(tile, layer, batch, precision, device):
                raise Wrong("its check on the device says no")
        except tiles.module(tile.kind).Hung as error:
            raise SystemExit(str(error)) from error


def seconds(launches: list[Callable[[], Any]]) -> float:
    """Of one launch: the median over replays of a CUDA graph of them in turn, with tickets as a `Runner` gives them.
    Needs a GPU."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph, turns = torch.cuda.CUDAGraph(), ceil(LAUNCHES / len(launches))
    tickets = TicketStore(torch.device("cuda", torch.cuda.current_device()))  # lives as long as the graph
    with tickets, torch.cuda.graph(graph):
        for launch in launches * turns:
            launch()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    samples = []
    for _ in range(1 + SAMPLES):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1000 / (turns * len(launches)))
    return median(samples[1:])


def tune(candidates: Iterable[Tile], measure: Callable[[Tile], float]) -> list[Trial]:
    """Every candidate, the quickest first. One that fails is a trial with a fault; an interrupt ends it all."""
    trials = []
    for tile in candidates:
        try:
            trials.append(Trial(tile, measure(tile)))
        except Exception as error:  # whatever a compiler throws: the next candidate may do
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # raises again if the GPU itself is out of order: nothing works then
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            trials.append(Trial(tile, float("inf"), reason))
    return sorted(trials, key=lambda trial: trial.seconds)


def entry(key: Key, trials: list[Trial], guess: Tile) -> dict[str, Any]:
    """What is kept: the best, beside what the model would have taken."""
    guessed = [trial.seconds for trial in trials if trial.tile == guess and not trial.fault]
    return {
        "precision": key.precision,
        "batch": key.batch,
        "layer": key.layer._asdict(),
        "tile": trials[0].tile._asdict(),
        "microseconds": round(trials[0].seconds * 1e6, 2),
        "microseconds_of_model": round(guessed[0] * 1e6, 2) if guessed else None,
        "candidates": len(trials),
        "measured": date.today().isoformat(),
    }


def file_name(device: str, triton: str, torch_version: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"{slug}-triton{triton}-torch{torch_version}.json"


def write(folder: Path, key: Key, made: dict[str, Any]) -> Path:
    """Puts an entry into its device's file in place of an older one. Whole or not at all. From here on this process
    chooses by it, too."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(key.device, key.triton, key.torch)
    known = json.loads(path.read_text())["tiles"] if path.exists() else []
    fields = ("precision", "batch", "layer")
    kept = [one for one in known if any(one[field] != made[field] for field in fields)]
    content = {"device": key.device, "triton": key.triton, "torch": key.torch, "tiles": [*kept, made]}
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
    tiles.forget_tuned()
    return path


def report(number: str, key: Key, trials: list[Trial]) -> str:
    """A line for the layer, and one for each candidate that failed."""
    layer = key.layer
    head = (
        f"[{number}] {key.precision} batch {key.batch} {layer.height}x{layer.width} {layer.channels}->{layer.filters}"
        f"{' pool' if layer.pool else ''}: "
    )
    best = trials[0] if trials and not trials[0].fault else None
    found = "nothing works"
    if best:
        found = f"{tiles.describe(best.tile)} {best.seconds * 1e6:.1f} us of {len(trials)}"
    failed = [f"    {tiles.describe(trial.tile)}: {trial.fault}" for trial in trials if trial.fault]
    return "\n".join([head + found, *failed])


def tune_all(keys: list[Key], device: torch.device, folder: Path) -> None:
    capability = tiles.capability_of(device)
    for number, key in enumerate(keys, start=1):
        what = key.layer, key.batch, key.precision
        trials = tune(tiles.candidates(*what, capability), measurer(*what, device))
        print(report(f"{number}/{len(keys)}", key, trials), flush=True)
        if trials and not trials[0].fault:
            write(folder, key, entry(key, trials, tiles.heuristic(*what, capability)))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.tune", description=__doc__.partition("\n")[0])
    parser.add_argument("--net", choices=NETS, default="vgg19")
    parser.add_argument("--size", type=int, nargs="+", default=SIZES, help="sides of the images, pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--precisions", nargs="+", choices=get_args(Precision), default=PRECISIONS)
    parser.add_argument("--output", type=Path, default=tiles.TUNED, help="the folder used: kernels/tuned")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("no GPU to measure on; `python -m kernels.matrix` compiles without one", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    layers = dict.fromkeys(layer for size in options.size for layer in NETS[options.net](size).values())
    machine = torch.cuda.get_device_name(device), *tiles.versions()
    keys = [
        Key(*machine, precision, batch, layer)
        for precision in options.precisions
        for batch in options.batches
        for layer in layers
    ]
    known = {} if options.again else tiles.tuned(options.output)
    left = [key for key in keys if key not in known]
    print(f"{machine[0]}: {len(left)} of {len(keys)} to measure", flush=True)
    tune_all(left, device, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
