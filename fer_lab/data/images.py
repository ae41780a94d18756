"""From the bytes of any picture file to 8-bit pixels, and from those to the square the net sees."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

DECODER_VERSION = 1
"""Raise it when the same bytes give other pixels: every cache is then rebuilt."""

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".png",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".webp",
    ".pgm",
    ".ppm",
    ".pnm",
    ".jp2",
    ".avif",
)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What is tried. Not EPS and its like: opening those runs other programs."""

MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"RIFF")
PIXEL_LIMIT = 50_000_000
"""Pictures that claim more are refused from their header; 50 megapixels decode to 150 MB."""

BACKDROP = 128
"""Mid grey, on which transparent pictures are laid."""

DEEP_RANGES = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)
TRUNCATION = (
    "truncated",
    "not processed",
    "unexpected end",
    "broken data stream",
    "not enough",
    "eof",
    "buffer",
)


class BadImage(ValueError):
    """A picture that must not enter training; the text is the reason, short enough to count by."""


def decode(data: bytes, name: str, blank: bool = False) -> NDArray[np.uint8]:
    """Pixels (H, W) of a grey picture or (H, W, 3) of a coloured one, upright by its EXIF orientation.

    Palettes of greys give grey. Pictures with alpha are laid on mid grey. Deeper than 8 bits are scaled
    from the smallest of 8, 10, 12, 14 and 16 bits that holds their brightest pixel.
    Raises BadImage: zero bytes, not an image, truncated, damaged, animated, too large, blank (unless `blank` allows it).
    """
    if not data:
        raise BadImage("zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused or repaired here
            pixels = _pixels(_upright(_opened(data)))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("truncated" if data.startswith(MAGIC) else "not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large (more than {PIXEL_LIMIT:,} pixels)") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        text = str(error).lower()
        reason = "truncated" if any(word in text for word in TRUNCATION) else f"damaged ({error or name})"
        raise BadImage(reason) from error
    if not blank:
        refuse_blank(pixels)
    return pixels


def refuse_blank(pixels: NDArray[np.uint8]) -> None:
    """Raise BadImage where every pixel is the same: FER2013 holds a dozen all-black pictures."""
    if pixels.min() == pixels.max():
        raise BadImage("blank")


def square(pixels: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    """The centre square of (H, W) or (H, W, 3) pixels as (channels, size, size).

    Grey is ITU-R 601 luma; bicubic with antialiasing; pixels that fit already are not resampled.
    """
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[top : top + side, left : left + side]
    if channels == 1:
        pixels = grey(pixels)
    if side != size:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    if pixels.ndim == 3:
        return pixels.transpose(2, 0, 1)
    return np.broadcast_to(pixels, (channels, size, size))


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) by ITU-R 601 luma; grey pixels come back as they are."""
    if pixels.ndim == 2:
        return pixels
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))


def _opened(data: bytes) -> Image.Image:
    image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise BadImage(f"too large (more than {PIXEL_LIMIT:,} pixels)")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photograph and its preview
        raise BadImage("animated")
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and not ("exif" in image.info or "xmp" in image.info):
        return image  # the usual case, without parsing what is not there
    return ImageOps.exif_transpose(image)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "L" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode.startswith(("I", "F")):
        return _eight_bits(np.asarray(image).astype(np.float64))
    if image.has_transparency_data:
        image = _on_backdrop(image)
    if image.mode == "P":
        image = image.convert("RGB")
        grey = all(low == 0 == high for low, high in _chroma(image))
        return np.asarray(image.getchannel(0) if grey else image)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _chroma(image: Image.Image) -> list[tuple[int, int]]:
    """Range of red - green and of red - blue."""
    red, green, blue = np.asarray(image).astype(np.int16).transpose(2, 0, 1)
    return [(int((red - other).min()), int((red - other).max())) for other in (green, blue)]


def _on_backdrop(image: Image.Image) -> Image.Image:
    grey = image.mode in ("L", "LA", "La")
    over = image.convert("LA" if grey else "RGBA")
    below = Image.new(over.mode, over.size, (BACKDROP,) * (len(over.getbands()) - 1) + (255,))
    opaque = Image.composite(over, below, over.getchannel("A"))
    return opaque.convert("L" if grey else "RGB")


def _eight_bits(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= DEEP_RANGES[-1]):
        raise BadImage(f"values {low:g} to {high:g} are outside 0 to {DEEP_RANGES[-1]}")
    fractions = high <= 1 and bool((values % 1).any())
    top = 1 if fractions else next(limit for limit in DEEP_RANGES if high <= limit)
    return np.rint(values * (255 / top)).astype(np.uint8)
