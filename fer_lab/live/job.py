"""A job's results below one folder: rows, and of videos a summary and a timeline, and whatever is drawn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from fer_lab.live.faces import LiveError, Net, Seen
from fer_lab.live.gallery import Gallery, clear_drawn
from fer_lab.live.rows import FORMATS, Rows, in_one_line, rows_of
from fer_lab.live.source import Source, count
from fer_lab.live.source import rate as rate_of
from fer_lab.live.summary import Counts, Tracks

if TYPE_CHECKING:
    from threading import Event

    from rich.console import Console
    from rich.progress import Progress

QUIET_SECONDS = 10.0
"""Between two lines of progress where nobody looks on."""

COUNTED = 50
"""Videos that are opened to estimate what there is to do; of more, nothing is estimated."""

LOCK = ".lock"
OURS = (*(f"predictions.{suffix}" for suffix in FORMATS), "predictions.parquet.part", "tracks.csv")

File = TypeVar("File", Rows, Tracks)


class Wanted(NamedTuple):
    """`follow`: faces have numbers that stay, so that a summary of each can be made."""

    format: str = "csv"
    annotate: bool = False
    follow: bool = True
    every: int = 1


class Results:
    """What is known is written at once. With the first of it all that a job of before has written there is gone, and
    nothing else in the folder is touched. Frames of a source come in a row. Used in a `with`."""

    def __init__(self, folder: Path, net: Net, wanted: Wanted, videos: Iterable[Source] = ()) -> None:
        self.folder, self.net, self.wanted = folder, net, wanted
        self.counts, self.source = Counts(), ""
        self.gallery = Gallery(folder, net, wanted.annotate, rates(videos, wanted.every))
        self.rows: Rows | None = None
        self.tracks: Tracks | None = None
        self.files: list[Path] = []
        self.ending = ExitStack()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        """Tracks and rows first: whatever drawing comes to, they are whole."""
        self.ending.close()

    @property
    def written(self) -> list[Path]:
        return [*self.files, *self.gallery.written]

    def write(self, some: Sequence[Seen]) -> None:
        self.rows = self.rows or self._begun()
        self.rows.write(row for seen in some for row in rows_of(seen, self.net))
        for seen in some:
            self.counts.add(seen)
            if seen.frame.source != self.source:
                self._end_source()
                self.source = seen.frame.source
            if self.wanted.follow and seen.frame.time_s is not None:
                self.tracks = self.tracks or self._kept(Tracks(self.folder, self.net))
                self.tracks.add(seen)
            self.gallery.add(seen)

    def one(self, seen: Seen) -> None:
        self.write([seen])

    def _begun(self) -> Rows:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.ending.enter_context(FileLock(self.folder / LOCK, timeout=0, thread_local=False))
        except Timeout:
            raise LiveError(
                f"another job writes to {self.folder} at this moment; name another folder: out=DIR"
            ) from None
        clear(self.folder)
        self.ending.callback(self.gallery.end)
        return self._kept(FORMATS[self.wanted.format](self.folder, self.net))

    def _kept(self, file: File) -> File:
        """To be closed in the end."""
        self.ending.callback(lambda: self.files.insert(0, file.close()))
        return file

    def _end_source(self) -> None:
        if self.tracks is not None:
            self.tracks.end()
        self.gallery.end()


def clear(folder: Path) -> None:
    """Removes the results of before, and says so."""
    names = [name for name in OURS if (folder / name).exists()]
    for name in names:
        (folder / name).unlink()
    if drawings := clear_drawn(folder):
        names.append(f"{drawings:,} drawn file{'s' * (drawings > 1)}")
    if names:
        print(f"replaced the results of before in {folder}: {', '.join(names)}", file=sys.stderr)


def rates(videos: Iterable[Source], every: int) -> Callable[[str], float | None]:
    """Frames a second that are looked at, by the name of a source."""
    known = {source.name: source for source in videos}

    def rate(name: str) -> float | None:
        whole = rate_of(known[name]) if name in known else None
        return whole / every if whole else None

    return rate


class Outcome(NamedTuple):
    counts: Counts
    written: Sequence[Path]
    seconds: float
    interrupted: bool


def run(
    seen: Iterator[list[Seen]], folder: Path, net: Net, wanted: Wanted, sources: Sequence[Source], stop: Event
) -> Outcome:
    """Writes what is seen until its end, or until `stop` is set. Results of before stay until the first frames are told.
    Raises LiveError where nothing can be written."""
    start = time.monotonic()
    videos = [source for source in sources if source.kind == "video"]
    with (
        writing(folder),
        progress(sources, wanted.every) as tell,
        Results(folder, net, wanted, videos) as results,
    ):
        for some in seen:
            results.write(some)
            tell(some[-1].frame.source, len(some))
            if stop.is_set():
                break
    return Outcome(results.counts, results.written, time.monotonic() - start, stop.is_set())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk, or a folder that is not ours, is a sentence."""
    try:
        yield
    except BrokenPipeError:  # of who reads what is printed
        raise
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        raise LiveError(
            f"cannot write {where} ({why}); what was told before is complete; name another folder: out=DIR"
        ) from error


@contextmanager
def progress(sources: Sequence[Source], every: int) -> Iterator[Callable[[str, int], None]]:
    """What is called with the source at hand and the number of frames just done."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with bar(console) as shown:
            task = shown.add_task("", total=expected(sources, every))
            yield lambda name, frames: shown.update(task, description=in_one_line(name)[-30:], advance=frames)
    else:
        yield Lines()


def bar(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    left = TextColumn("{task.description}", style="cyan", markup=False)
    columns = (
        left,
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, speed_estimate_period=10)


class Lines:
    """For logs."""

    def __init__(self) -> None:
        self.frames, self.start = 0, time.monotonic()
        self.due = self.start + QUIET_SECONDS

    def __call__(self, name: str, frames: int) -> None:
        self.frames += frames
        now = time.monotonic()
        if now >= self.due:
            rate = self.frames / (now - self.start)
            print(f"{in_one_line(name)}: {self.frames:,} frames so far, {rate:.0f} frames/s", flush=True)
            self.due = now + QUIET_SECONDS


def expected(sources: Sequence[Source], every: int) -> int | None:
    """Frames of all sources, by what they say of themselves; None where one does not, or where there are many videos."""
    videos = [source for source in sources if source.kind == "video"]
    if len(videos) > COUNTED:
        return None
    counts = [count(video) for video in videos]
    known = [-(-one // every) for one in counts if one is not None]
    return len(sources) - len(videos) + sum(known) if len(known) == len(counts) else None
