"""Every kind of picture file a data set may hold, made with Pillow, tifffile or by hand."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image

from fer_lab.data.images import PIXEL_LIMIT, BadImage, decode, square

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def test_grey_and_rgb_come_back_as_they_are() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode(saved(Image.fromarray(RAMP)), "a.png"), RAMP)
    assert np.array_equal(decode(saved(Image.fromarray(colour)), "a.png"), colour)
    assert np.array_equal(decode(saved(Image.fromarray(colour), "BMP"), "a.bmp"), colour)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_every_format_is_read(kind: str) -> None:
    pixels = decode(saved(Image.fromarray(np.kron(RAMP, np.ones((4, 4), np.uint8))), kind), "picture")
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    assert np.abs(grey[::4, ::4].astype(float) - RAMP).max() < 24


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_keep_their_range(order: str) -> None:
    deep = (RAMP.astype(np.uint16) * 257).astype(f"{order}u2")
    assert np.array_equal(decode(grey_tiff(deep, byteorder=order), "a.tif"), RAMP)


def test_twelve_bits_in_a_sixteen_bit_file_are_not_black() -> None:
    values = np.array([[0, 1024], [2048, 4095]], dtype=np.uint16)
    assert decode(saved(Image.fromarray(values)), "a.png").tolist() == [[0, 64], [128, 255]]


def test_floats_between_0_and_1() -> None:
    values = np.array([[0.0, 0.5], [0.25, 1.0]], dtype=np.float32)
    assert decode(grey_tiff(values), "a.tif").tolist() == [[0, 128], [64, 255]]


def test_palette_is_looked_up_and_grey_palettes_give_grey() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 0]], dtype=np.uint8), "L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert decode(saved(image), "a.png").tolist() == [
        [[255, 0, 0], [0, 255, 0]],
        [[0, 0, 255], [255, 0, 0]],
    ]
    image.putpalette([9, 9, 9, 200, 200, 200, 30, 30, 30])
    assert decode(saved(image), "a.png").tolist() == [[9, 200], [30, 9]]


def test_cmyk_is_turned_into_rgb() -> None:
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:8, :, 3] = 255  # black ink above, bare paper below
    pixels = decode(saved(Image.fromarray(ink, "CMYK"), "JPEG", quality=95), "a.jpg")
    assert pixels.shape == (16, 16, 3)
    assert pixels[:7].max() < 12 and pixels[9:].min() > 243


def test_alpha_is_laid_on_mid_grey() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (255, 255, 255, 128)])
    solid, clear, half = decode(saved(image), "a.png")[0].tolist()
    assert solid == [255, 0, 0]
    assert clear == [128, 128, 128]
    assert all(abs(value - 192) <= 1 for value in half)
    grey = Image.new("LA", (2, 1))
    grey.putdata([(250, 255), (250, 0)])
    assert decode(saved(grey), "a.png").tolist() == [[250, 128]]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, turns: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves = np.zeros((32, 64), dtype=np.uint8)
    halves[:, 32:] = 255
    pixels = decode(saved(Image.fromarray(halves), kind, exif=exif), "a.jpg")
    expected = np.rot90(halves, turns)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 2


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8))
BAD = [
    ("zero bytes", b""),
    ("not an image", b"<html>Please log in to download</html>"),
    ("not an image", b"\x00\x01\x02" * 500),
    ("blank", saved(Image.new("L", (48, 48)), "JPEG")),
    ("blank", saved(Image.new("RGB", (48, 48), (7, 7, 7)), "PNG")),
    ("animated", animated("GIF")),
    ("animated", animated("PNG")),
    ("animated", animated("WEBP")),
    ("animated", animated("TIFF")),
    ("truncated", saved(NOISE, "JPEG")[:900]),
    ("truncated", saved(NOISE, "PNG")[:2000]),
    ("truncated", saved(NOISE, "TIFF")[:2000]),
    ("truncated", saved(NOISE, "BMP")[:2000]),
    ("truncated", saved(NOISE, "JPEG")[:20]),
    ("too large", png_header(60_000, 60_000)),
    ("too large", png_header(8_000, 8_000)),
    ("too large", png_header(10_000, 10_000)),
    ("values", grey_tiff(np.array([[-5.0, 3.0]], dtype=np.float32))),
    ("values", grey_tiff(np.array([[np.nan, 3.0]], dtype=np.float32))),
]


@pytest.mark.parametrize(("reason", "data"), BAD)
def test_bad_pictures_are_refused_with_the_reason(reason: str, data: bytes) -> None:
    with pytest.raises(BadImage, match=f"^{reason}"):
        decode(data, "bad.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"])
def test_a_file_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    whole = saved(NOISE, kind)
    pixels = decode(whole, "whole")
    for cut in np.linspace(1, len(whole) - 1, 40).astype(int):
        try:
            assert np.array_equal(decode(whole[:cut], "cut"), pixels)
        except BadImage:
            continue


def test_bombs_are_refused_from_the_header() -> None:
    side = int(PIXEL_LIMIT**0.5)
    with pytest.raises(BadImage, match="truncated"):
        decode(png_header(side, side), "just allowed, so its missing pixels are found")


def test_square_of_a_fitting_picture_is_the_picture() -> None:
    assert np.array_equal(square(RAMP, 16, 1), RAMP[None])
    assert np.array_equal(square(RAMP, 16, 3), np.stack([RAMP] * 3))
    colour = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(square(colour, 16, 3), colour.transpose(2, 0, 1))


def test_square_crops_the_centre() -> None:
    wide = np.tile(np.arange(30, dtype=np.uint8), (10, 1))
    assert np.array_equal(square(wide, 10, 1)[0], wide[:, 10:20])
    assert np.array_equal(square(wide.T, 10, 1)[0], wide.T[10:20])


def test_square_antialiases() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = square(board, 16, 1)
    assert small.shape == (1, 16, 16) and np.abs(small.astype(int) - 127).max() <= 3


def test_square_turns_colour_into_luma() -> None:
    colour = np.zeros((4, 4, 3), dtype=np.uint8)
    colour[..., 0], colour[..., 1], colour[..., 2] = 200, 100, 50
    assert set(square(colour, 4, 1).ravel().tolist()) == {round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)}
