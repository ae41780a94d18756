"""Hopper's two kernels, `persistent` and `halo`, behind one door: launch, grid, constants, and the check before use.

They were written without a GPU at hand: their PTX computes the right numbers on an imitation of the processor
(tests/kernels/ptx_machine.py), the device has not been asked. So `selfcheck` has to say yes on it before a tile of
theirs is used, and FER_KERNELS_HOPPER=0 turns both off.
"""

from __future__ import annotations

import os
import time
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels import halo, persistent
from kernels.boxes import BATCH, Box, choose_box, faults, memory, registers, tile_count
from kernels.compilation import TYPES
from kernels.geometry import Layer, Precision, Unsupported, item_size
from kernels.problem import problem
from kernels.tiles import CHIPS, HOPPER, ROW_BYTES, Tile
from kernels.twin import allocate

PROCESSORS = CHIPS[HOPPER].processors
"""Where no device is asked."""


def module(tile: Tile) -> ModuleType:
    return halo if tile.kind == "halo" else persistent


def refuse(layer: Layer, tile: Tile, precision: Precision) -> None:
    """Raises Unsupported, with everything that is at odds."""
    found = faults(layer, tile, precision)
    if found:
        raise Unsupported(f"the {tile.kind} kernel does not take {'; '.join(found)}")


def constants(layer: Layer, tile: Tile, precision: Precision, batch: int = BATCH) -> dict[str, Any]:
    """Every constant of the tile's kernel by its name. The box, and so a few of them, depends on the batch."""
    refuse(layer, tile, precision)
    return module(tile).constants(layer, tile, precision, choose_box(layer, tile, batch))


def options(layer: Layer, tile: Tile, precision: Precision) -> dict[str, int]:
    """What the compiler is told beside the constants."""
    return {"num_warps": tile.warps, "maxnreg": registers(tile, memory(layer, tile, precision).programs)}


def grid(
    layer: Layer, tile: Tile, batch: int, precision: Precision = "float16", processors: int = PROCESSORS
) -> tuple[int, ...]:
    """As many programs as run at once, or as there are tiles."""
    tiles = tile_count(layer, tile, choose_box(layer, tile, batch), batch)
    return (min(tiles, processors * memory(layer, tile, precision).programs),)


def shared_layout(precision: Precision, rank: int) -> gl.NVMMASharedLayout:
    """Pixels or filters x 128 bytes, as the copy engine writes and the matrix units read them."""
    return gl.NVMMASharedLayout(
        swizzle_byte_width=ROW_BYTES, element_bitwidth=8 * item_size(precision), rank=rank
    )


def source(layer: Layer, tile: Tile, precision: Precision, batch: int = BATCH) -> GluonASTSource:
    """What triton.compile takes, with `options`, to compile the kernel ahead of time."""
    kernel, constant = module(tile).KERNEL, constants(layer, tile, precision, batch)
    types = {"bias_pointer": "*fp32", "tiles": "i32", **dict.fromkeys(constant, "constexpr")}
    for name, block in module(tile).blocks(layer, tile, precision, choose_box(layer, tile, batch)).items():
        types[name] = f"tensordesc<{TYPES[precision]}{block},{shared_layout(precision, len(block))!r}>"
    aligned = {(kernel.arg_names.index("bias_pointer"),): [["tt.divisibility", 16]]}
    return GluonASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constant, aligned)


def launch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    layer: Layer,
    tile: Tile,
    precision: Precision,
    output: Tensor | None = None,
) -> Tensor:
    """(N, C, H, W), weights as `pack` leaves them, float32 bias (filters,) -> (N, filters, *layer.output), which may be
    given; all images channels_last, on a GPU of compute capability 9.0, operands as `operators` hands them on. Raises
    Unsupported for tiles."""
    refuse(layer, tile, precision)
    if output is None:
        output = allocate(layer, len(input), precision, input.device)
    processors = torch.cuda.get_device_properties(input.device).multi_processor_count
    programs = grid(layer, tile, len(input), precision, processors)
    run(input, weight, bias, output, layer, tile, precision, choose_box(layer, tile, len(input)), programs)
    return output


def run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    layer: Layer,
    tile: Tile,
    precision: Precision,
    box: Box,
    programs: tuple[int, ...],
) -> None:
    """Any number of programs computes all tiles of `box`."""
    blocks = module(tile).blocks(layer, tile, precision, box)
    images = {
        "input_descriptor": (input, [len(input), layer.height, layer.width, layer.channels]),
        "edge_descriptor": (input, [len(input), layer.height, layer.width, layer.channels]),
        "weight_descriptor": (weight, list(weight.shape)),
        "output_descriptor": (output, [len(output), *layer.output, layer.filters]),
    }
    descriptors = {name: descriptor(*images[name], block, precision) for name, block in blocks.items()}
    module(tile).KERNEL[programs](
        **descriptors,
        bias_pointer=bias,
        tiles=tile_count(layer, tile, box, len(input)),
        **module(tile).constants(layer, tile, precision, box),
        **options(layer, tile, precision),
    )


def descriptor(tensor: Tensor, shape: list[int], block: list[int], precision: Precision) -> TensorDescriptor:
    """Of `tensor`'s memory as dense numbers of `shape`. Its own strides would do but for sides of 1, whose strides
    torch leaves as they come and the copy engine does not take."""
    strides = [1]
    for side in reversed(shape[1:]):
        strides.insert(0, strides[0] * side)
    return TensorDescriptor(tensor, shape, strides, block, shared_layout(precision, len(shape)))


# --- the check before use -----------------------------------------------------------------------------------------

PATIENCE = 60.0
"""Seconds that a kernel may take on the device before it counts as hung."""
TOLERANCES: dict[Precision, float] = {"float16": 2e-3, "bfloat16": 1.6e-2, "tf32": 2e-3}
"""Largest error over the largest output: two units in the last place. Kernel and twin multiply the same numbers, sum
them in different orders and round once, to what is stored."""


class Hung(RuntimeError):
    """A kernel that does not end; no other runs on the device until the process has ended."""


class Trial(NamedTuple):
    """A run that the check makes."""

    box: Box
    images: int
    programs: int


def selfcheck(layer: Layer, tile: Tile, precision: Precision, batch: int | None = None) -> bool:
    """Whether the tile's kernel computes this layer as its twin does on the current GPU, in the box that `batch` gets,
    or without a batch in all boxes that the layer may get.

    Asked once per process and kept. False, with a warning that says why, where the answer is wrong or the kernel does
    not compile, and where it is asked first while a CUDA graph is captured: run once before. False on other devices.
    Raises Hung."""
    if os.environ.get("FER_KERNELS_HOPPER") == "0" or faults(layer, tile, precision) or not is_hopper():
        return False
    batches = [1 << power for power in range(BATCH.bit_length())] if batch is None else [batch]
    boxes = dict.fromkeys(choose_box(layer, tile, batch) for batch in batches)
    return all(_verdict(layer, tile, precision, box, current_device()) for box in boxes)


def is_hopper() -> bool:
    has_cuda = torch.cuda.is_available() and not torch.version.hip
    return has_cuda and torch.cuda.get_device_capability() == HOPPER


def current_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


_verdicts: dict[tuple[Layer, Tile, Precision, Box, torch.device], bool] = {}


def _verdict(layer: Layer, tile: Tile, precision: Precision, box: Box, device: torch.device) -> bool:
    """What is known, else what the check says. A capture records launches, it does not run them: no check then."""
    question = (layer, tile, precision, box, device)
    if question not in _verdicts:
        if torch.cuda.is_current_stream_capturing():
            warnings.warn(
                f"{tile} is not checked while a CUDA graph is captured: run once before", stacklevel=4
            )
            return False
        _verdicts[question] = _checked(*question)
    return _verdicts[question]


def _checked(layer: Layer, tile: Tile, precision: Precision, box: Box, device: torch.device) -> bool:
    try:
        found = (_fault(layer, tile, precision, trial, device) for trial in trials(box))
        fault = next((fault for fault in found if fault), "")
    except Hung:
        raise
    except Exception as error:  # of the compiler's many kinds: this kernel is one of several that would do
        fault = f"does not run: {error!r}"
    if fault:
        warnings.warn(f"the {tile.kind} kernel {fault}; another computes {layer}, not {tile}", stacklevel=3)
    return not fault


def trials(box: Box) -> list[Trial]:
    """Few programs with many tiles each, the last ones partly beyond the batch; then few tiles for many programs."""
    return [Trial(box, box.images + 1, 3), Trial(box, 1, PROCESSORS)]


def _fault(layer: Layer, tile: Tile, precision: Precision, trial: Trial, device: torch.device) -> str:
    """What a run does wrong, from random numbers into an output of NaN; "" if nothing."""
    (input,), weight, bias, right = problem(layer, trial.images, precision, device, count=1)
    output = allocate(layer, trial.images, precision, input.device).fill_(torch.nan)
    run(input, weight, bias, output, layer, tile, precision, trial.box, (trial.programs,))
    _wait(tile)
    expected = right.float()
    error = float((output.float() - expected).abs().max() / expected.abs().max())
    limit = TOLERANCES[precision]
    if error <= limit:
        return ""
    return f"is wrong by {error:.1e} of the largest output in {trial}, more than {limit:.1e}"


def _wait(tile: Tile) -> None:
    """Until the device has done what it was given. Raises Hung."""
    done, patience = torch.cuda.Event(), time.monotonic() + PATIENCE
    done.record()
    while not done.query():
        if time.monotonic() > patience:
            raise Hung(
                f"the {tile.kind} kernel hangs: {tile}. Start again with FER_KERNELS_HOPPER=0, and report it"
            )
        time.sleep(0.001)
