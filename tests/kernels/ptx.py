"""PTX as text and as arithmetic: what tests/kernels/ptx_machine.py reads and calculates."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Instruction(NamedTuple):
    name: str
    operands: list[Any]
    guard: str = ""
    """A predicate, `!` before it where it must not hold."""


class Program(NamedTuple):
    instructions: list[Instruction]
    labels: dict[str, int]
    tables: dict[str, list[str]]
    threads: int


def parse(text: str) -> Program:
    """Of the text's one kernel, an instruction a line."""
    threads = int(re.findall(r"\.reqntid (\d+)", text)[0])
    body = re.sub(r"//.*", "", text.partition(".maxnreg")[2]).partition(".section")[0]
    program = Program([], {}, {}, threads)
    for table, targets in re.findall(r"(\S+): \.branchtargets\s+([^;]+);", body):
        program.tables[table] = re.split(r",\s*", targets)
    body = re.sub(r"\S+: \.branchtargets[^;]+;", "", body)
    for line in body.splitlines():
        if label := re.match(r"\s*(\$\w+):", line):
            program.labels[label[1]] = len(program.instructions)
        elif found := re.match(r"\s*(?:@(!?%p\d+)\s+)?([a-z][\w.:]*)\s*(.*);", line):
            guard, name, rest = found.groups()
            program.instructions.append(Instruction(name, operands(rest), guard or ""))
    return program


def operands(text: str) -> list[Any]:
    """At commas, lists in braces and addresses in brackets as lists of their own."""
    found: list[Any] = []
    for braces, brackets, plain in re.findall(
        r"\{([^}]*)\}(?!\])|\[((?:[^\]{]|\{[^}]*\})*)\]|([^,{}\[\]]+)", text
    ):
        if braces:
            found.append([part.strip() for part in braces.split(",")])
        elif brackets:
            found.append([part.strip() for part in re.split(r"[,{}+]", brackets) if part.strip()])
        elif plain.strip():
            found.append(plain.strip())
    return found


# --- arithmetic: each operand 32 numbers of 64 bits, signed or not as the instruction reads them -------------------


def width(name: str) -> tuple[int, bool]:
    """Bits of what an instruction reads, and whether they are signed. Predicates: 1."""
    kinds = re.findall(r"\.([bsu])(\d+)", name)
    return (int(kinds[-1][1]), kinds[-1][0] == "s") if kinds else (1, False)


def result_bits(name: str) -> int:
    if name.startswith("setp"):
        return 1
    if name.startswith("cvt."):
        return int(re.findall(r"\.[su](\d+)", name)[0])
    return width(name)[0] * (2 if ".wide" in name else 1)


def signed_values(values: np.ndarray, bits: int) -> np.ndarray:
    return (values.astype(np.uint64) << np.uint64(64 - bits)).view(np.int64) >> np.int64(64 - bits)


def multiplied(name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    shift = width(name)[0] if ".hi" in name else 0
    products = (int(one) * int(other) >> shift for one, other in zip(left, right, strict=True))
    return np.array([product & 0xFFFF_FFFF_FFFF_FFFF for product in products], np.uint64)


def field(name: str, values: np.ndarray, first: np.ndarray, length: np.ndarray) -> np.ndarray:
    bits = int(length[0])
    part = (values.astype(np.uint64) >> first.astype(np.uint64)) & np.uint64((1 << bits) - 1)
    return signed_values(part, bits) if ".s32" in name else part


def unsigned(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint64)


COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip

ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "mov": lambda name, one: one,
    "cvta": lambda name, one: one,
    "cvt": lambda name, one: one,
    "add": lambda name, one, other: unsigned(one) + unsigned(other),
    "sub": lambda name, one, other: unsigned(one) - unsigned(other),
    "mul": multiplied,
    "mad": lambda name, one, other, more: multiplied(name, one, other) + unsigned(more),
    "and": lambda name, one, other: one & other,
    "or": lambda name, one, other: one | other,
    "xor": lambda name, one, other: one ^ other,
    "min": lambda name, one, other: np.minimum(one, other),
    "max": lambda name, one, other: np.maximum(one, other),
    "not": lambda name, one: ~one,
    "shl": lambda name, one, places: one << places,
    "shr": lambda name, one, places: one >> places,
    "bfe": field,
    "selp": lambda name, one, other, choice: np.where(choice & choice.dtype.type(1), one, other),
    "setp": lambda name, one, other: COMPARISONS[name.split(".")[1]](one, other),
}
