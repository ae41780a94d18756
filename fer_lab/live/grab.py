"""A camera's newest frame: a thread reads whatever comes, so that nobody ever looks at an old one."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path
from threading import Condition, Event, Thread
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from fer_lab.live.faces import Frame, LiveError, Pixels

if TYPE_CHECKING:
    import cv2

PREFIX = "camera:"
SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "tcp", "udp", "srt")
PATIENCE = 10.0
"""Seconds that a camera on the network may take to answer, and any camera between two frames."""

LEAVE = 2.0
"""Seconds for which the end waits for a read that may be stuck in a network."""

STILL_THERE = "is it plugged in and switched on, and does no other program use it?"
STILL_SHOWN = "is it still there, and does another player show it?"
PLAYER = "check it with another player"
ADVICE = "camera:0 is this machine's first, camera:rtsp://… one on the network"


class CameraLost(RuntimeError):
    """A camera that worked stopped giving frames."""


class Grabbed(NamedTuple):
    """A frame, and when it came (by time.monotonic)."""

    frame: Frame
    at: float


class Camera:
    """The frames of `camera:N`, of a device (`camera:/dev/video2`), of an address (`camera:rtsp://…`), or of a video file
    that plays at its own rate in a camera's stead.

    Every `every`th frame is kept until a newer one comes; with `each`, until somebody takes it: a file is then read as
    fast as that. Used in a `with`. Raises LiveError where there is no such camera.
    """

    def __init__(self, source: str, every: int = 1, each: bool = False) -> None:
        place = source.removeprefix(PREFIX)
        # Of files and devices the last part: this machine's folders are not told in results.
        remote, self.every, self.each = "://" in place, every, each
        self.name = PREFIX + (without_password(place) if remote else Path(place).name)
        self.file = not place.isdigit() and Path(place).is_file()
        self.advice = STILL_SHOWN if remote or self.file else STILL_THERE
        self.capture = opened(place)
        self.fresh, self.closing = Condition(), Event()
        self.slot: Grabbed | None = None
        self.over, self.fault, self.grabbed = False, "", 0
        self.last = self.first = monotonic()
        self.thread = Thread(target=self._run, name="camera", daemon=True)

    def __enter__(self) -> Camera:
        self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.closing.set()
        with self.fresh:
            self.fresh.notify_all()
        self.thread.join(LEAVE)

    def newest(self, patience: float) -> Grabbed | None:
        """The newest frame that nobody had yet; None where none came within `patience` seconds, or a file has ended (`over`).

        Raises CameraLost where the camera is: it ended, or has been silent for too long; LiveError where a file gave nothing.
        """
        with self.fresh:
            self.fresh.wait_for(lambda: self.slot is not None or self.over, patience)
            grabbed, self.slot = self.slot, None
            self.fresh.notify_all()
        if self.file and self.over and not self.grabbed:
            raise LiveError(f"{self.name} gave no frame{self.fault}; {PLAYER}")
        if grabbed is not None or (self.file and not self.fault):
            return grabbed
        if self.over:
            raise CameraLost(f"{self.name} is lost after {self.grabbed:,} frames{self.fault}; {self.advice}")
        if monotonic() - self.last > PATIENCE:
            raise CameraLost(
                f"{self.name} gave {self.grabbed:,} frames, and none for {PATIENCE:.0f} s; {self.advice}"
            )
        return None

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:  # it belongs to who asks for the next frame
            self.fault = f" ({error})"
        finally:
            with self.fresh:
                self.over = True
                self.fresh.notify_all()
            self.capture.release()

    def _read(self) -> None:
        import cv2

        for number in count():
            if self.closing.is_set() or not self.capture.grab():
                return
            self.last = monotonic()
            if not number:
                self.first = self.last
            self.grabbed += 1
            if number % self.every:
                continue
            good, pixels = self.capture.retrieve()
            if good and not self._put(number, np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)):
                return

    def _put(self, number: int, pixels: Pixels) -> bool:
        """Whether to go on."""
        import cv2

        time_s = self.last - self.first
        if self.file:
            time_s = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if not self.each and self.closing.wait(self.first + time_s - monotonic()):
                return False
        with self.fresh:
            if self.each:
                self.fresh.wait_for(lambda: self.slot is None or self.closing.is_set())
            self.slot = Grabbed(Frame(self.name, number, time_s, pixels), monotonic())
            self.fresh.notify_all()
        return True


def opened(place: str) -> cv2.VideoCapture:
    """A device by its number or path, a file, or an address; raises LiveError that names the devices there are."""
    device = re.fullmatch(
        r"/dev/video(\d+)|(\d+)", os.path.realpath(place) if place.startswith("/dev/") else place
    )
    if device:
        return _device(int(device[1] or device[2]))
    scheme = urlsplit(place).scheme if "://" in place else ""
    if scheme not in SCHEMES and not Path(place).is_file():
        raise LiveError(f"camera:{without_password(place)} is no camera; {ADVICE}. {devices()}")
    capture = _quiet_opencv().VideoCapture(place, *_patient())
    if not capture.isOpened():
        why = "does not answer" if scheme else "cannot be played"
        raise LiveError(f"camera:{without_password(place)} {why}; {PLAYER}")
    return capture


def _device(number: int) -> cv2.VideoCapture:
    cv2 = _quiet_opencv()
    path = Path(f"/dev/video{number}")
    known = Path("/dev").is_dir() and os.name == "posix" and os.uname().sysname == "Linux"
    if known and not path.exists():
        raise LiveError(f"camera:{number} is not there. {devices()}")
    if known and not os.access(path, os.R_OK | os.W_OK):
        raise LiveError(
            f"camera:{number} may not be opened by you: join the group of {path} (usually `video`)"
        )
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise LiveError(f"camera:{number} cannot be opened: another program may use it. {devices()}")
    return capture


def devices() -> str:
    """The cameras of this machine, as a sentence."""
    found = sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name))
    if found:
        return f"Devices here: {', '.join(map(str, found))}"
    return "This machine shows no camera (no /dev/video*): plug one in, or let page=true use the browser's"


def without_password(place: str) -> str:
    """An address as it may be shown and written: without user, password and query."""
    if "://" not in place:
        return place
    parts = urlsplit(place)
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def _patient() -> tuple[int, list[int]]:
    """What FFmpeg is opened with: an address that does not answer is given up."""
    import cv2

    limit = round(PATIENCE * 1000)
    return cv2.CAP_FFMPEG, [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]


def _quiet_opencv():  # type: ignore[no-untyped-def]  # the module, whose warnings our sentences replace
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError:
        raise LiveError("cameras need OpenCV: pip install 'fer_lab[live]'") from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2
