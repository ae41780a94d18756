"""What is drawn of each source, as files below one folder: annotated pictures and videos, timelines."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO, FileIO
from pathlib import Path, PurePosixPath

from fer_lab.live.faces import Net, Seen
from fer_lab.live.movie import Movie, file_name, save_picture
from fer_lab.live.rows import append, in_one_line
from fer_lab.live.timeline import Timeline, figure

ANNOTATED, TIMELINES = "annotated", "timelines"
LOG = ".drawn"
"""Names of what was drawn, so that the next job removes these and nothing else."""


class Gallery:
    """A drawing that fails costs that drawing and a line on stderr, whatever the reason: rows are worth more."""

    def __init__(self, folder: Path, net: Net, annotate: bool, rate: Callable[[str], float | None]) -> None:
        self.folder, self.net, self.annotate, self.rate = folder, net, annotate, rate
        self.written: list[Path] = []
        self.source, self.failed = "", False
        self.movie: Movie | None = None
        self.timeline: Timeline | None = None

    def add(self, seen: Seen) -> None:
        """The next frame of a source; `end` comes before the next source."""
        self.source = seen.frame.source
        if seen.frame.time_s is not None:
            self.timeline = self.timeline or Timeline(self.net)
            self.timeline.add(seen)
        if self.annotate and seen.frame.pixels is not None and not self.failed:
            if seen.frame.time_s is None:
                self._save_picture(seen)
            else:
                self._film(seen)

    def end(self) -> None:
        """Of a source."""
        if self.movie is not None:
            with self._drawing(ANNOTATED, ".mp4") as path:
                self.movie.close()
                self._note(path)
        if self.timeline is not None:
            with self._drawing(TIMELINES, ".png") as path:
                self._save_timeline(self.timeline, path)
        self.movie, self.timeline, self.failed = None, None, False

    def _save_picture(self, seen: Seen) -> None:
        with self._drawing(ANNOTATED, ".png") as path:
            self._begin(path)
            save_picture(seen, self.net, path)
            self._note(path.parent)

    def _film(self, seen: Seen) -> None:
        with self._drawing(ANNOTATED, ".mp4") as path:
            if self.movie is None:
                self._begin(path)
                self.movie = Movie(path, self.net, self.rate(self.source))
            self.movie.write(seen)

    def _save_timeline(self, timeline: Timeline, path: Path) -> None:
        drawn, image = figure(timeline, self.source), BytesIO()
        if drawn is None:
            return
        with warnings.catch_warnings(action="ignore"):  # of signs that the font has not
            drawn.savefig(image, format="png", dpi=120, facecolor="white")
        self._begin(path)
        path.write_bytes(image.getvalue())
        self._note(path)

    @contextmanager
    def _drawing(self, kind: str, suffix: str) -> Iterator[Path]:
        path = self.folder / kind / file_name(self.source, suffix)
        try:
            yield path
        except Exception as error:
            self.failed = True
            self._remove(path)
            reason = " ".join(str(error).split()) or type(error).__name__
            words = f"{self.source}: left out of {kind}/ ({reason[:200]})"
            print(in_one_line(words), file=sys.stderr)

    def _remove(self, path: Path) -> None:
        """What is there of a drawing that failed."""
        if self.movie is not None and path == self.movie.path:
            with suppress(Exception):
                self.movie.container.close()
            self.movie = None
        with suppress(OSError):
            path.unlink()

    def _begin(self, path: Path) -> None:
        with FileIO(self.folder / LOG, "a") as log:
            append(log, f"{path.relative_to(self.folder).as_posix()}\n")
        path.parent.mkdir(parents=True, exist_ok=True)

    def _note(self, path: Path) -> None:
        """A few names are enough to say where things are."""
        if path not in self.written and len(self.written) < 6:
            self.written.append(path)


def clear_drawn(folder: Path) -> int:
    """Removes what jobs of before have drawn, and folders that are empty then; how many files there were."""
    log, count = folder / LOG, 0
    if not log.exists():
        return 0
    for line in set(log.read_text("utf-8", "replace").split("\n")):
        name = PurePosixPath(line)
        if name.parts[:1] not in ((ANNOTATED,), (TIMELINES,)) or ".." in name.parts:
            continue
        with suppress(OSError):
            (folder / name).unlink()
            count += 1
            for parent in list(name.parents)[:-1]:
                (folder / parent).rmdir()
    log.unlink()
    return count
