"""Compiles every kernel for every target, without a GPU, and says what came out: `python -m kernels.matrix`.

Classes of layers x precisions x sm_80, sm_90, gfx942, each with the tile that `tiles.heuristic` chooses there. A fault
is: it does not compile, registers spill, no matrix instruction, wgmma missing on sm_90, more shared memory than the
device has, nothing copied while it computes. Exit status 0, 1 with faults, 2 for what cannot be asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kernels import tiles
from kernels.geometry import PRECISIONS, Layer, Precision
from kernels.roofline import vgg19
from kernels.tiles import Tile

if TYPE_CHECKING:
    from kernels.compilation import Compiled

VGG = vgg19(224)
CLASSES: dict[str, tuple[Layer, int]] = {
    "conv1_1": (VGG["conv1_1"], 32),
    "conv1_2 pool": (VGG["conv1_2"], 32),
    "conv3_2": (VGG["conv3_2"], 32),
    "conv4_2 batch 1": (VGG["conv4_2"], 1),
    "conv5_4 pool batch 1": (VGG["conv5_4"], 1),
    "fc1 batch 1": (VGG["fc1"], 1),
    "fc2": (VGG["fc2"], 32),
    "resnet 7x7/2": (Layer(224, 224, 3, 64, kernel=7, stride=2, padding=3, relu=True), 32),
    "resnet 3x3/2": (Layer(28, 28, 256, 256, stride=2, relu=True), 32),
    "resnet 1x1": (Layer(56, 56, 256, 64, kernel=1, padding=0, relu=True), 32),
}
"""Layers by name, with a batch."""
TARGETS = ("sm_80", "sm_90", "gfx942")
CAPABILITIES = dict(zip(TARGETS, ((8, 0), tiles.HOPPER, tiles.AMD), strict=True))


class Case(NamedTuple):
    name: str
    layer: Layer
    precision: Precision
    target: str
    tile: Tile

    def __str__(self) -> str:
        return f"{self.name}, {self.precision}, {self.target}, {tiles.describe(self.tile)}"


class Outcome(NamedTuple):
    """`compiled`: the fields of compilation.Compiled, empty where it did not compile."""

    case: Case
    compiled: dict[str, Any]
    faults: list[str]


def cases(tile: Tile | None = None) -> Iterator[Case]:
    """With `tile`, that one for all layers that its kernel takes, whether or not it is too large."""
    for (name, (layer, batch)), precision, target in product(CLASSES.items(), PRECISIONS, TARGETS):
        capability = CAPABILITIES[target]
        chosen = [tile] if tile else chosen_tiles(layer, batch, precision, capability)
        for one in chosen:
            if (one.kind == "stem") == layer.is_stem:
                yield Case(name, layer, precision, target, one)


def chosen_tiles(layer: Layer, batch: int, precision: Precision, capability: tiles.Capability) -> list[Tile]:
    """The model's choice, and the best of each of Hopper's own kernels."""
    others = tiles.candidates(layer, batch, precision, capability)
    best = {tile.kind: tile for tile in reversed(others) if tile.kind in tiles.HOPPER_ONLY}
    return [tiles.heuristic(layer, batch, precision, capability), *best.values()]


def compile_case(case: Case) -> Outcome:
    """In a process of its own. What the compiler throws is a fault."""
    from kernels import compilation

    try:
        compiled = compilation.compile_kernel(
            tiles.module(case.tile.kind), case.layer, case.tile, case.precision, case.target
        )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Outcome(case, {}, [f"does not compile: {reason}"])
    return Outcome(case, compiled._asdict(), faults(case, compiled))


def faults(case: Case, compiled: Compiled) -> list[str]:
    limit = tiles.CHIPS[CAPABILITIES[case.target]].shared
    is_stem = case.tile.kind == "stem"
    needs_wgmma = case.target == "sm_90" and not is_stem
    needs_copies = case.target != "gfx942" and not is_stem
    checks = (
        (compiled.spills > 0, f"{compiled.spills} instructions spill registers"),
        (not compiled.matrix, "no matrix instruction"),
        (needs_wgmma and compiled.matrix != "wgmma", f"{compiled.matrix or 'nothing'} instead of wgmma"),
        (compiled.shared > limit, f"{compiled.shared} bytes of shared memory, of {limit}"),
        (needs_copies and not compiled.instructions.get("copy"), "nothing is copied while it computes"),
    )
    return [fault for wrong, fault in checks if wrong]


def compile_all(chosen: list[Case], jobs: int) -> Iterator[Outcome]:
    """In order. Processes are forked after the imports, and compile anew: the cache is theirs alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for kind in {case.tile.kind for case in chosen}:
            tiles.module(kind)
        with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
            yield from pool.map(compile_case, chosen)


def row(outcome: Outcome) -> str:
    case, compiled = outcome.case, outcome.compiled
    head = f"{case.name:21} {case.precision:9} {case.target:7} {tiles.describe(case.tile):33}"
    if not compiled:
        return f"{head} -"
    loop = compiled["loop"]
    mix = ", ".join(f"{count} {kind}" for kind, count in sorted(loop.items(), key=lambda one: -one[1]))
    numbers = f"{compiled['registers']:4} {compiled['spills']:6} {compiled['shared']:7}"
    return f"{head} {numbers} {sum(loop.values()):5}  {mix or 'unrolled'}"


HEAD = f"{'layer':21} {'precision':9} {'target':7} {'tile':33} regs spills  shared  loop"


def as_json(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    import triton

    rows = [
        {
            "name": outcome.case.name,
            "layer": outcome.case.layer._asdict(),
            "precision": outcome.case.precision,
            "target": outcome.case.target,
            "tile": outcome.case.tile._asdict(),
            **outcome.compiled,
            "faults": outcome.faults,
        }
        for outcome in outcomes
    ]
    return {"triton": triton.__version__, "seconds": round(seconds, 1), "cases": rows}


def read_tile(text: str) -> Tile:
    """KIND,PIXELS,FILTERS,CHANNELS[,WARPS[,STAGES[,SPLITS[,DESCRIPTOR]]]]."""
    kind, *numbers = text.split(",")
    are_numbers = all(number.isdigit() for number in numbers)
    if kind not in tiles.KINDS or not 3 <= len(numbers) <= 7 or not are_numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is no tile; one is implicit,128,128,64,8,3")
    values = [int(number) for number in numbers]
    return Tile(kind, *values[:6], *(bool(value) for value in values[6:]))  # type: ignore[arg-type]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.matrix", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases with all of these words")
    parser.add_argument("--tile", type=read_tile, help="in place of the model's: implicit,128,128,64,8,3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if tiles.interpreting():
        print("TRITON_INTERPRET=1 is set: nothing is compiled then; unset it", file=sys.stderr)
        return 2
    chosen = [case for case in cases(options.tile) if set(options.only) <= set(words(case).split())]
    if not chosen:
        print(f"no case has all of {options.only}; some are: {', '.join(CLASSES)}", file=sys.stderr)
        return 2
    started, outcomes = time.perf_counter(), []
    print(HEAD)
    for outcome in compile_all(chosen, options.jobs):
        outcomes.append(outcome)
        print(row(outcome), flush=True)
    seconds = time.perf_counter() - started
    if options.json:
        options.json.write_text(json.dumps(as_json(outcomes, seconds), indent=1) + "\n")
    return conclude(outcomes, seconds)


def conclude(outcomes: list[Outcome], seconds: float) -> int:
    import triton

    found = [f"{outcome.case}: {fault}" for outcome in outcomes for fault in outcome.faults]
    summary = f"{len(outcomes)} kernels compiled with Triton {triton.__version__} in {seconds:.0f} s"
    print(f"{summary}, {len(found)} faults")
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


def words(case: Case) -> str:
    return f"{case.name} {case.precision} {case.target} {tiles.describe(case.tile)}"


if __name__ == "__main__":
    sys.exit(main())
