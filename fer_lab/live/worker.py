"""One thread for the net: requests take turns, and nobody waits in a queue without end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from fer_lab.live.faces import Told
from fer_lab.live.look import Look

T = TypeVar("T")


class Busy(Exception):
    """So many wait already that one more would wait too long."""


class Worker:
    """Calls what it is given in one thread of its own, in order; `waiting` may wait behind the one that runs, and for
    `seconds` at most."""

    def __init__(self, waiting: int, seconds: float) -> None:
        self.waiting, self.seconds = waiting, seconds
        self.pending = 0
        self.thread = ThreadPoolExecutor(1, "net")

    async def __call__(self, work: Callable[[], T]) -> T:
        """Raises Busy, and TimeoutError: work that has not begun by then never will, other work still counts until
        it ends."""
        if self.pending > self.waiting:
            raise Busy
        self.pending += 1
        future = self.thread.submit(work)
        running = asyncio.wrap_future(future)
        running.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.shield(running), self.seconds)
        except (TimeoutError, asyncio.CancelledError):
            future.cancel()  # not `running`, which would be over at once, whatever the thread does
            raise

    def _ended(self, running: asyncio.Future[T]) -> None:
        self.pending -= 1
        if not running.cancelled():
            running.exception()  # nobody may be left to ask for it

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


@dataclass
class View:
    """A live view: what looks at its frames, in their order, and what was told of the last one."""

    look: Look
    told: list[Told] = field(default_factory=list)
    asked: float = 0.0


class Sessions:
    """The live views that asked last, `most` of them; `forget` drops those that last asked `seconds` ago."""

    def __init__(self, make: Callable[[], Look], most: int, seconds: float) -> None:
        self.make, self.most, self.seconds = make, most, seconds
        self.views: OrderedDict[str, View] = OrderedDict()

    def __getitem__(self, session: str) -> View:
        now = monotonic()
        view = self.views.pop(session, None)
        if view is None or now - view.asked > self.seconds:
            view = View(self.make())
        view.asked = now
        self.views[session] = view
        if len(self.views) > self.most:
            self.views.popitem(last=False)
        return view

    def forget(self) -> None:
        while self.views and monotonic() - next(iter(self.views.values())).asked > self.seconds:
            self.views.popitem(last=False)
