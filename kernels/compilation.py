"""Kernels compiled for devices that are not here, and what came out: registers, spills, shared memory, the loop.

All that it takes lies in Triton's wheel. Triton must not interpret: TRITON_INTERPRET unset.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.geometry import Layer, Precision
from kernels.tiles import HOPPER_ONLY, Tile, interpreting

TARGETS: dict[str, GPUTarget] = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES: dict[Precision, str] = {"float16": "fp16", "bfloat16": "bf16", "tf32": "fp32", "float32": "fp32"}

MIX = {
    "wgmma": r"HGMMA",
    "mma.sync": r"HMMA",
    "mfma": r"v_mfma_",
    "copy": r"LDGSTS|UTMALDG",  # from device to shared memory, while others compute
    "load": r"LDG|global_load|buffer_load",
    "shared": r"LDS|STS|ds_",
    "wait": r"BAR|SYNCS|DEPBAR|LDGDEPBAR|WARPSYNC|WARPGROUP|NOP|s_waitcnt|s_barrier|s_nop|s_sched",
    "spill": r"LDL|STL|scratch_load|scratch_store",
}
"""Kinds of instructions by the beginnings of their names; any other one is "other": addresses, masks, branches."""
MATRIX = ("wgmma", "mma.sync", "mfma")


class Instruction(NamedTuple):
    """`target`: where it may jump to."""

    address: int
    name: str
    target: int | None = None

    @property
    def kind(self) -> str:
        return next((kind for kind, names in MIX.items() if re.match(names, self.name)), "other")


class Compiled(NamedTuple):
    """`registers` of a thread; `spills`: instructions that write or read back what had no register; `shared` bytes;
    `matrix`: wgmma, mma.sync, mfma, or nothing; `instructions` by their kind; `loop`: those of one turn of the main
    loop, empty where the compiler has unrolled a short one."""

    registers: int
    spills: int
    shared: int
    matrix: str
    instructions: dict[str, int]
    loop: dict[str, int]
    seconds: float


def compile_kernel(
    module: ModuleType, layer: Layer, tile: Tile, precision: Precision, target: str
) -> Compiled:
    """Raises what the compiler raises, and RuntimeError while Triton interprets."""
    if interpreting():
        raise RuntimeError("Triton interprets here: kernels are compiled without TRITON_INTERPRET=1")
    started = time.perf_counter()
    if tile.kind in HOPPER_ONLY:
        program, options = module.source(layer, tile, precision), module.options(layer, tile, precision)
    else:
        program = source(module, layer, tile, precision)
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
    device = TARGETS[target]
    with contextlib.redirect_stdout(io.StringIO()):  # where ptxas fails, Triton prints the whole program
        kernel = triton.compile(program, target=device, options=options)
    seconds = time.perf_counter() - started
    read = read_hsaco if device.backend == "hip" else read_cubin
    registers, spills, instructions = read(kernel.asm)
    kinds = Counter(instruction.kind for instruction in instructions)
    return Compiled(
        registers,
        spills,
        kernel.metadata.shared,
        next((kind for kind in MATRIX if kinds[kind]), ""),
        dict(kinds),
        dict(Counter(instruction.kind for instruction in main_loop(instructions))),
        seconds,
    )


# --- what goes in -------------------------------------------------------------------------------------------------


def source(module: ModuleType, layer: Layer, tile: Tile, precision: Precision) -> ASTSource:
    """The kernel with its constants and the types of the other arguments. Pointers are multiples of 16 bytes, as torch
    allocates: without that nothing is copied asynchronously."""
    constants = module.constants(layer, tile, precision)
    kernel = module.KERNEL
    unused = "weight_pointer" if tile.descriptor else "weight_descriptor"
    constants |= {name: None for name in kernel.arg_names if name == unused}
    types = {
        name: "constexpr" if name in constants else argument_type(name, module, tile, precision)
        for name in kernel.arg_names
    }
    pointers = [place for place, kind in enumerate(types.values()) if kind.startswith("*")]
    return ASTSource(kernel, types, constants, {(place,): [["tt.divisibility", 16]] for place in pointers})


def argument_type(name: str, module: ModuleType, tile: Tile, precision: Precision) -> str:
    """As its name tells."""
    if name in ("bias_pointer", "workspace_pointer"):
        return "*fp32"
    if name == "ticket_pointer":
        return "*i32"
    if name.endswith("_pointer"):
        return f"*{TYPES[precision]}"
    if name.endswith("_descriptor"):
        return f"tensordesc<{TYPES[precision]}{module.descriptor_block(tile)}>"
    return "i32"


# --- what comes out -----------------------------------------------------------------------------------------------


def read_cubin(assembly: dict[str, Any]) -> tuple[int, int, list[Instruction]]:
    """Registers, spilling instructions, all instructions. Raises subprocess.CalledProcessError."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(assembly["cubin"])
        file.flush()
        listing = subprocess.run(
            [tool, "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers = max(int(count) for count in re.findall(r"REG:(\d+)", listing))
    instructions = list(read_sass(listing))
    return registers, sum(instruction.kind == "spill" for instruction in instructions), instructions


def read_sass(listing: str) -> Iterator[Instruction]:
    """Lines such as `/*0a40*/  @!P0 BRA 0x690 ;`."""
    line = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)([^;\n]*);"
    for address, name, rest in re.findall(line, listing):
        jump = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        yield Instruction(int(address, 16), name, int(jump[1], 16) if jump else None)


def read_hsaco(assembly: dict[str, Any]) -> tuple[int, int, list[Instruction]]:
    """As `read_cubin`. Registers: vector and accumulation registers of a lane together."""
    listing = assembly["amdgcn"]

    def number(name: str) -> int:
        return sum(int(count) for count in re.findall(rf"^\s*\.{name}:\s*(\d+)", listing, re.MULTILINE))

    instructions = list(read_amdgcn(listing))
    spills = sum(instruction.kind == "spill" for instruction in instructions)
    return number("vgpr_count"), spills + number("sgpr_spill_count"), instructions


def read_amdgcn(listing: str) -> Iterator[Instruction]:
    """Tab, name, operands; labels such as `.LBB0_3:` stand before what they name."""
    lines = [line for line in listing.splitlines() if re.match(r"\.LBB\w+:|\t[a-z]\w+", line)]
    labels = {line.split(":")[0]: number for number, line in enumerate(lines) if line.startswith(".L")}
    for number, line in enumerate(lines):
        if line.startswith("\t"):
            name, _, rest = line.strip().partition(" ")
            yield Instruction(number, name, labels.get(rest.strip()) if "branch" in name else None)


def main_loop(instructions: list[Instruction]) -> list[Instruction]:
    """The shortest stretch that ends with a jump to its beginning and multiplies matrices; empty if there is none."""
    loops = []
    for jump in instructions:
        if jump.target is not None and jump.target <= jump.address:
            body = [one for one in instructions if jump.target <= one.address <= jump.address]
            if any(one.kind in MATRIX for one in body):
                loops.append(body)
    return min(loops, key=len, default=[])
