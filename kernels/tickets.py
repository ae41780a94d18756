"""Tickets: what the programs of a launch draw to find out which of them is the last to finish a tile.

A launch's tickets are int32 numbers, zero at its start, which it leaves at zero. Two launches that may run at once must
not share any: each would take the other's programs for its own, and tiles would be finished before their time.

So there is no cache of them per device or stream, which a CUDA graph would break: its launches run whenever and on
whatever stream it is replayed. Each launch has `torch.zeros` of its own: right on any stream and in any graph, because
the caching allocator gives memory to one user at a time, on one stream, in one graph. In a graph this costs a node for
the zeroing, about as long as a small layer. Who captures a graph saves it with a `TicketStore`: zeroed once, before the
capture; each launch captured gets a slice that nobody else ever gets and that is back at zero when the next replay
begins, since a graph does not overlap itself.

    store = TicketStore(device)
    with store, torch.cuda.graph(graph): ...      # and the store is kept as long as the graph
"""

from __future__ import annotations

from contextvars import ContextVar, Token

import torch
from torch import Tensor

STEP = 32
"""Tickets from one slice to the next: 128 bytes, so that all are aligned alike."""


class TicketStore:
    """`count` tickets on `device` for the launches inside a `with` of it; further ones zero their own again."""

    def __init__(self, device: torch.device, count: int = 2**16) -> None:
        self._free = torch.zeros(count, dtype=torch.int32, device=device)
        self._tokens: list[Token[TicketStore | None]] = []
        if self._free.is_cuda:  # zero before a graph is replayed on another stream
            torch.cuda.current_stream(self._free.device).synchronize()

    def __enter__(self) -> TicketStore:
        self._tokens.append(_store.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        _store.reset(self._tokens.pop())

    def take(self, count: int, device: torch.device) -> Tensor | None:
        """Zeros that nobody else has; None where there are not so many, or not on this device."""
        if device != self._free.device or count > len(self._free):
            return None
        taken = self._free[:count]
        self._free = self._free[count + -count % STEP :]
        return taken


_store: ContextVar[TicketStore | None] = ContextVar("tickets", default=None)


def draw(count: int, device: torch.device) -> Tensor:
    """(count,) int32 zeros for one launch on the current stream."""
    store = _store.get()
    taken = store.take(count, device) if store else None
    return torch.zeros(count, dtype=torch.int32, device=device) if taken is None else taken
