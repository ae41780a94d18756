"""An imitation of a Hopper processor that runs what Triton compiled: the PTX of a warp-specialised kernel, on a CPU.

It knows the instructions that Hopper's kernels here are compiled to and raises on any other. Warps take turns at
random. What is asynchronous on the device is done late: copies when nobody can go on or by chance, products and stores
when they are waited for. Shared memory begins as NaN. Swizzles, matrix descriptors, fragments and barriers are those of
the PTX ISA's chapters on wgmma, cp.async.bulk.tensor, stmatrix and mbarrier.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from ptx import ARITHMETIC, Program, result_bits, signed_values, width

LANES = np.arange(32)
BASE = 1024
"""Where dynamic shared memory begins."""
POINTERS = 1 << 44
PATTERN = 0x4000_0040 << 32
"""Upper half of a matrix descriptor: 128-byte swizzle, 1024 bytes from 8 rows to the next 8."""


class Deadlock(AssertionError):
    """Everyone waits."""


class Barrier:
    def __init__(self, count: int) -> None:
        self.count = self.arrivals = count
        self.bytes = self.completions = 0

    def change(self, arrivals: int, bytes: int) -> None:
        self.arrivals -= arrivals
        self.bytes += bytes
        assert self.arrivals >= 0, "more arrivals than the barrier counts"
        if self.arrivals == 0 and self.bytes == 0:
            self.completions += 1
            self.arrivals = self.count


class Copied(NamedTuple):
    """A tensor as the copy engine is told of it."""

    numbers: np.ndarray
    block: tuple[int, ...]

    def meet(self, start: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        inside, outside = [], []
        for begin, length, side in zip(start, self.block, self.numbers.shape, strict=True):
            first, last = max(begin, 0), min(begin + length, side)
            if first >= last:
                return None
            inside.append(slice(first - begin, last - begin))
            outside.append(slice(first, last))
        return tuple(inside), tuple(outside)


class Number(NamedTuple):
    """What is multiplied and stored: its bytes to float32, and float32 to unsigned integers of its size."""

    widen: Callable[[np.ndarray], np.ndarray]
    narrow: Callable[[np.ndarray], np.ndarray]


class Processor:
    """One program, `place` of how many. `arguments`: by the number of the parameter, a Copied, an array for a pointer,
    or an integer."""

    def __init__(
        self, program: Program, arguments: dict[int, Any], shared: int, place: tuple[int, int], number: Number
    ) -> None:
        self.program, self.arguments, self.number = program, arguments, number
        self.special = {"%ctaid.x": place[0], "%nctaid.x": place[1]}
        self.chance = random.Random(place[0])
        self.shared = np.full(BASE + shared + 1024, 0xFF, dtype=np.uint8)  # NaN in each type
        self.barriers: dict[int, Barrier] = {}
        self.meetings: dict[str, int] = {}
        self.copies: list[Callable[[], None]] = []
        self.unfenced: set[Warp] = set()
        """What these have written, the copy engine may not see yet."""

    def run(self) -> None:
        warps = [Warp(self, number) for number in range(self.program.threads // 32)]
        running = {warp: warp.go() for warp in warps}
        while running:
            ready = [warp for warp in running if warp.waits_for is None or warp.waits_for()]
            if self.copies and (not ready or self.chance.random() < 0.1):
                self.copies.pop(self.chance.randrange(len(self.copies)))()
                continue
            if not ready:
                places = ", ".join(f"warp {warp.number} at {warp.at}" for warp in running)
                raise Deadlock(f"everyone waits, and nothing is under way: {places}")
            warp = self.chance.choice(ready)
            warp.waits_for = next(running[warp], None)
            if warp.ended:
                del running[warp]
        assert not self.copies and not any(warp.products or warp.stores for warp in warps), "left under way"

    def swizzled(self, addresses: np.ndarray) -> np.ndarray:
        return addresses ^ (addresses >> 7 & 7) << 4

    def rows(self, start: int, rows: int, bytes: int) -> np.ndarray:
        """Addresses of `rows` x `bytes`, 128 bytes from one row to the next."""
        return self.swizzled(start + np.arange(rows)[:, None] * 128 + np.arange(bytes))

    def box(self, copied: Copied, start: int) -> np.ndarray:
        size = copied.numbers.dtype.itemsize
        assert copied.block[-1] * size == 128 and start % 1024 == 0
        return self.rows(start, prod(copied.block[:-1]), 128)

    def fetch(self, copied: Copied, coordinates: list[int], target: int, barrier: int) -> None:
        box = np.zeros(copied.block, copied.numbers.dtype)
        if met := copied.meet(coordinates):
            box[met[0]] = copied.numbers[met[1]]
        self.shared[self.box(copied, target)] = box.reshape(-1, copied.block[-1]).view(np.uint8)
        self.barriers[barrier].change(0, -box.nbytes)

    def write(self, copied: Copied, coordinates: list[int], source: int) -> None:
        box = self.shared[self.box(copied, source)].view(copied.numbers.dtype).reshape(copied.block)
        if met := copied.meet(coordinates):
            copied.numbers[met[1]] = box[met[0]]

    def operand(self, descriptor: int, rows: int) -> np.ndarray:
        """(rows, 32 bytes of terms) as float32."""
        assert descriptor & ~0x3FFF == PATTERN, "another layout than 128-byte swizzle, terms side by side"
        start = (descriptor & 0x3FFF) << 4
        assert start % 1024 < 128, "the pattern of the swizzle begins elsewhere"
        return self.number.widen(self.shared[self.rows(start, rows, 32)])


class Warp:
    """32 threads, whose registers are 32 numbers each. `go` yields what it waits for."""

    def __init__(self, processor: Processor, number: int) -> None:
        self.processor, self.number, self.at = processor, number, 0
        self.registers: dict[str, np.ndarray] = {}
        self.waits_for: Callable[[], bool] | None = None
        self.ended = False
        self.products: list[list[Callable[[], None]]] = []
        self.stores: list[list[Callable[[], None]]] = []
        self.open_products: list[Callable[[], None]] = []
        self.open_stores: list[Callable[[], None]] = []

    def go(self) -> Iterator[Callable[[], bool] | None]:
        program = self.processor.program
        while True:
            instruction = program.instructions[self.at]
            self.at += 1
            mask = self.mask(instruction.guard)
            name, operands = instruction.name, instruction.operands
            if name.startswith("bra"):
                assert mask.all() or not mask.any(), "threads of a warp part"
                self.at = program.labels[operands[0]] if mask.any() else self.at
            elif name == "brx.idx":
                self.at = program.labels[program.tables[operands[1]][self.one(operands[0])]]
            elif name == "ret":
                self.ended = True
                yield None
                return
            elif name.startswith(("bar.sync", "barrier.sync")):
                yield self.meet(operands)
            elif name.startswith("mbarrier.try_wait"):
                barrier, parity = self.barrier(operands[1]), self.one(operands[2])
                yield lambda barrier=barrier, parity=parity: barrier.completions & 1 != parity
            elif mask.any():
                self.execute(name, operands, mask)

    def meet(self, operands: list[str]) -> Callable[[], bool]:
        """Until `count` threads, or all, have come as often as this warp has."""
        meetings, place = self.processor.meetings, operands[0]
        count = int(operands[1]) if len(operands) > 1 else self.processor.program.threads
        come = meetings.get(place, 0)
        meetings[place] = come + 1
        goal = (come // (count // 32) + 1) * (count // 32)
        return lambda: meetings[place] >= goal

    # --- registers ------------------------------------------------------------------------------------------------

    def mask(self, guard: str) -> np.ndarray:
        if not guard:
            return np.ones(32, bool)
        held = self.registers[guard.lstrip("!")].astype(bool)
        return ~held if guard.startswith("!") else held

    def value(self, operand: str) -> np.ndarray:
        """In 64 bits, unsigned; predicates as 0 and 1."""
        if operand in self.registers:
            return self.registers[operand]
        if operand == "%tid.x":
            return (self.number * 32 + LANES).astype(np.uint64)
        if operand.startswith("0f"):
            return np.full(32, int(operand[2:], 16), np.uint64)
        if operand in self.processor.special:
            return np.full(32, self.processor.special[operand], np.uint64)
        if operand == "global_smem":
            return np.full(32, BASE, np.uint64)
        if parameter := re.search(r"_param_(\d+)$", operand):
            return np.full(32, int(parameter[1]), np.uint64)
        return np.full(32, int(operand, 0) & 0xFFFF_FFFF_FFFF_FFFF, np.uint64)

    def one(self, operand: str) -> int:
        """The same in all threads."""
        values = self.value(operand)
        assert (values == values[0]).all(), f"{operand} differs within a warp"
        return int(values[0])

    def address(self, parts: list[str]) -> np.ndarray:
        return sum((self.value(part) for part in parts), np.zeros(32, np.uint64))

    def barrier(self, parts: list[str]) -> Barrier:
        addresses = self.address(parts)
        assert (addresses == addresses[0]).all()
        return self.processor.barriers[int(addresses[0])]

    def keep(self, register: str, values: np.ndarray, mask: np.ndarray, bits: int = 64) -> None:
        kept = self.registers.get(register, np.zeros(32, np.uint64))
        new = np.asarray(values).astype(np.uint64) & np.uint64((1 << bits) - 1)
        self.registers[register] = np.where(mask, new, kept)

    def floats(self, operand: str) -> np.ndarray:
        return self.value(operand).astype(np.uint32).view(np.float32)

    # --- instructions ---------------------------------------------------------------------------------------------

    def execute(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        short = re.split(r"\.shared|\.sync", name)[0]
        if short in ("bar.warp", "setmaxnreg.inc", "setmaxnreg.dec", "wgmma.fence"):
            return
        if short in HANDLERS:
            getattr(self, HANDLERS[short])(name, operands, mask)
        else:
            bits, signed = width(name)
            values = [self.value(one) for one in operands[1:]]
            kept = 2 if ".wide" in name else len(values)  # what is added is as wide as the result
            values = [signed_values(one, bits) if signed else one for one in values[:kept]] + values[kept:]
            self.keep(operands[0], ARITHMETIC[name.split(".")[0]](name, *values), mask, result_bits(name))

    def float_add(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        self.keep(operands[0], (self.floats(operands[1]) + self.floats(operands[2])).view(np.uint32), mask)

    def float_max(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        self.keep(
            operands[0], np.maximum(self.floats(operands[1]), self.floats(operands[2])).view(np.uint32), mask
        )

    def pack_pair(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        upper, lower = (
            self.processor.number.narrow(self.floats(one)).astype(np.uint64) for one in operands[1:]
        )
        self.keep(operands[0], upper << np.uint64(16) | lower, mask)

    def exchange(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        other = int(operands[2])
        source = LANES ^ other if "bfly" in name else np.full(32, other)
        self.keep(operands[0], self.value(operands[1])[source], mask)

    def elect(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        register, predicate = operands[0].split("|")
        self.keep(register, np.zeros(32), mask)
        self.keep(predicate, LANES == 0, mask)

    def load_parameter(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        number = int(operands[1][0].rpartition("_")[2])
        value = self.processor.arguments[number]
        self.keep(
            operands[0], np.full(32, POINTERS * number if isinstance(value, np.ndarray) else value), mask
        )

    def load_global(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        addresses = self.address(operands[1])
        array = self.processor.arguments[int(addresses[0]) // POINTERS]
        for place, register in enumerate(operands[0]):
            self.keep(register, array[(addresses % POINTERS // 4).astype(int) + place].view(np.uint32), mask)

    def load_shared(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        self.keep(operands[0], self.processor.shared[self.address(operands[1]).astype(int)], mask)

    def store_shared(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        addresses = self.address(operands[0]).astype(int)
        registers = operands[1] if isinstance(operands[1], list) else [operands[1]]
        for place, register in enumerate(registers):
            bits = self.value(register).astype(np.uint32).view(np.uint8).reshape(32, 4)
            self.processor.shared[addresses[mask, None] + 4 * place + np.arange(4)] = bits[mask]
        self.processor.unfenced.add(self)

    def store_matrices(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        addresses = self.address(operands[0]).astype(int)
        for matrix, register in enumerate(operands[1]):
            rows = addresses[8 * matrix + LANES // 4]
            bits = self.value(register).astype(np.uint32).view(np.uint8).reshape(32, 4)
            self.processor.shared[rows[:, None] + LANES[:, None] % 4 * 4 + np.arange(4)] = bits
        self.processor.unfenced.add(self)

    def fence(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        self.processor.unfenced.discard(self)

    def begin_barrier(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        self.processor.barriers[int(self.address(operands[0])[mask][0])] = Barrier(int(operands[1]))

    def arrive(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        bytes = self.one(operands[2]) if "expect_tx" in name else 0
        self.barrier(operands[1]).change(int(mask.sum()), bytes * int(mask.sum()))

    def copy(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        assert mask.sum() == 1
        processor = self.processor
        if "global.shared" in name:
            (tensor, *coordinates), source = operands
            copied, begin = self.tensor(tensor, coordinates)
            start = int(self.address(source)[mask][0])
            assert not processor.unfenced, "the copy engine may not see what was stored"
            self.open_stores.append(lambda: processor.write(copied, begin, start))
        else:
            target, (tensor, *coordinates), barrier = operands
            copied, begin = self.tensor(tensor, coordinates)
            start, place = int(self.address(target)[mask][0]), int(self.address(barrier)[mask][0])
            processor.copies.append(lambda: processor.fetch(copied, begin, start, place))

    def tensor(self, register: str, coordinates: list[str]) -> tuple[Copied, list[int]]:
        signed = [int(np.int32(np.uint32(self.value(one)[0]))) for one in reversed(coordinates)]
        return self.processor.arguments[self.one(register)], signed

    def multiply(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        """A thread's numbers of a 64 x columns product: two neighbours of every 8 columns, in rows 8 apart."""
        columns = int(re.findall(r"m64n(\d+)k", name)[0])
        registers, left, right = operands[0], self.one(operands[1]), self.one(operands[2])
        assert self.one(operands[3]) and operands[4:6] == ["1", "1"] and set(operands[6:]) <= {"0"}
        places = np.arange(len(registers))[:, None]
        rows = self.number % 4 * 16 + LANES // 4 + 8 * (places // 2 % 2)
        pairs = places // 4 * 8 + LANES % 4 * 2 + places % 2

        def add() -> None:
            products = self.processor.operand(left, 64) @ self.processor.operand(right, columns).T
            sums = np.stack([self.registers[one] for one in registers]).astype(np.uint32).view(np.float32)
            bits = (sums + products[rows, pairs]).view(np.uint32).astype(np.uint64)
            self.registers.update(zip(registers, bits, strict=True))

        self.open_products.append(add)

    def commit_products(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        self.products.append(self.open_products)
        self.open_products = []

    def commit_stores(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        self.stores.append(self.open_stores)
        self.open_stores = []

    def wait_group(self, name: str, operands: list[Any], mask: np.ndarray) -> None:
        groups = self.products if name.startswith("wgmma") else self.stores
        while len(groups) > int(operands[0]):
            for one in groups.pop(0):
                one()


HANDLERS = {
    "add.f32": "float_add",
    "max.NaN.f32": "float_max",
    "cvt.rn.f16x2.f32": "pack_pair",
    "cvt.rn.bf16x2.f32": "pack_pair",
    "shfl": "exchange",
    "elect": "elect",
    "ld.param.b32": "load_parameter",
    "ld.param.b64": "load_parameter",
    "ld.global.v2.b32": "load_global",
    "ld": "load_shared",
    "st": "store_shared",
    "stmatrix": "store_matrices",
    "fence.proxy.async": "fence",
    "mbarrier.init": "begin_barrier",
    "mbarrier.arrive": "arrive",
    "mbarrier.arrive.expect_tx": "arrive",
    "cp.async.bulk.tensor.4d": "copy",
    "cp.async.bulk.tensor.2d": "copy",
    "cp.async.bulk.tensor.4d.global": "copy",
    "cp.async.bulk.commit_group": "commit_stores",
    "cp.async.bulk.wait_group.read": "wait_group",
    "wgmma.mma_async": "multiply",
    "wgmma.commit_group": "commit_products",
    "wgmma.wait_group": "wait_group",
}
