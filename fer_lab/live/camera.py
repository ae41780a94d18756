"""Watch a camera: what the net tells of its newest frame, in a window or, without one, as a line a second."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np
from PIL import Image

from fer_lab.live.drawing import annotate, label_of
from fer_lab.live.faces import Pixels, Seen, Told
from fer_lab.live.grab import PREFIX, Camera, Grabbed
from fer_lab.live.look import Look
from fer_lab.live.record import Recorder
from fer_lab.live.window import Window

POLL = 0.03
"""Seconds for which a key waits at most where no frame comes."""

LINE_SECONDS = 1.0
NOTE_SECONDS = 3.0
LATEST = 30
"""Frames over which the rate and the latency that are shown are averaged."""

OnSeen = Callable[[Seen], object]


class Watched(NamedTuple):
    """How it went: the frames that were looked at, of those that came; the faces in them; seconds from a frame's coming
    to its being shown (its rows written), in the middle and for 99 of 100 of the last 10,000; whether Ctrl-C ended it."""

    frames: int
    grabbed: int
    faces: int
    seconds: float
    latency_p50: float
    latency_p99: float
    interrupted: bool


def watch(
    source: str,
    look: Look,
    show: bool = True,
    on_seen: OnSeen | None = None,
    record: Recorder | None = None,
    out: Path | None = None,
    every: int = 1,
    each: bool = False,
) -> Watched:
    """Until q, Esc, Ctrl-C, the window's closing, or the end of a file that plays in the camera's stead.

    `on_seen` gets every frame that was looked at. `record` files faces: in a window from key r on, else at once. Key s
    keeps the annotated frame in `out` or, where faces are recorded, files the one that is seen now, whatever its size and
    likeness. `each`: a file is read as fast as it is looked at, and no frame of it left out.
    Raises LiveError where there is no such camera or no window possible, CameraLost where the camera stops giving frames.
    """
    with interrupts() as asked, Camera(source, every, each) as camera:
        watching = Watching(camera, look, on_seen, record, out)
        if show:
            with Window(watching.title(), watching.keys()) as window:
                in_window(watching, window, asked)
        else:
            watching.recording = record is not None
            headless(watching, asked)
    return watching.told(asked.is_set())


def in_window(watching: Watching, window: Window, asked: threading.Event) -> None:
    while not (watching.done or asked.is_set()):
        grabbed = watching.camera.newest(POLL)
        if grabbed is None and watching.camera.over:
            return
        fresh = grabbed is not None and not watching.paused
        if grabbed is not None and fresh:
            watching.take(grabbed)
        keys = window.pressed()
        for key in keys:
            watching.press(key)
        if watching.seen is not None and watching.seen.frame.pixels is not None and (fresh or keys):
            share = window.scale(watching.seen.frame.pixels)
            window.show(watching.picture(share), watching.words(), watching.recording)
            window.title(watching.title())
        if grabbed is not None and fresh:
            watching.shown(grabbed)


def headless(watching: Watching, asked: threading.Event) -> None:
    due = monotonic() + LINE_SECONDS
    while not asked.is_set():
        grabbed = watching.camera.newest(LINE_SECONDS)
        if grabbed is None and watching.camera.over:
            return
        if grabbed is not None:
            watching.take(grabbed)
            watching.shown(grabbed)
        if monotonic() >= due:
            print(watching.line(), flush=True)
            due = monotonic() + LINE_SECONDS


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that the frame at hand is finished; a second one interrupts as ever."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class Watching:
    """One frame after the other, what the keys changed, and what was counted so far."""

    def __init__(
        self, camera: Camera, look: Look, on_seen: OnSeen | None, record: Recorder | None, out: Path | None
    ) -> None:
        self.camera, self.look, self.on_seen, self.record, self.out = camera, look, on_seen, record, out
        self.paused = self.recording = self.done = False
        self.mirrored = camera.name.removeprefix(PREFIX).isdigit()  # people know themselves from mirrors
        self.note, self.noted = "", 0.0
        self.seen: Seen | None = None
        self.frames = self.faces = 0
        self.ends: deque[float] = deque(maxlen=LATEST)  # when the latest frames were shown
        self.late: deque[float] = deque(maxlen=10_000)
        self.start = monotonic()

    def take(self, grabbed: Grabbed) -> None:
        frame = grabbed.frame
        assert frame.pixels is not None, "a camera's frames have no faults"
        self.seen = Seen(frame, tuple(self.look(frame.pixels)))
        self.frames += 1
        self.faces += len(self.seen.faces)
        if self.recording and self.record is not None:
            self.record(self.seen)
        if self.on_seen is not None:
            self.on_seen(self.seen)

    def shown(self, grabbed: Grabbed) -> None:
        now = monotonic()
        self.ends.append(now)
        self.late.append(now - grabbed.at)

    def keys(self) -> list[tuple[str, str]]:
        """What they do here, in the order in which they are shown."""
        keep = [("r", "record"), ("s", "take")] if self.record else [("s", "snapshot")]
        return [*keep, ("space", "pause"), ("m", "mirror"), ("q", "quit")]

    def press(self, key: str) -> None:
        if key in ("q", "escape"):
            self.done = True
        elif key == "space":
            self.paused = not self.paused
        elif key == "m":
            self.mirrored = not self.mirrored
        elif key == "r" and self.record is not None:
            self.recording = not self.recording
        elif key == "s":
            self.note, self.noted = self.kept(), monotonic()

    def kept(self) -> str:
        """What became of the frame that is shown."""
        if self.seen is None:
            return ""
        if self.record is not None:
            path = self.record(self.seen, anyway=True)
            return f"took {path.name}" if path else "nothing new to take"
        if self.out is None:
            return "nowhere to keep it: out=DIR"
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"snapshot-{datetime.now():%Y%m%d-%H%M%S}-{self.seen.frame.number:06d}.png"
        part = path.with_suffix(".part")
        Image.fromarray(self.picture()).save(part, "png")
        return f"kept {part.replace(path).name}"

    def picture(self, share: float = 1.0) -> Pixels:
        """The frame at hand, made larger by `share`, with all that is told of it."""
        assert self.seen is not None and self.seen.frame.pixels is not None
        pixels, faces = self.seen.frame.pixels, list(self.seen.faces)
        if self.mirrored:
            pixels, faces = mirrored(pixels, faces)
        if share != 1:
            pixels, faces = scaled(pixels, faces, share)  # first, so that words and lines are sharp
        return annotate(pixels, faces, self.look.net.classes, self.pace())

    def pace(self) -> str:
        """Rate and latency of the latest frames."""
        if len(self.ends) < 2:
            return ""
        rate = (len(self.ends) - 1) / max(self.ends[-1] - self.ends[0], 1e-9)
        latest = list(self.late)[-LATEST:]
        return f"{rate:.0f} frames/s  {1000 * sum(latest) / len(latest):.0f} ms"

    def title(self) -> str:
        name = self.look.net.name or "fer_lab"
        states = [word for word, holds in (("paused", self.paused), ("recording", self.recording)) if holds]
        return " · ".join([name, self.camera.name, *states])

    def words(self) -> str:
        """The line below the picture."""
        if self.note and monotonic() - self.noted < NOTE_SECONDS:
            return self.note
        if self.paused:
            return "paused"
        if self.recording and self.record is not None:
            return f"{self.record.subject} · {self.record.label} · {self.record.added:,}"
        return (
            {0: "no face", 1: "1 face"}.get(len(self.seen.faces), f"{len(self.seen.faces)} faces")
            if self.seen
            else ""
        )

    def line(self) -> str:
        """For a terminal."""
        seconds = monotonic() - self.start
        if self.seen is None:
            return f"{seconds:.0f} s · waiting for {self.camera.name}"
        faces = ", ".join(
            label_of(told, self.look.net.classes, len(self.seen.faces) > 1) for told in self.seen.faces
        )
        recorded = f" · {self.record.added:,} recorded" if self.record else ""
        return f"{seconds:.0f} s · {self.frames:,} frames · {self.pace()} · {faces or 'no face'}{recorded}"

    def told(self, interrupted: bool) -> Watched:
        middle, slow = np.percentile(list(self.late) or [0.0], (50, 99)).tolist()
        seconds = monotonic() - self.start
        return Watched(self.frames, self.camera.grabbed, self.faces, seconds, middle, slow, interrupted)


def mirrored(pixels: Pixels, faces: list[Told]) -> tuple[Pixels, list[Told]]:
    """The frame as in a mirror, and the faces where they are then; what is told of them stays."""
    width = pixels.shape[1]
    boxes = [
        (width - left - wide, top, wide, high) for left, top, wide, high in (told.face.box for told in faces)
    ]
    return pixels[:, ::-1], [moved(told, box) for told, box in zip(faces, boxes, strict=True)]


def scaled(pixels: Pixels, faces: list[Told], share: float) -> tuple[Pixels, list[Told]]:
    height, width = (max(1, round(length * share)) for length in pixels.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    larger = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    boxes = [tuple(round(length * share) for length in told.face.box) for told in faces]
    return np.asarray(larger), [moved(told, box) for told, box in zip(faces, boxes, strict=True)]


def moved(told: Told, box: tuple[int, ...]) -> Told:
    left, top, width, height = box
    return told._replace(face=told.face._replace(box=(left, top, width, height), eyes=None))
