"""From what a user names to frames: pictures, folders and patterns of them, and videos, one frame at a time."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.images import BadImage, decode
from fer_lab.live.faces import Frame, Pixels
from fer_lab.live.listing import Source, Sources, listed
from fer_lab.live.video import Info, video_frames, video_info

__all__ = ["Info", "Source", "Sources", "count", "frames", "info", "listed", "rate"]

BYTE_LIMIT = 100_000_000
"""Larger picture files are not read: 50 megapixels, the decoder's limit, are fewer bytes in any usual format."""


def frames(source: Source, every: int = 1) -> Iterator[Frame]:
    """The frames whose number is a multiple of `every`, in order, one in memory at a time. What cannot be read is a
    frame with a fault. Raises LiveError for a video where PyAV is missing, nothing else."""
    fault = unreadable(source.path)
    if fault:
        yield Frame(source.name, 0, None, None, fault)
    elif source.kind == "picture":
        yield picture(source)
    else:
        yield from video_frames(source.name, source.path, every)


def info(source: Source) -> Info:
    """Opens a video for a moment; a picture is one frame."""
    if source.kind == "picture" or unreadable(source.path):
        return Info(1)
    return video_info(source.path)


def count(source: Source) -> int | None:
    """Estimated frames; None where the file does not say."""
    return info(source).frames


def rate(source: Source) -> float | None:
    """Frames a second, on average."""
    return info(source).rate


def picture(source: Source) -> Frame:
    """Number 0, without a time; grey pictures have three equal channels."""
    try:
        if source.path.stat().st_size > BYTE_LIMIT:
            raise BadImage(f"too large (more than {BYTE_LIMIT:,} bytes)")
        pixels = decode(source.path.read_bytes(), source.name, blank=True)
    except (BadImage, OSError) as error:
        return Frame(source.name, 0, None, None, reason(error))
    return Frame(source.name, 0, None, coloured(pixels))


def coloured(pixels: NDArray[np.uint8]) -> Pixels:
    """(H, W, 3), contiguous."""
    if pixels.ndim == 2:
        pixels = np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    return np.ascontiguousarray(pixels)


def unreadable(path: Path) -> str:
    """Why the file must not even be opened (a pipe would wait for ever), or nothing."""
    try:
        facts = path.stat()
    except OSError as error:
        return reason(error)
    if stat.S_ISDIR(facts.st_mode):
        return "a folder, not a file"
    if not stat.S_ISREG(facts.st_mode):
        return "not a regular file"
    return "" if facts.st_size else "zero bytes"


def reason(error: Exception) -> str:
    """In a few words, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
