"""A net as one .pt2 file: torch's own format, loaded without any of our code (a swapped one needs `import kernels`)."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from fer_lab.exporting.facts import Facts, FileError
from fer_lab.exporting.predictor import Predictor

FACTS = "facts.json"


class Program:
    """Pixels (B, channels, size, size) uint8 -> probabilities (B, K) or more; `facts` say which and of what."""

    def __init__(self, exported: ExportedProgram, facts: Facts) -> None:
        self.exported, self.facts = exported, facts
        self.module = exported.module()

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        return self.module(pixels)


def trace(predictor: Predictor, facts: Facts) -> ExportedProgram:
    """The predictor as a graph of torch's operators that takes any batch."""
    pixels = torch.zeros(2, facts.channels, facts.size, facts.size, dtype=torch.uint8)
    batch = Dim("batch", min=1)
    with torch.no_grad():
        traced = torch.export.export(predictor.eval(), (pixels,), dynamic_shapes={"pixels": {0: batch}})
    name_corrections(traced)
    return traced


def name_corrections(traced: ExportedProgram) -> None:
    """torch 2.11 to 2.13 cannot decompose std_mean of `unbiased`, which they write, but that of `correction`."""
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten.std_mean.dim:
            flags = dict(zip(("unbiased", "keepdim"), node.args[2:], strict=False))
            node.target, node.args = torch.ops.aten.std_mean.correction, node.args[:2]
            correction = int(bool(flags.get("unbiased", True)))
            node.kwargs = {"correction": correction, "keepdim": flags.get("keepdim", False)}
    traced.graph_module.recompile()


def save(exported: ExportedProgram, path: Path, facts: Facts) -> None:
    torch.export.save(exported, path, extra_files={FACTS: json.dumps(asdict(facts))})


def load(path: str | Path) -> Program:
    """A file of `python -m fer_lab.export`, read as data: FileError if it is none or holds anything that could run.

    Use it where you would use torch.export.load, which runs what a file tells it to (see `safety`).
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no program at {path}; python -m fer_lab.export run=ID writes one")
    exported, extra = read(path)
    if FACTS not in extra:
        raise FileError(f"{path} has no {FACTS}: python -m fer_lab.export did not write it")
    return Program(exported, Facts.of(json.loads(extra[FACTS]), str(path)))


def read(path: Path) -> tuple[ExportedProgram, dict[str, Any]]:
    """The program and the texts beside it, from one copy of the file: the one that was looked through.

    torch.export.load would try an older, unsafe format where this one fails.
    """
    from torch.export.pt2_archive import PT2ArchiveReader
    from torch.export.pt2_archive._package import (
        load_pt2,
    )  # torch.export.load falls back to an older, unsafe format

    from fer_lab.exporting.safety import refuse_code

    content = path.read_bytes()
    try:
        archive = PT2ArchiveReader(io.BytesIO(content))
        refuse_code(archive, str(path))
        if "torch.ops.fer_kernels." in archive.read_string("models/model.json"):
            import kernels  # noqa: F401 - registers the operators that the program calls

        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The given buffer is not writable"
            )  # torch 2.11, of its own copy
            found = load_pt2(io.BytesIO(content))
    except FileError:
        raise
    except (RuntimeError, ValueError, KeyError, AssertionError, UnpicklingError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(f"{path} is no program that torch {torch.__version__} reads: {reason}") from error
    exported = found.exported_programs["model"]
    exported._guards_code = []  # source code out of the file; torch checks the batch's range without it
    return exported, found.extra_files
