"""Annotated pictures and videos, as files below one folder."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from PIL import Image

from fer_lab.live.drawing import annotate, with_room
from fer_lab.live.faces import Net, Seen, Told

if TYPE_CHECKING:
    from av.video.stream import VideoStream

CLOCK = 60_000
"""Ticks a second: all usual rates are whole numbers of them, and MPEG-4 has no finer ones."""

FRAGMENTS = {"movflags": "+hybrid_fragmented", "flush_packets": "1"}
ENCODERS = {"libx264": {"preset": "veryfast", "crf": "23", "bf": "0"}, "mpeg4": {"qscale": "4"}}
"""The best that is there. Frames that refer to later ones (bf) would shift the times of fragments."""

BT601, STUDIO = 6, 1
"""FFmpeg's numbers of the colours that OpenCV makes of RGB: players take large frames for BT.709 if nobody tells them."""

SMALL = 384
"""Pictures whose longer side is smaller are enlarged, so that words have room."""

WIDEST = 4096
"""Pixels of a video's longer side: what chips that play H.264 take; larger frames are shrunk."""

LONGEST = 120
"""Bytes of a file's name, before its checksum and its ending: 143 is the least that a file system takes."""


class Movie:
    """An mp4 of the annotated frames, with their own times; of the first frame's size up to WIDEST. Sound is not kept.

    Written in fragments, which any player shows up to a kill; `close` makes an ordinary mp4 of them.
    """

    def __init__(self, path: Path, net: Net, rate: float | None = None) -> None:
        import av

        self.path, self.net = path, net
        self.container = av.open(str(path), "w", format="mp4", options=FRAGMENTS)
        name = next(name for name in ENCODERS if name in av.codecs_available)
        around = Fraction(rate or 25).limit_denominator(1001)
        self.video: VideoStream = self.container.add_stream(name, around)  # type: ignore[assignment]
        coder = self.video.codec_context
        coder.options, coder.gop_size = ENCODERS[name], max(1, round(around * 2))
        coder.pix_fmt, coder.colorspace, coder.color_range = "yuv420p", BT601, STUDIO
        coder.time_base = self.clock = Fraction(1, CLOCK)
        self.last = -1

    def write(self, seen: Seen) -> None:
        """Frames without pixels are left out: the one before stays longer."""
        import av
        import cv2

        if seen.frame.pixels is None:
            return
        drawn = annotate(seen.frame.pixels, seen.faces, self.net.classes)
        if self.last < 0:
            self.video.height, self.video.width = movie_sides(*drawn.shape[:2])
        size = self.video.width, self.video.height
        if drawn.shape[:2] != size[::-1]:
            drawn = np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), np.uint8)
        planes: Any = cv2.cvtColor(drawn, cv2.COLOR_RGB2YUV_I420)  # a tenth of the time of FFmpeg's
        frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
        self.last = max(self.last + 1, round((seen.frame.time_s or 0) * CLOCK))
        frame.pts, frame.time_base = self.last, self.clock
        self.container.mux(self.video.encode(frame))

    def close(self) -> None:
        if self.last >= 0:
            self.container.mux(self.video.encode(None))
        self.container.close()
        if self.last < 0:
            self.path.unlink(missing_ok=True)


def movie_sides(*sides: int) -> list[int]:
    """Even ones, as yuv420p has a colour for every second pixel."""
    share = min(1.0, WIDEST / max(sides))
    return [max(2, int(side * share) // 2 * 2) for side in sides]


def save_picture(seen: Seen, net: Net, path: Path) -> None:
    """A PNG; small pictures are enlarged."""
    assert seen.frame.pixels is not None
    pixels, faces = seen.frame.pixels, seen.faces
    times = -(-SMALL // max(pixels.shape[:2]))
    if times > 1:
        pixels = np.repeat(np.repeat(pixels, times, 0), times, 1)
        faces = tuple(enlarged(told, times) for told in faces)
    image = Image.fromarray(annotate(with_room(pixels, faces, net.classes), faces, net.classes))
    image.save(path, "png", compress_level=1)  # a third of the time of the usual level, a tenth larger


def enlarged(told: Told, times: int) -> Told:
    left, top, width, height = (length * times for length in told.face.box)
    return told._replace(face=told.face._replace(box=(left, top, width, height)))


def file_name(source: str, suffix: str) -> PurePosixPath:
    """Where what belongs to a source is written: its own name and `suffix`, below any folder and never outside it.

    Names that had to be changed for that (steps upwards, signs that other systems refuse, length, folders named as what
    is written) end in a checksum of the whole, so that no two sources share a file.
    """
    kept = [allowed(part) for part in source.split("/") if part] or ["_"]
    kept[:-1] = [re.sub(r"\.(png|mp4)$", r"_\1", folder) for folder in kept[:-1]]
    if kept != source.split("/"):
        kept[-1] += f"-{crc32(source.encode('utf-8', 'surrogatepass')):08x}"
    return PurePosixPath(*kept[:-1], kept[-1] + suffix)


def allowed(part: str) -> str:
    """The part of a name, in signs and of a length that all systems take."""
    known = re.sub(r"[^\w .()+=@,-]", "_", part).encode()[:LONGEST].decode(errors="ignore")
    return known.strip(" ").lstrip(".-") or "_"
