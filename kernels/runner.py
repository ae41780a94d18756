"""A program behind one call for any batch: on a GPU one CUDA graph per batch size, padded to and split by those sizes.

A swapped VGG19 is 18 launches; from Python they take longer than the kernels at small batches, from a graph they do
not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from kernels.tickets import TicketStore

BATCHES = (1, 2, 4, 8, 16, 32, 64)
WARM_UPS = 3
"""Runs before a capture: compile the kernels, choose tiles, let cuDNN and cuBLAS make their workspaces."""


class Part(NamedTuple):
    """Images start..stop of a batch, computed as a batch of `size`."""

    start: int
    stop: int
    size: int


def parts(images: int, batches: Sequence[int]) -> list[Part]:
    """How so many images are computed: as many as fit the largest size at a time, the rest in the next larger size."""
    largest = max(batches)
    starts = range(0, max(images, 1), largest)
    counts = [(start, min(start + largest, images)) for start in starts]
    return [
        Part(start, stop, min(size for size in batches if size >= stop - start)) for start, stop in counts
    ]


class Runner:
    """`run(images)` gives what the program gives: (B, …) -> (B, …), any B, and no gradients.

    An ExportedProgram or a module with one tensor for input and one for output, the batch first in both. It is moved to
    `device` (by default where it is) in place: the caller's own is there then, too, and a module is in evaluation. On a
    CPU it is simply called, with what batches it takes. On a GPU each of `batches` is captured when it is first needed,
    or all of them by `prepare`; the images may be on the CPU. Of `batches` those count that a program was exported for,
    and the largest of these where some are larger. The answer is the caller's own, it is not overwritten by the next
    call. Several threads may call: they take turns.

    Raises ValueError for a program that was exported for one batch size, and for batch sizes that are none.
    """

    def __init__(
        self,
        program: ExportedProgram | nn.Module,
        device: torch.device | str | None = None,
        batches: Sequence[int] = BATCHES,
    ) -> None:
        self.device = torch.device(device) if device is not None else device_of(program)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        if not batches or min(batches) < 1:
            raise ValueError(f"batches {tuple(batches)}; expected one size or more, each 1 or more")
        self.batches = tuple(sorted(taken(program, batches)))
        self.module = moved(program, self.device)
        self.execute: Callable[[Tensor, int], Tensor] | None = None
        if self.device.type == "cuda":
            self.execute = Graphs(self.module, self.device)
        self.lock = Lock()

    def __call__(self, images: Tensor) -> Tensor:
        with self.lock, torch.no_grad():
            if self.execute is None:
                return self.module(images.to(self.device))
            pieces = [
                self.execute(images[start:stop], size)
                for start, stop, size in parts(len(images), self.batches)
            ]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def prepare(self, images: Tensor) -> None:
        """Captures all batch sizes for images of this size and type; of the images only the first is looked at."""
        for size in self.batches:
            self(images[:1].expand(size, *images.shape[1:]))


class Captured(NamedTuple):
    """A graph with the memory that outlives a replay."""

    graph: torch.cuda.CUDAGraph
    input: Tensor
    output: Tensor
    tickets: TicketStore


class Graphs:
    """CUDA graphs of a module, one for each shape and type of input.

    All are captured and replayed on one stream, one after the other, and an answer is copied out before the next
    replay: so they may share one pool of memory, although each overwrites the others' intermediate results.
    """

    def __init__(self, module: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.module = module
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.captured: dict[tuple[Any, ...], Captured] = {}

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """The answer for `images`, of which there are no more than `size`, computed as a batch of `size`."""
        caller = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            self.stream.wait_stream(caller)
            key = (size, *images.shape[1:], images.dtype)
            if key not in self.captured:
                self.captured[key] = self.capture(images, size)
            graph, input, output, _ = self.captured[key]
            input[: len(images)].copy_(images)
            graph.replay()
            answer = output[: len(images)].clone()
        if images.is_cuda:
            images.record_stream(self.stream)
        caller.wait_stream(self.stream)
        answer.record_stream(caller)
        return answer

    def capture(self, images: Tensor, size: int) -> Captured:
        input = torch.zeros((size, *images.shape[1:]), dtype=images.dtype, device=self.device)
        for _ in range(WARM_UPS):
            self.module(input)
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with (
            TicketStore(self.device) as tickets,
            torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"),
        ):
            output = self.module(input)
        return Captured(graph, input, output, tickets)


def moved(program: ExportedProgram | nn.Module, device: torch.device) -> nn.Module:
    """Something to call, with its weights on `device`."""
    if not isinstance(program, ExportedProgram):
        return program.eval().to(device)
    if device != device_of(program):
        program = move_to_device_pass(program, device)
    return program.module()


def taken(program: ExportedProgram | nn.Module, batches: Sequence[int]) -> set[int]:
    """Those of `batches` that the program was exported for, and its own limits where some are beyond them. Raises
    ValueError if it was exported for one size."""
    if not isinstance(program, ExportedProgram):
        return set(batches)
    name = program.graph_signature.user_inputs[0]
    batch = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape[0]
    if isinstance(batch, int):
        raise ValueError(
            f"the program was exported for batches of {batch}; export it with a dynamic batch:"
            ' torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))'
        )
    if batch.node.expr not in program.range_constraints:
        return set(batches)
    limits = program.range_constraints[batch.node.expr]
    least = limits.lower if limits.lower > 2 else 1  # torch takes 1 where it says 2
    return {int(min(max(size, least), limits.upper)) for size in batches}


def device_of(program: ExportedProgram | nn.Module) -> torch.device:
    """Where its first weight is; the CPU if it has none."""
    tensors = (
        program.state_dict.values() if isinstance(program, ExportedProgram) else program.state_dict().values()
    )
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
