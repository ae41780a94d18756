"""Frames of a video file by PyAV: upright, with their own times, and going on where some are broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fer_lab.data.images import PIXEL_LIMIT
from fer_lab.live.faces import Frame, LiveError, Pixels

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,yuv4mpegpipe,mjpeg,"
    "m4v,ivf,nut,mxf,rm"
)
"""What is tried. Not playlists and their like: reading those opens other files, and asks other machines."""

BROKEN_LIMIT = 100
"""So many broken frames in a row end a video."""

SHORT = 0.25
"""Seconds that may be missing of what the file says it holds (or two frames); more, and it was cut off."""

SQUARE_PIXELS = (0.25, 4.0)
"""Pixels narrower or wider than that are a slip of the file's writer; they are shown as squares."""


class Info(NamedTuple):
    """What a source says of itself, where it does: number of frames (an estimate), frames a second."""

    frames: int | None = None
    rate: float | None = None


class _Fault(Exception):
    """Why no more frames come; the text is short."""


def video_frames(name: str, path: Path, every: int) -> Iterator[Frame]:
    """Every `every`th frame, and one with a fault for each that is broken, or for the file. Raises LiveError without PyAV."""
    number = -1
    try:
        with opened(path) as container:
            for number, (time, pixels, fault) in enumerate(_decoded(container, every)):
                if fault or pixels is not None:
                    yield Frame(name, number, time, pixels, fault)
    except _Fault as error:
        yield Frame(name, number + 1, None, None, str(error))


def video_info(path: Path) -> Info:
    try:
        with opened(path) as container:
            stream = video_stream(container)
            rate = float(stream.average_rate or stream.guessed_rate or 0) or None
            seconds = length(stream) or (container.duration or 0) / 1e6
            known = stream.frames or (round(seconds * rate) if rate and seconds else None)
            return Info(known, rate)
    except _Fault:
        return Info()


def opened(path: Path) -> InputContainer:
    """Raises _Fault, and LiveError where PyAV is missing."""
    try:
        import av
    except ImportError:
        raise LiveError("videos need PyAV: pip install 'fer_lab[live]'") from None
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
        "max_pixels": str(PIXEL_LIMIT),
    }
    try:
        return av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise _Fault(f"not a video, or cut off before its index ({_short(error)})") from error


def video_stream(container: InputContainer) -> VideoStream:
    """The best one that is no cover picture; raises _Fault where there is none, or where its frames are too large."""
    from av.stream import Disposition

    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        raise _Fault("no video in it")
    best = container.streams.best("video")
    stream: VideoStream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise _Fault("a video of a kind that is not known here")
    if stream.codec_context.width * stream.codec_context.height > PIXEL_LIMIT:
        raise _Fault(f"too large (frames of more than {PIXEL_LIMIT:,} pixels)")
    return stream


def length(stream: VideoStream) -> float:
    """Seconds from the first frame to the end of the last, 0 where the file does not say."""
    base = stream.time_base or 0
    if stream.duration:
        return float(stream.duration * base)
    parts = stream.metadata.get("DURATION", "").split(":")  # Matroska's way, from 0 on: 00:00:02.400000000
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds - float((stream.start_time or 0) * base)


class _Shown:
    """Frames as a player shows them: pixels square, upright."""

    def __init__(self, stream: VideoStream) -> None:
        from av.video.reformatter import VideoReformatter

        self.reformatter = VideoReformatter()  # one for all frames: it keeps its tables
        shape = float(stream.sample_aspect_ratio or 1)
        self.shape = shape if SQUARE_PIXELS[0] <= shape <= SQUARE_PIXELS[1] else 1.0

    def __call__(self, frame: VideoFrame) -> Pixels:
        width = None if self.shape == 1 else round(frame.width * self.shape)
        pixels = np.asarray(self.reformatter.reformat(frame, width, None, "rgb24").to_ndarray(), np.uint8)
        quarters = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


class _Clock:
    """Seconds since the first frame that has a time, and when the last one ends."""

    def __init__(self) -> None:
        self.start: float | None = None
        self.end = 0.0

    def __call__(self, frame: VideoFrame | None) -> float | None:
        if frame is None or frame.time is None or frame.time_base is None:
            return None
        self.start = frame.time if self.start is None else self.start
        time = frame.time - self.start
        self.end = max(self.end, time + float((frame.duration or 0) * frame.time_base))
        return round(time, 6)


def _decoded(container: InputContainer, every: int) -> Iterator[tuple[float | None, Pixels | None, str]]:
    """Seconds since the first frame, pixels and fault of every frame, in order; pixels only of each `every`th."""
    stream = video_stream(container)
    clock, shown = _Clock(), _Shown(stream)
    number = broken = 0
    for number, frame in enumerate(_frames(container, stream), 1):
        time = clock(frame)
        pixels = None
        if frame is not None and not frame.is_corrupt:
            broken = 0
            pixels, fault = (None, "") if (number - 1) % every else _converted(shown, frame)
        elif (broken := broken + 1) > BROKEN_LIMIT:
            raise _Fault("damaged from here on")
        else:
            fault = "damaged frame"
        yield time, pixels, fault
    if not number:
        raise _Fault("no frames in it")
    if length(stream) - clock.end > max(SHORT, 2 / (stream.average_rate or 30)):
        raise _Fault(f"cut off after {clock.end:.1f} of {length(stream):.1f} seconds")


def _converted(shown: _Shown, frame: VideoFrame) -> tuple[Pixels | None, str]:
    import av

    try:
        return shown(frame), ""
    except (av.FFmpegError, ValueError, MemoryError) as error:
        return None, f"damaged frame ({_short(error)})"


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame | None]:
    """Frames as they are shown one after the other; None for a packet that cannot be decoded."""
    import av

    for packet in _packets(container, stream):
        try:
            yield from packet.decode()
        except (av.FFmpegError, ValueError):
            yield None


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:
            return  # at the end, when ours is done, PyAV stumbles over streams that began in the midst of the file
        except av.FFmpegError as error:
            raise _Fault(f"damaged from here on ({_short(error)})") from error
        if packet is None:
            return
        yield packet


def _short(error: Exception) -> str:
    """FFmpeg's words without its number and the file's name."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).lower()
