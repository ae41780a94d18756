"""Record a data set: the faces of videos and cameras, filed as data=folder reads them.

    root/happiness/anna_clip_000120.png     the expression, the person, the source and its frame
    root/manifest.csv                       where each picture comes from, and its checksum

Recordings into the same root add up. A face that the manifest knows is not filed again, not even after somebody threw its
picture away; under another expression or person it is filed once the picture that was wrong is gone.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from io import BytesIO, StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_lab.data.crop import Box, cut
from fer_lab.data.faces import DataError, expression
from fer_lab.data.images import BadImage, grey
from fer_lab.live.faces import Face, Frame, LiveError, Net, Pixels, Seen, Told

MANIFEST = "manifest.csv"
COLUMNS = (
    *("file", "label", "subject", "source", "frame", "time_s"),
    *("x", "y", "w", "h", "sha256", "date"),
)
"""`x`, `y`, `w` and `h` are the detector's box in the frame, `sha256` is the file's, `date` when it was filed (UTC)."""

MARGIN = 0.3
"""Beyond each edge of the detector's box: enough to find the face again (data.crop=haar), or to learn from as it is."""

SMALLEST = 48
"""Sides of a face, in pixels, below which there is little to learn from: FER2013's."""

LARGEST = 512
"""Larger squares are reduced to this side."""

GAP = 0.2
"""Seconds between two pictures of a video: neighbouring frames teach the same thing."""

STILL = 0.006
"""Mean difference (0..1) of two thumbnails of the same place of two frames, up to which nothing moved there. A camera's
noise alone gives 0.003; drawn faces that change their expression and nothing else give 0.007 to 0.022."""

THUMBNAIL = 16
SUBJECT = "^([^_]+)_"
"""What finds the person in the name of a file, for data.source.subject."""


def silent() -> Net:
    """A net that tells nothing: recording needs faces alone."""
    return Net("", (), 1, 1, False, 0.0, False, lambda squares: np.empty((len(squares), 0), np.float32))


class Shot(NamedTuple):
    """The last picture: of which face, when, where in the frame, and what was to be seen there."""

    source: str
    face_id: int
    time_s: float | None
    box: Box
    shape: tuple[int, ...]
    small: NDArray[np.float32]

    @classmethod
    def of(cls, frame: Frame, pixels: Pixels, told: Told) -> Shot:
        box = told.face.box
        return cls(frame.source, told.face_id, frame.time_s, box, pixels.shape, thumbnail(pixels, box))

    def soon(self, frame: Frame, gap: float) -> bool:
        """Whether the frame comes less than `gap` seconds later."""
        if frame.source != self.source or frame.time_s is None or self.time_s is None:
            return False
        return 0 <= round(frame.time_s - self.time_s, 3) < gap

    def still(self, frame: Frame, pixels: Pixels) -> bool:
        """Whether the frame shows the same where the face was."""
        if frame.source != self.source or pixels.shape != self.shape:
            return False
        return float(np.abs(thumbnail(pixels, self.box) - self.small).mean()) <= STILL


class Recorder:
    """Called with each frame in its order, files the face in it: the one of the last picture while that is followed, else
    the largest.

    `label` may be any spelling of an expression; `subject` names the person, in letters, digits and hyphens. Left out are
    faces of fewer than `smallest` pixels, frames less than `gap` seconds after the last picture, and such in which nothing
    moved. `added`, `known` (the manifest has them), `alike` and `small` count what came of the faces; `elsewhere` those that
    stand under another expression or person, by the files in which they do.
    Raises LiveError for a label, a subject or a root that cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        label: str,
        subject: str | None,
        margin: float = MARGIN,
        smallest: int = SMALLEST,
        gap: float = GAP,
    ) -> None:
        self.label, self.subject = label_of(label), subject_of(subject)
        self.margin, self.smallest, self.gap = margin, smallest, gap
        self.added = self.known = self.alike = self.small = 0
        self.elsewhere: Counter[str] = Counter()
        self.last: Shot | None = None
        self.manifest = Manifest(Path(root).expanduser())
        for _, known in self.manifest.filed():
            if known != self.subject and known.casefold() == self.subject.casefold():
                raise LiveError(f"subject={self.subject} stands in {root} as {known}: type subject={known}")

    def __call__(self, seen: Seen, anyway: bool = False) -> Path | None:
        """The picture filed, if one was; `anyway`: whatever its size and likeness."""
        frame, told = seen.frame, self.chosen(seen)
        if told is None or frame.pixels is None:
            return None
        if not anyway and self.left_out(frame, frame.pixels, told):
            return None
        pixels = face_picture(frame.pixels, told.face, self.margin)
        if pixels is None:
            return None
        self.last = Shot.of(frame, frame.pixels, told)
        return self.file(pixels, frame, told.face)

    def chosen(self, seen: Seen) -> Told | None:
        if not seen.faces:
            return None
        last = self.last
        same = last is not None and last.source == seen.frame.source
        followed = [one for one in seen.faces if last is not None and same and one.face_id == last.face_id]
        return (followed or [max(seen.faces, key=lambda one: one.face.box[2] * one.face.box[3])])[0]

    def left_out(self, frame: Frame, pixels: Pixels, told: Told) -> bool:
        if max(told.face.box[2:]) < self.smallest:
            self.small += 1
            return True
        alike = self.last is not None and (self.last.soon(frame, self.gap) or self.last.still(frame, pixels))
        self.alike += alike
        return alike

    def file(self, pixels: Pixels, frame: Frame, face: Face) -> Path | None:
        data = png(pixels)
        sha = hashlib.sha256(data).hexdigest()
        if self.stands(sha):
            return None
        stem = f"{self.subject}_{word_of(frame.source)}_{frame.number:06d}"
        time_s = "" if frame.time_s is None else f"{frame.time_s:.3f}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = (self.label, self.subject, frame.source, frame.number, time_s, *face.box, sha, now)
        try:
            path = self.manifest.write(self.label, stem, data, sha)
            row = (path.relative_to(self.manifest.root).as_posix(), *facts)
            self.manifest.append(row)
        except OSError as error:
            root, why = self.manifest.root, error.strerror or error
            raise LiveError(
                f"cannot record into {root} ({why}); the {self.added:,} faces so far are kept"
            ) from error
        self.manifest.known[sha] = dict(zip(COLUMNS, map(str, row), strict=True))
        self.added += 1
        return path

    def stands(self, sha: str) -> bool:
        """Whether the manifest has the face, so that it is not filed again."""
        row = self.manifest.known.get(sha)
        if row is None:
            return False
        if (row["label"], row["subject"]) == (self.label, self.subject):
            self.known += 1
            return True
        if not (self.manifest.root / row["file"]).exists():
            return False  # thrown away, as it was wrong
        self.elsewhere[re.sub(r"_\d+(-\w+)?\.png$", "_*.png", row["file"])] += 1
        return True

    def words(self) -> str:
        """What came of it, in one line, and what to type next."""
        root = self.manifest.root
        left_out = [
            f"{count:,} {why}"
            for count, why in (
                (self.alike, "were like the one before"),
                (self.known, f"stood in {MANIFEST}"),
                (self.small, f"were smaller than {self.smallest} pixels"),
            )
            if count
        ]
        others = f" ({', '.join(left_out)})" if left_out else ""
        added = f" to {root / self.label}" if self.added else ""
        wrong = [
            f"{count:,} stand as {root / files}: if that is wrong, delete these and record again"
            for files, count in self.elsewhere.items()
        ]
        then = [f"next: {self.next()}"] if self.added else []
        return "; ".join([f"{self.added:,} faces of {self.subject} added{added}{others}", *wrong, *then])

    def next(self) -> str:
        """The command that trains on the root; people stay on one side of a split as soon as there are two of them."""
        filed = self.manifest.filed()
        alone = len({person for _, person in filed}) < 2
        words = [f"data.root={self.manifest.root}", f'data.source.subject="{SUBJECT}"', "split=holdout"]
        words += ["split.mix_subjects=true"] if alone else []
        another = "" if len({label for label, _ in filed}) > 1 else "record another expression, then "
        return another + shlex.join(["python", "-m", "fer_lab.train", "data=folder", *words])


class Manifest:
    """manifest.csv below `root`: a line for each picture, written after the picture and in one piece, so that a kill
    leaves no half of either; `known` are the last lines of all that it ever filed, by their checksums."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / MANIFEST
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() or not self.path.stat().st_size:
                self.append(COLUMNS)
            elif not self.path.read_bytes().endswith(b"\n"):
                self.append(())  # another program, or a full disk, left the last line open
        except OSError as error:
            raise LiveError(
                f"cannot record into {root} ({error.strerror}); name another folder: out=DIR"
            ) from None
        self.known = {row["sha256"]: row for row in self.rows()}

    def filed(self) -> set[tuple[str, str]]:
        """Expression and person of the pictures that are there, as data=folder sees them."""
        return {(path.parent.name, path.name.partition("_")[0]) for path in self.root.glob("*/*_*.png")}

    def rows(self) -> list[dict[str, str]]:
        with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
            found = csv.DictReader(file)
            if missing := set(COLUMNS) - set(found.fieldnames or ()):
                raise LiveError(
                    f"{self.path} was not written by a recording (it has no column {sorted(missing)[0]}); "
                    "name another folder: out=DIR"
                )
            return [row for row in found if row["sha256"]]

    def write(self, label: str, stem: str, data: bytes, sha: str) -> Path:
        """The picture, whole or not at all, under a name that no other picture has."""
        folder = self.root / label
        folder.mkdir(exist_ok=True)
        path = folder / f"{stem}.png"
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != sha:
            path = folder / f"{stem}-{sha[:8]}.png"  # of another source with the same word
        part = folder / f".{path.name}.part"  # data=folder does not see hidden files
        part.write_bytes(data)
        return part.replace(path)

    def append(self, values: Iterable[object]) -> None:
        line = StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        data = line.getvalue().encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def label_of(label: str) -> str:
    """The canonical name of the expression."""
    try:
        return expression(label)
    except DataError as error:
        raise LiveError(f"record={label}: {error}") from None


def subject_of(subject: str | None) -> str:
    """Raises LiveError where it could not stand in a file's name, or where SUBJECT would not find it there."""
    if not subject:
        raise LiveError(
            "record=LABEL needs subject=NAME, so that splits can keep people apart; any word will do, such as p01"
        )
    if not re.fullmatch(r"[^\W_]+(-[^\W_]+)*", subject):
        near = "-".join(re.findall(r"[^\W_]+", subject)) or "p01"
        raise LiveError(
            f"subject={subject!r} may hold letters, digits and single hyphens between them, such as {near}"
        )
    return subject


def word_of(source: str) -> str:
    """Letters, digits and hyphens of a source's last part, without its suffix: videos/Anna 1.mp4 gives Anna-1, and so does
    camera:Anna 1.mp4."""
    stem = re.sub(r"^camera:(?=\D)|\.\w{1,5}$", "", source.rstrip("/").rpartition("/")[2])
    return "-".join(re.findall(r"[^\W_]+", stem))[:60].strip("-") or "source"


def face_picture(pixels: Pixels, face: Face, margin: float) -> Pixels | None:
    """(side, side, 3) with the margin about the face; None where there is nothing to see in it."""
    try:
        square = cut(pixels, face.box, margin)
    except BadImage:
        return None
    if len(square) > LARGEST:
        reduced = Image.fromarray(np.ascontiguousarray(square)).resize(
            (LARGEST, LARGEST), Image.Resampling.BOX
        )
        square = np.asarray(reduced)
    return square if square.min() < square.max() else None


def thumbnail(pixels: Pixels, box: Box) -> NDArray[np.float32]:
    """(16, 16) grey in 0..1 of what is inside the box."""
    left, top, width, height = box
    inside = pixels[max(0, top) : top + height, max(0, left) : left + width]
    image = Image.fromarray(grey(inside)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / np.float32(255)


def png(pixels: Pixels) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png", compress_level=6)
    return buffer.getvalue()
