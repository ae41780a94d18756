"""Pictures and videos through a net: decoding, finding and telling run side by side, each in a thread of its own.

What waits between them is bounded in bytes, so that memory stays flat however long a video or large a folder is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fer_lab.live.faces import Face, Frame, Seen
from fer_lab.live.look import Look
from fer_lab.live.source import Source, frames

CHUNK_FRAMES = 16
CHUNK_BYTES = 16_000_000
"""Frames travel in chunks of so many; one with a large frame is larger, and takes the places of several."""

BATCH = 32
"""Faces that go through the net at once."""

AHEAD = 2
"""Chunks that a thread works ahead of the next."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class Chunk(NamedTuple):
    """Consecutive frames of one kind, of one video or of several pictures; `begins`: the first ones of a source."""

    kind: str
    begins: bool
    frames: list[Frame]


class Found(NamedTuple):
    """A chunk, the faces of each of its frames, and all their squares (N, C, S, S) in order."""

    chunk: Chunk
    faces: list[list[Face]]
    squares: NDArray[np.uint8]


def stream(
    sources: Iterable[Source], looks: Mapping[str, Look], every: int = 1, keep: bool = False
) -> Iterator[list[Seen]]:
    """What is seen, some frames at a time, in order; `looks` has one look for each kind of source (picture, video).

    Frames come without their pixels unless `keep`. A video's look forgets the video before. An exception in any of the
    threads is raised here; closing the generator ends them all.
    """
    reading = chunks(sources, every)
    with ExitStack() as stack:
        stack.callback(reading.close)
        read, find_faces, ask = (stack.enter_context(Stage(name)) for name in ("decode", "find", "tell"))
        decoded = iter_until_none(ahead(read, lambda _: next(reading, None), repeat(None)))
        found = ahead(find_faces, lambda chunk: find(chunk, looks[chunk.kind], keep), decoded)
        yield from filter(None, ahead(ask, lambda one: tell(one, looks[one.chunk.kind]), found))


class Stage(ThreadPoolExecutor):
    """One thread; what it has not begun when it is left is not done."""

    def __init__(self, name: str) -> None:
        super().__init__(1, f"fer_lab-{name}")

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)


def ahead(
    thread: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given]
) -> Iterator[Made]:
    """map(work, items), done in `thread`, AHEAD items before they are asked for."""
    waiting: deque[Future[Made]] = deque()
    for item in items:
        waiting.append(thread.submit(work, item))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def iter_until_none(items: Iterable[Made | None]) -> Iterator[Made]:
    for item in items:
        if item is None:
            return
        yield item


def chunks(sources: Iterable[Source], every: int) -> Generator[Chunk, None, None]:
    """Pictures share chunks; a video has its own. After a large chunk come empty ones for the places that it takes, so that
    it has moved on before the next is read."""
    kind, begins, size, some = "", True, 0, list[Frame]()
    for source in sources:
        if some and (source.kind != kind or kind == "video"):
            yield Chunk(kind, begins, some)
            size, some = 0, []
        kind, begins = source.kind, True
        for frame in frames(source, every):
            weight = 0 if frame.pixels is None else frame.pixels.nbytes
            some.append(frame)
            size += weight
            if len(some) == CHUNK_FRAMES or size + weight > CHUNK_BYTES:
                yield Chunk(kind, begins, some)
                begins, some = False, []
                del frame  # its pixels are no longer needed here
                yield from [Chunk(kind, False, [])] * (size // CHUNK_BYTES)
                size = 0
    if some:
        yield Chunk(kind, begins, some)


def find(chunk: Chunk, look: Look, keep: bool) -> Found:
    if chunk.begins and chunk.kind == "video":
        look.detector.reset()
    kept, faces, squares = [], [], [look.squares(np.empty((0, 0, 3), np.uint8), [])]
    for frame in chunk.frames:
        found: list[Face] = []
        if frame.pixels is not None:
            try:
                found = look.detector(frame.pixels)
                squares.append(look.squares(frame.pixels, found))
            except Exception as error:  # the libraries cannot take it: a row like a broken file's
                found, frame = [], frame._replace(fault=f"no face finder takes this picture: {error}")
        kept.append(frame if keep else frame._replace(pixels=None))
        faces.append(found)
    return Found(chunk._replace(frames=kept), faces, np.concatenate(squares))


def tell(found: Found, look: Look) -> list[Seen]:
    if found.chunk.begins and found.chunk.kind == "video" and look.tracker is not None:
        look.tracker.reset()
    starts = range(0, len(found.squares), BATCH)
    answers = np.concatenate(
        [look.ask(found.squares[:0]), *(look.ask(found.squares[start : start + BATCH]) for start in starts)]
    )
    seen, first = [], 0
    for frame, faces in zip(found.chunk.frames, found.faces, strict=True):
        told = look.told(faces, answers[first : first + len(faces)])
        seen.append(Seen(frame, tuple(told)))
        first += len(faces)
    return seen
