"""Fill the rows of an image file with decoded pictures, in this process or in several.

The processes are plain `python -m fer_lab.data.decoding`, not multiprocessing's: those would import the
parent's main module, and with it torch, before they read their first picture.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.crop import Crop
from fer_lab.data.faces import Item, Source
from fer_lab.data.images import BadImage, square

CHUNK = 64
ITEMS_PER_WORKER = 1000
"""Fewer are decoded sooner than another Python starts."""

Bad = tuple[int, str]


def worth(items: int) -> int:
    """How many processes so many items are worth on this machine; 0 is this process alone."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, items // ITEMS_PER_WORKER)
    return workers if workers > 1 else 0


def fill(
    source: Source,
    items: Sequence[Item],
    path: Path,
    workers: int,
    advance: Callable[[int], None],
    crop: Crop,
) -> list[Bad]:
    """Decode each item into its row of the .npy file at `path`; returns (row, reason) of those that are bad."""
    if workers == 0 or type(source).__module__ == "__main__":  # another process could not import it
        return _fill_here(source, items, path, advance, crop)
    chunks = deque(range(0, len(items), CHUNK))
    job = pickle.dumps((source, list(items), str(path), crop))
    with ExitStack() as stack:
        processes = [stack.enter_context(_Worker(job)) for _ in range(workers)]
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        parts = [threads.submit(_feed, process, chunks, len(items), advance) for process in processes]
        try:
            return sorted(bad for part in parts for bad in part.result())
        finally:
            chunks.clear()  # after an error or Ctrl-C no thread begins another


def _fill_here(
    source: Source, items: Sequence[Item], path: Path, advance: Callable[[int], None], crop: Crop
) -> list[Bad]:
    images = np.load(path, mmap_mode="r+")
    bad: list[Bad] = []
    for start in range(0, len(items), CHUNK):
        stop = min(start + CHUNK, len(items))
        bad += _decode_rows(source, items, images, range(start, stop), crop)
        advance(stop - start)
    images.flush()
    return bad


def _decode_rows(
    source: Source, items: Sequence[Item], images: NDArray[np.uint8], rows: range, crop: Crop
) -> list[Bad]:
    channels, size = images.shape[1:3]
    bad: list[Bad] = []
    for row in rows:
        try:
            images[row] = square(crop(source.pixels(items[row]), items[row]), size, channels)
        except BadImage as error:
            bad.append((row, str(error)))
        except OSError as error:
            bad.append((row, f"unreadable ({error.strerror or error})"))
    return bad


class _Worker:
    """A child that answers each line `start stop` with the bad rows among those, as one line of JSON."""

    def __init__(self, job: bytes) -> None:
        self.job = job

    def __enter__(self) -> _Worker:
        paths = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fer_lab.data.decoding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the children
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, start: int, stop: int) -> list[Bad]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # the missing answer tells
            self.process.stdin.write(self.job + b"%d %d\n" % (start, stop))
            self.process.stdin.flush()
        self.job = b""  # sent once, before the first question
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            raise RuntimeError(f"a decoding process ended with code {code} in items {start} to {stop - 1}")
        return [(row, reason) for row, reason in json.loads(answer)]


def _feed(worker: _Worker, chunks: deque[int], count: int, advance: Callable[[int], None]) -> list[Bad]:
    bad: list[Bad] = []
    while True:
        try:
            start = chunks.popleft()
        except IndexError:
            return bad
        stop = min(start + CHUNK, count)
        bad += worker.ask(start, stop)
        advance(stop - start)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    source, items, path, crop = pickle.load(sys.stdin.buffer)
    images = np.load(path, mmap_mode="r+")
    for line in sys.stdin.buffer:
        start, stop = map(int, line.split())
        bad = _decode_rows(source, items, images, range(start, stop), crop)
        print(json.dumps(bad), file=answers, flush=True)


if __name__ == "__main__":
    main()
