"""What a .pt2 may hold before torch is let near it.

torch.export.load is no weights_only loader. Tried with 2.11.0 and 2.13.0, it runs what a file says in weights, constants
and example inputs that ask to be unpickled, in shapes (sympy.sympify evaluates them as Python), in guards (made a
function when the program is first called), and it imports modules that the form of the arguments names; in its source
it also loads native libraries that are packed beside the program. Nothing of that is in a file that `program.save`
writes. So: the records of such a file and no others, no pickles but plain tensors, shapes that are arithmetic, and, for
good measure, operators of aten and of this project alone and plain names wherever torch makes source of names. Guards
are dropped: the batch's range, all that ours guard, torch checks without them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from operator import attrgetter
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from fer_lab.exporting.facts import FileError

if TYPE_CHECKING:
    from torch.export.pt2_archive import PT2ArchiveReader

RECORDS = re.compile(
    r"archive_(format|version)|byteorder|\.?(data/)?(version|serialization_id|format_version|storage_alignment)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/[\w.]+"
    r"|data/(weights/(model_weights_config\.json|weight_\d+)|constants/(model_constants_config\.json|tensor_\d+))"
)
PLAIN = re.compile(r"[\w.:+-]*")
OPERATOR = re.compile(
    r"torch\.ops\.(aten|fer_kernels)\.\w+\.\w+"
    r"|torch\.sym_(int|max|min|not|float)"
    r"|_operator\.(getitem|add|sub|mul|mod|neg|pow|truediv|floordiv|eq|ne|lt|le|gt|ge|and_|or_)"
)
WORDS_OF_SHAPES = re.compile(
    r"[su]?\d+|Symbol|positive|integer|True|False|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Max|Min|Add|Mul|Integer"
)
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
FREE_TEXT = ("metadata", "guards_code")
"""Notes on where a node came from, which torch only keeps; and guards, which the caller drops."""


def refuse_code(archive: PT2ArchiveReader, place: str) -> None:
    """Raises FileError that names the first thing in the archive which is no data."""
    for fault in faults(archive):
        raise FileError(
            f"{place} is not read: {fault}. Files of python -m fer_lab.export hold nothing of the kind; if you know who "
            "made this one and trust them, torch.export.load reads it"
        )


def faults(archive: PT2ArchiveReader) -> Iterator[str]:
    for name in archive.get_file_names():
        if not RECORDS.fullmatch(name):
            yield f"it has a part {name!r}"
    for kind in ("weights", "constants"):
        payload = json.loads(archive.read_string(f"data/{kind}/model_{kind}_config.json"))["config"]
        yield from (f"its {kind} {name!r} are pickled" for name, one in payload.items() if one["use_pickle"])
        yield from strings_at_fault(payload)
    yield from example_faults(archive.read_bytes("data/sample_inputs/model.pt"))
    yield from strings_at_fault(json.loads(archive.read_string("models/model.json")))


def example_faults(content: bytes) -> Iterator[str]:
    import torch

    try:
        arguments, words = torch.load(io.BytesIO(content), weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, TypeError, EOFError):
        arguments, words = (), {"": ""}
    if words or not all(isinstance(value, torch.Tensor) for value in arguments):
        yield "its example inputs are no plain tensors"


def strings_at_fault(tree: Any) -> Iterator[str]:
    for key, text in strings(tree):
        if key in ("in_spec", "out_spec"):
            fits = is_plain_container(json.loads(text)[1])
        elif key == "expr_str":
            fits = is_plain_shape(text)
        elif key in ("target", "as_operator"):
            fits = bool(OPERATOR.fullmatch(text)) and takes_tensors_alone(text)
        else:
            fits = bool(PLAIN.fullmatch(text))
        if not fits:
            yield f"{text[:80]!r} is no {key or 'name'} that we write"


def strings(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every (key it stands under, string) of a JSON tree; keys themselves stand under ""."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield "", name
            if name not in FREE_TEXT:
                yield from strings(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from strings(value, key)
    elif isinstance(tree, str):
        yield key, tree


def is_plain_shape(text: str) -> bool:
    """Arithmetic on symbols, such as 2*Symbol('s77', positive=True); from these words Python can reach nothing else."""
    words = re.findall(r"\w+", text)
    return bool(re.fullmatch(r"[\w\s+*/(),='-]*", text)) and all(map(WORDS_OF_SHAPES.fullmatch, words))


def is_plain_container(spec: Any) -> bool:
    plain = spec["type"] in CONTAINERS and "__enum__" not in str(spec["context"])
    return plain and all(is_plain_container(child) for child in spec["children_spec"])


def takes_tensors_alone(target: str) -> bool:
    """aten has operators that open files; they say so in their arguments."""
    import torch

    if not target.startswith("torch.ops."):
        return True
    operator = attrgetter(target.removeprefix("torch."))
    try:
        arguments = operator(torch)._schema.arguments
    except AttributeError:
        return True  # none here by that name: torch will say so
    return not any("file" in one.name or one.name == "path" for one in arguments)
