"""One thread for the net: requests take turns, and nobody waits in a queue without end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TypeVar

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
        except TimeoutError:
            future.cancel()  # not `running`, which would be over at once, whatever the thread does
            raise

    def _ended(self, running: asyncio.Future[T]) -> None:
        self.pending -= 1
        if not running.cancelled():
            running.exception()  # nobody may be left to ask for it

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)


class Sessions:
    """What each live view has seen so far, kept for the `most` that asked last and forgotten `seconds` after that."""

    def __init__(self, make: Callable[[], Look], most: int, seconds: float) -> None:
        self.make, self.most, self.seconds = make, most, seconds
        self.looks: OrderedDict[str, tuple[Look, float]] = OrderedDict()

    def __getitem__(self, session: str) -> Look:
        now = monotonic()
        look, last = self.looks.pop(session, (None, now))
        if look is None or now - last > self.seconds:
            look = self.make()
        self.looks[session] = look, now
        while len(self.looks) > self.most or now - next(iter(self.looks.values()))[1] > self.seconds:
            self.looks.popitem(last=False)
        return look
