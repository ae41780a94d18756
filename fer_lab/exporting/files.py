"""One trained net, several files of it: each is written beside its place, read back as a user would, held against
the trained net on real faces, and only then, when all are good, moved to where it belongs."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fer_lab.exporting import onnx, program, text
from fer_lab.exporting.chain import Chain, chain_of
from fer_lab.exporting.facts import ALLOWED, CannotExport, Difference, ExportError, Facts, FileError, compare
from fer_lab.exporting.predictor import Predictor

if TYPE_CHECKING:
    from kernels.geometry import Precision


class Trained(NamedTuple):
    """The net to write, and what its files are held against: real faces (B, C, S, S) uint8 and what the trained net
    itself made of them (B, K | 2 | K + 2)."""

    predictor: Predictor
    facts: Facts
    pixels: Tensor
    expected: Tensor


class Written(NamedTuple):
    """A file or folder that passed; `use` is what to type next, with … for its folder."""

    name: str
    difference: Difference
    use: str


Run = Callable[[Tensor], Tensor]
NO_TEXT = "text weights are of nets that tell expressions alone; this one tells valence and arousal"


def check(name: str, run: Run, trained: Trained, precision: str = "float32") -> Difference:
    """In two batches, one of a single face. Raises ExportError where it is too far from the trained net."""
    sizes = [1, len(trained.pixels) - 1] if len(trained.pixels) > 1 else [1]
    with torch.no_grad():
        found = torch.cat([run(part) for part in trained.pixels.split(sizes)])
    difference = compare(found, trained.expected, len(trained.facts.classes))
    difference.refuse_above(ALLOWED[precision], name)
    return difference


def write_pt2(traced: ExportedProgram, trained: Trained, stage: Path) -> Written:
    return write_program(traced, trained, stage / f"{trained.facts.run}.pt2", trained.facts)


def write_program(traced: ExportedProgram, trained: Trained, path: Path, facts: Facts) -> Written:
    program.save(traced, path, facts)
    difference = check(path.name, program.load(path), trained, facts.precision)
    return Written(path.name, difference, f'fer_lab.exporting.program.load("…/{path.name}")(pixels)')


def write_swapped(traced: ExportedProgram, trained: Trained, stage: Path, precision: Precision) -> Written:
    """With the layers that this project's kernels take done by them; on a CPU their twins in torch stand in."""
    from kernels import NothingToSwap, Runner, swap

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own trees
            swapped = swap(traced, precision)
    except NothingToSwap as error:
        raise CannotExport(f"swap={precision}: {error}") from error
    print(swapped.report)
    facts = replace(trained.facts, precision=precision)
    path = stage / f"{facts.run}.{precision}.pt2"
    written = write_program(swapped.program, trained, path, facts)
    if not torch.cuda.is_available():
        return written
    run = Runner(program.load(path).exported, "cuda")
    on_gpu = check(f"{path.name} on the GPU", lambda pixels: run(pixels).cpu(), trained, precision)
    return written._replace(difference=on_gpu)


def write_onnx(traced: ExportedProgram, trained: Trained, stage: Path) -> Written:
    path = stage / f"{trained.facts.run}.onnx"
    onnx.save(traced, path, trained.facts)
    difference = check(path.name, onnx.OnnxProgram(path), trained)
    use = f'onnxruntime.InferenceSession("…/{path.name}").run(None, {{"pixels": pixels}})'
    return Written(path.name, difference, use)


def write_text(_: ExportedProgram, trained: Trained, stage: Path) -> Written:
    """Held against the trained net as the net that comes out of the text again."""
    if trained.facts.affect:
        raise CannotExport(NO_TEXT)
    chain = chain_of(trained.predictor.net)
    text.write(chain, trained.predictor.preprocess, trained.facts, stage)
    predictor, _facts = predictor_of_text(stage)
    refuse_other_bits(predictor.net, chain)
    difference = check(f"{text.WEIGHTS}/", predictor, trained)
    return Written(f"{text.WEIGHTS}/", difference, "python -m fer_lab.export text=…/")


WRITERS: dict[str, Callable[[ExportedProgram, Trained, Path], Written]] = {
    "pt2": write_pt2,
    "onnx": write_onnx,
    "text": write_text,
}


def why_not(name: str, trained: Trained) -> str:
    """Why this net on this machine has no file of the format `name`; empty where it has."""
    if name == "onnx":
        return onnx.missing()
    if name == "text" and trained.facts.affect:
        return NO_TEXT
    if name == "text":
        try:
            chain_of(trained.predictor.net)
        except CannotExport as error:
            return str(error)
    return ""


def predictor_of_text(folder: Path) -> tuple[Predictor, Facts]:
    """Raises FileError where the text is broken or its layers do not fit each other."""
    chain, preprocess, facts = text.read(folder)
    predictor = Predictor(chain.eval().requires_grad_(False), preprocess, facts.views, facts.crop).eval()
    try:
        with torch.no_grad():
            found = predictor(torch.zeros(1, facts.channels, facts.size, facts.size, dtype=torch.uint8))
    except RuntimeError as error:
        raise FileError(
            f"{folder / text.DIMENSIONS}: these layers do not fit each other on faces of {facts.size}x{facts.size}: {error}"
        ) from error
    if found.shape[1] != len(facts.classes):
        raise FileError(f"{folder}: {found.shape[1]} outputs for {len(facts.classes)} labels in {text.NET}")
    return predictor, facts


def write_program_of_text(folder: Path, stage: Path) -> Path:
    """model.pt2 out of text weights, whose every bit it has."""
    predictor, facts = predictor_of_text(folder)
    path = stage / "model.pt2"
    program.save(program.trace(predictor, facts), path, facts)
    kept = program.load(path).exported.state_dict
    for name, weight in predictor.state_dict().items():
        if not torch.equal(kept[name].view(torch.int32), weight.view(torch.int32)):
            raise ExportError(f"{name} is not in {path.name} as it is in {folder}; nothing was written")
    return path


def refuse_other_bits(net: torch.nn.Module, chain: Chain) -> None:
    for (name, ours), theirs in zip(net.state_dict().items(), chain.state_dict().values(), strict=True):
        if not torch.equal(ours.view(torch.int32), theirs.view(torch.int32)):
            raise ExportError(f"{name} read back from the text is not what was written; nothing was written")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A folder inside `output` whose contents take their places there when the block ends well; else all of it goes."""
    is_new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        stage = Path(mkdtemp(prefix=".unfinished-", dir=output))
    except OSError as error:
        raise FileError(f"output={output} cannot be written: {error}") from error
    try:
        yield stage
        for made in sorted(stage.iterdir()):
            take_place(made, output / made.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if is_new and not any(output.iterdir()):
            output.rmdir()


def take_place(made: Path, place: Path) -> None:
    if place.is_dir():  # a folder can only be renamed to what is not there
        place.rename(made.with_name(f"{made.name}.before"))
    made.replace(place)


def size_of(path: Path) -> int:
    """Bytes, of a folder those of all its files."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(one.stat().st_size for one in files)
