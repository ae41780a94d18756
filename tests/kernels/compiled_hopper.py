"""Compiles Hopper's kernels and runs their PTX on tests/kernels/ptx_machine.py: a line of JSON for each case read.

A process of its own, without TRITON_INTERPRET. `PYTHONPATH=. python tests/kernels/compiled_hopper.py < cases`, where a
case is {"layer": […], "tile": […], "precision": …, "batch": …, "programs": …, "changes": {…}}: how many programs compute
it, none to compile only, and what is replaced in the PTX before. The answer has the error against float64, or what went wrong, and what came out of the compiler.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import numpy as np
import torch
import triton
from ptx import parse
from ptx_machine import Copied, Number, Processor
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d
from triton.backends.compiler import GPUTarget

from kernels import hopper
from kernels.boxes import choose_box, tile_count
from kernels.compilation import main_loop, read_cubin
from kernels.geometry import Layer, Precision
from kernels.packing import unpack
from kernels.problem import problem
from kernels.tiles import Tile


def half(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float16).astype(np.float32)


def to_half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint16)


def brain(bits: np.ndarray) -> np.ndarray:
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def to_brain(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)


def cut(bits: np.ndarray) -> np.ndarray:
    """As the matrix units read float32."""
    return (bits.view(np.uint32) & 0xFFFF_E000).view(np.float32)


NUMBERS = {
    "float16": Number(half, to_half),
    "bfloat16": Number(brain, to_brain),
    "tf32": Number(cut, lambda values: values.view(np.uint32)),
}


def bits(tensor: Tensor) -> np.ndarray:
    """The same memory, without what numpy does not know."""
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32).numpy()


def run(
    compiled: Any, text: str, layer: Layer, tile: Tile, precision: Precision, batch: int, programs: int
) -> float:
    """Relative error in the Frobenius norm; NaN where an output was not written."""
    (input,), weight, bias, _ = problem(layer, batch, precision, torch.device("cpu"), count=1)
    output = torch.full((batch, *layer.output, layer.filters), torch.nan, dtype=input.dtype)
    box = choose_box(layer, tile, batch)
    image = bits(input.permute(0, 2, 3, 1).contiguous())
    tensors = {"weight_descriptor": bits(weight), "output_descriptor": bits(output)}
    blocks = hopper.module(tile).blocks(layer, tile, precision, box)
    arguments: dict[int, Any] = {}
    place = 0
    for name in hopper.module(tile).KERNEL.arg_names:
        if name in blocks:
            arguments[place] = Copied(tensors.get(name, image), tuple(blocks[name]))
            place += 2 * len(blocks[name])  # its sides and strides, which nobody reads
        elif name == "bias_pointer":
            arguments[place] = bias.numpy()
        elif name == "tiles":
            arguments[place] = tile_count(layer, tile, box, batch)
        place += 1
    program, shared = parse(text), compiled.metadata.shared
    for index in range(programs):
        Processor(program, arguments, shared, (index, programs), NUMBERS[precision]).run()
    expected = exact(input, weight, bias, layer, precision)
    return float((output.double() - expected).norm() / expected.norm())


def exact(input: Tensor, weight: Tensor, bias: Tensor, layer: Layer, precision: Precision) -> Tensor:
    """(batch, height, width, filters) in float64."""
    filters = unpack(weight, layer.channels, layer.kernel, precision).double()
    result = conv2d(input.double(), filters, bias.double(), layer.stride, layer.padding)
    result = result.relu() if layer.relu else result
    return (max_pool2d(result, 2) if layer.pool else result).permute(0, 2, 3, 1)


def answer(case: dict[str, Any]) -> dict[str, Any]:
    layer, tile = Layer(*case["layer"]), Tile(*case["tile"])
    precision, batch = case["precision"], case["batch"]
    source, options = hopper.source(layer, tile, precision, batch), hopper.options(layer, tile, precision)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    registers, spills, instructions = read_cubin(compiled.asm)
    found = {
        "shared": compiled.metadata.shared,
        "registers": registers,
        "spills": spills,
        "loop": dict(Counter(one.kind for one in main_loop(instructions))),
    }
    if not case["programs"]:
        return found
    text = compiled.asm["ptx"]
    for pattern, replacement in case.get("changes", {}).items():
        assert pattern in text
        text = text.replace(pattern, replacement)
    try:
        return found | {"error": run(compiled, text, layer, tile, precision, batch, case["programs"])}
    except AssertionError as fault:
        return found | {"fault": f"{type(fault).__name__} {fault}"}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
