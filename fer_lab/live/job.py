"""A job's results below one folder: rows, and of videos a summary and a timeline, and whatever is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fer_lab.live.faces import LiveError, Net, Seen
from fer_lab.live.movie import Movie, file_name, save_picture
from fer_lab.live.rows import FORMATS, Rows, printable, rows_of
from fer_lab.live.source import Source, count
from fer_lab.live.source import rate as rate_of
from fer_lab.live.summary import Counts, Tracks
from fer_lab.live.timeline import Timeline, figure

if TYPE_CHECKING:
    from threading import Event

    from rich.console import Console
    from rich.progress import Progress

QUIET_SECONDS = 10.0
"""Between two lines of progress where nobody looks on."""

COUNTED = 50
"""Videos that are opened to estimate what there is to do; of more, nothing is estimated."""


class Wanted(NamedTuple):
    """`follow`: faces have numbers that stay, so that a summary of each can be made."""

    format: str = "csv"
    annotate: bool = False
    follow: bool = True
    every: int = 1


class Results:
    """What is known is written at once. With the first of it predictions.* and tracks.csv of before are gone, and whatever
    is drawn replaces its like; nothing else in the folder is touched. Frames of a source come in a row. Used in a `with`."""

    def __init__(self, folder: Path, net: Net, wanted: Wanted, videos: Iterable[Source] = ()) -> None:
        self.folder, self.net, self.wanted = folder, net, wanted
        self.videos = {source.name: source for source in videos}
        self.counts, self.source = Counts(), ""
        self.written: list[Path] = []
        self.movie: Movie | None = None
        self.timeline: Timeline | None = None
        self.rows: Rows | None = None
        self.tracks: Tracks | None = None

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end_video()
        if self.rows is not None:
            self.written.insert(0, self.rows.close())
        if self.tracks is not None:
            self.written.insert(1, self.tracks.close())

    def write(self, some: Sequence[Seen]) -> None:
        self.rows = self.rows or self._begun()
        self.rows.write(row for seen in some for row in rows_of(seen, self.net))
        for seen in some:
            self.counts.add(seen)
            if seen.frame.source != self.source:
                self._end_video()
                self.source = seen.frame.source
            if seen.frame.time_s is not None:
                self._add_frame(seen)
            elif self.wanted.annotate and seen.frame.pixels is not None:
                path = self.folder / "annotated" / file_name(seen.frame.source, ".png")
                save_picture(seen, self.net, path)
                self._note(path.parent)

    def one(self, seen: Seen) -> None:
        self.write([seen])

    def _begun(self) -> Rows:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (*(f"predictions.{suffix}" for suffix in FORMATS), "tracks.csv"):
            (self.folder / name).unlink(missing_ok=True)
        return FORMATS[self.wanted.format](self.folder, self.net)

    def _add_frame(self, seen: Seen) -> None:
        """Of a video or a camera."""
        if self.timeline is None:
            self.timeline = Timeline(self.net)
        self.timeline.add(seen)
        if self.wanted.follow:
            self.tracks = self.tracks or Tracks(self.folder, self.net)
            self.tracks.add(seen)
        if self.wanted.annotate and seen.frame.pixels is not None:
            self.movie = self.movie or self._new_movie()
            self.movie.write(seen)

    def _new_movie(self) -> Movie:
        source = self.videos.get(self.source)
        rate = source and rate_of(source)
        path = self.folder / "annotated" / file_name(self.source, ".mp4")
        return Movie(path, self.net, rate / self.wanted.every if rate else None)

    def _end_video(self) -> None:
        if self.movie is not None:
            self.movie.close()
            self._note(self.movie.path)
        if self.tracks is not None:
            self.tracks.end()
        if self.timeline is not None:
            self._draw(self.timeline)
        self.movie = self.timeline = None

    def _draw(self, timeline: Timeline) -> None:
        drawn = figure(timeline, self.source)
        if drawn is not None:
            path = self.folder / "timelines" / file_name(self.source, ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            drawn.savefig(part, format="png", dpi=120, facecolor="white")
            self._note(part.replace(path))

    def _note(self, path: Path) -> None:
        """A few names are enough to say where things are."""
        if path not in self.written and len(self.written) < 8:
            self.written.append(path)


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
            yield lambda name, frames: shown.update(task, description=printable(name)[-30:], advance=frames)
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
            print(f"{printable(name)}: {self.frames:,} frames so far, {rate:.0f} frames/s", flush=True)
            self.due = now + QUIET_SECONDS


def expected(sources: Sequence[Source], every: int) -> int | None:
    """Frames of all sources, by what they say of themselves; None where one does not, or where there are many videos."""
    videos = [source for source in sources if source.kind == "video"]
    if len(videos) > COUNTED:
        return None
    counts = [count(video) for video in videos]
    known = [-(-one // every) for one in counts if one is not None]
    return len(sources) - len(videos) + sum(known) if len(known) == len(counts) else None
