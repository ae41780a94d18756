"""From files to frames: pictures and videos of all kinds, broken and hostile ones."""

from __future__ import annotations

import os
import socket
import sys
import tracemalloc
import zlib
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from fer_lab.live.faces import Frame, LiveError
from fer_lab.live.source import Source, count, frames, info, listed, rate

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8))


def bars(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A frame by whose pixels its number can be read after any codec: 8 bits, the highest first, as bars."""
    bits = np.array([number >> bit & 1 for bit in range(7, -1, -1)])
    return np.broadcast_to((40 + 170 * bits.repeat(width // 8))[None, :, None], (height, width, 3)).astype(
        np.uint8
    )


def number_of(pixels: np.ndarray) -> int:
    bits = pixels[:, :, 1].mean(axis=0).reshape(8, -1).mean(axis=1) > 125
    return int("".join(str(int(bit)) for bit in bits), 2)


def film(
    path: Path, count: int = 40, codec: str = "libx264", times=None, turn: int = 0, **options: str
) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "8"})
        stream.width, stream.height = 96, 64
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if turn:
            stream.set_display_rotation(turn)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(bars(number), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path | str, every: int = 1) -> list[Frame]:
    (source,) = listed(str(path))
    return list(frames(source, every))


def faults(path: Path | str) -> list[str]:
    return [frame.fault for frame in read(path) if frame.fault]


# Pictures


def test_a_picture_is_one_frame_upright_and_in_three_channels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    PICTURE.convert("L").save(tmp_path / "grey.png")
    (turned,), (grey,) = read(tmp_path / "turned.png"), read(tmp_path / "grey.png")
    assert np.array_equal(turned.pixels, np.rot90(np.asarray(PICTURE), -1))
    assert np.array_equal(grey.pixels, np.asarray(PICTURE.convert("L").convert("RGB")))
    assert (grey.source, grey.number, grey.time_s, grey.fault) == ("grey.png", 0, None, "")
    assert info(listed(str(tmp_path / "grey.png"))[0]) == (1, None)


def test_a_blank_picture_is_a_picture(tmp_path):
    Image.new("RGB", (9, 7)).save(tmp_path / "black.png")
    assert not read(tmp_path / "black.png")[0].pixels.any()


# Videos


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.webm", "libvpx"),
     ("a.mov", "mjpeg"), ("a.gif", "gif"), ("a.ivf", "libvpx"), ("a.nut", "mpeg4"), ("a.mxf", "mpeg2video"),
     ("a.rm", "rv20")],
)  # fmt: skip
def test_frames_come_in_order_with_their_times(tmp_path, name, codec):
    path = film(tmp_path / name, 20, codec)
    found = read(path)
    assert (
        [number_of(frame.pixels) for frame in found] == [frame.number for frame in found] == list(range(20))
    )
    assert [frame.time_s for frame in found] == pytest.approx([number / 25 for number in range(20)], abs=1e-3)
    assert found[0].pixels.shape == (64, 96, 3) and found[0].pixels.flags.c_contiguous
    assert {frame.source for frame in found} == {name} and not any(frame.fault for frame in found)
    (source,) = listed(str(path))
    assert source.kind == "video" and abs(count(source) - 20) <= 1
    assert rate(source) == pytest.approx(25)


def test_every_third_frame_keeps_its_number_and_time(tmp_path):
    found = read(film(tmp_path / "a.mp4", 20), every=3)
    assert (
        [frame.number for frame in found]
        == [number_of(frame.pixels) for frame in found]
        == list(range(0, 20, 3))
    )
    assert found[-1].time_s == pytest.approx(18 / 25)


def test_times_are_those_of_the_file_where_the_rate_varies(tmp_path):
    times = [1000, 1040, 1120, 1920, 1960, 3000]  # a multiple of the codec's 40 ms
    found = read(film(tmp_path / "a.mkv", 6, times=times))
    assert [frame.time_s for frame in found] == pytest.approx(
        [(time - 1000) / 1000 for time in times], abs=2e-3
    )


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_turned_film_is_shown_as_opencv_shows_it(tmp_path, turn):
    path = film(tmp_path / "a.mp4", 4, turn=turn)
    found, capture = read(path)[2].pixels, cv2.VideoCapture(str(path))
    _, wanted = [capture.read() for _ in range(3)][-1]
    assert found.shape == wanted.shape == ((64, 96, 3) if turn == 180 else (96, 64, 3))
    assert np.abs(found.astype(int) - wanted[..., ::-1]).mean() < 4


def test_wide_pixels_are_shown_square(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(bars(170), format="rgb24")))
        container.mux(stream.encode(None))
    (frame,) = read(path)
    assert frame.pixels.shape == (64, 192, 3) and number_of(frame.pixels) == 170


def test_frames_are_not_gathered_and_a_reader_that_stops_closes_the_file(tmp_path):
    (source,) = listed(str(film(tmp_path / "a.mp4", 200)))
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
    reader = frames(source, 1)
    tracemalloc.start()
    for _ in islice(reader, 150):
        pass
    assert tracemalloc.get_traced_memory()[1] < 30 * 96 * 64 * 3
    tracemalloc.stop()
    reader.close()
    assert before == (len(list(descriptors.iterdir())) if before else 0)


# Broken ones


def test_a_film_cut_off_gives_what_is_there_and_says_so(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        path = film(tmp_path / name, 60, **({"movflags": "faststart"} if name == "a.mp4" else {}))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        found = read(path)
        whole = [frame for frame in found if not frame.fault]
        assert 8 < len(whole) < 55 and all(number_of(frame.pixels) == frame.number for frame in whole[:8])
        assert found[-1].fault.startswith("cut off after ") and found[-1].fault.endswith(" of 2.4 seconds")
        assert [frame.number for frame in found] == list(range(len(found)))


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_no_frame_is_told_twice_however_early_a_film_is_cut_off(tmp_path, whole):
    path = film(tmp_path / "a.mkv", 60, "mjpeg")
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: starts[whole]])
    found = read(path)
    assert [(frame.number, bool(frame.fault)) for frame in found] == [
        (number, number == whole) for number in range(whole + 1)
    ]


def test_a_film_goes_on_after_broken_frames(tmp_path):
    path = film(tmp_path / "a.mov", 60, "mjpeg")
    data = bytearray(path.read_bytes())
    pictures = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xd8"]
    assert len(pictures) == 60
    for broken in (20, 21, 40):
        data[pictures[broken] : pictures[broken + 1]] = bytes(pictures[broken + 1] - pictures[broken])
    path.write_bytes(data)
    found = read(path)
    assert [frame.number for frame in found if frame.fault] == [20, 21, 40]
    assert {frame.fault for frame in found} == {"", "damaged frame"}
    assert [number_of(frame.pixels) for frame in found if not frame.fault] == [
        number for number in range(60) if number not in (20, 21, 40)
    ]


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_noise_in_a_film_raises_nothing(tmp_path, name):
    path = film(tmp_path / name, 40)
    data = path.read_bytes()
    for seed in range(6):
        random = np.random.default_rng(seed)
        broken = np.frombuffer(data, np.uint8).copy()
        places = random.integers(0, len(data), 60)
        broken[places] = random.integers(0, 256, 60)
        path.write_bytes(broken.tobytes())
        found = read(path)
        assert found and all((frame.pixels is None) == bool(frame.fault) for frame in found)


def test_a_stream_that_begins_in_the_midst_of_a_film_does_not_end_it(tmp_path):
    path = film(tmp_path / "a.ts", 250)  # longer than what is looked at before the first frame is read
    data = path.read_bytes()
    middle = len(data) // 188 // 2 * 188
    # A packet of another programme's sound, which no table announces: sync byte, number 0x123, a PES header, padding.
    sound = b"\x47\x41\x23\x10\0\0\1\xc0\0\x08\x80\x80\x05\x21\0\x01\0\x01"
    path.write_bytes(data[:middle] + sound.ljust(188, b"\xff") * 3 + data[middle:])
    found = read(path)
    assert [number_of(frame.pixels) for frame in found] == list(range(250))


def half(picture: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""
    buffer = BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = b"\0\0\xea\x60" * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


HOSTILE = {
    "empty.jpg": (b"", "zero bytes"),
    "empty.mp4": (b"", "zero bytes"),
    "text.mp4": (b"not a film\n" * 50, "not a video, or cut off before its index"),
    "text.jpg": (b"not a picture\n" * 50, "not an image"),
    "half.jpg": (half(PICTURE, "JPEG"), "truncated"),
    "half.png": (half(PICTURE, "PNG"), "truncated"),
    "bomb.png": (bomb(), "too large"),
    "bomb.y4m": (b"YUV4MPEG2 W9000 H9000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000), "too large"),
    "list.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nseen.ts\n#EXT-X-ENDLIST\n", "not a video"),
    "concat.mp4": (b"ffconcat version 1.0\nfile seen.mp4\n", "not a video"),
    "moves.webp": (None, "animated"),
    "sound.mp4": (None, "no video in it"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_frame_with_a_short_reason(tmp_path, name):
    data, reason = HOSTILE[name]
    path = tmp_path / name
    film(tmp_path / "seen.mp4", 5)
    film(tmp_path / "seen.ts", 5)
    if data is not None:
        path.write_bytes(data)
    elif name == "sound.mp4":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.rate = 16000
            container.mux([*stream.encode(sound), *stream.encode(None)])
    else:
        PICTURE.save(path, save_all=True, append_images=[PICTURE.rotate(90)])
    (frame,) = read(path)
    assert frame.pixels is None and frame.fault.startswith(reason) and "\n" not in frame.fault
    assert (frame.source, frame.number) == (name, 0)


def test_a_frame_that_grows_to_a_bomb_is_not_decoded(tmp_path):
    buffer = BytesIO()
    PICTURE.save(buffer, "JPEG")
    small = buffer.getvalue()
    place = small.index(b"\xff\xc0") + 5
    huge = small[:place] + b"\xfe\x00\xfe\x00" + small[place + 4 :]
    (tmp_path / "a.mjpeg").write_bytes(small + small + huge + small)
    found = read(tmp_path / "a.mjpeg")
    assert [bool(frame.fault) for frame in found] == [False, False, True, False]


def test_a_large_file_is_not_read(tmp_path):
    with (tmp_path / "large.jpg").open("wb") as file:
        file.write(half(PICTURE, "JPEG"))
        file.truncate(100_000_001)
    assert faults(tmp_path / "large.jpg") == ["too large (more than 100,000,000 bytes)"]


def test_content_counts_more_than_the_suffix(tmp_path):
    film(tmp_path / "a.mp4", 3).rename(tmp_path / "film.jpg")
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "picture.mp4")
    assert [source.kind for source in listed(str(tmp_path))] == ["video", "picture"]
    assert [number_of(frame.pixels) for frame in read(tmp_path / "film.jpg")] == [0, 1, 2]
    assert np.array_equal(read(tmp_path / "picture.mp4")[0].pixels, np.asarray(PICTURE))


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        sources = listed(str(tmp_path / "*.*"))
        told = {source.name: next(frames(source)).fault for source in sources}
    assert told == {
        "folder.png": "a folder, not a file",
        "gone.jpg": "No such file or directory",
        "loop.jpg": "Too many levels of symbolic links",
        "pipe.jpg": "not a regular file",
        "pipe.mp4": "not a regular file",
        "socket.jpg": "not a regular file",
    }
    assert next(frames(Source("null", Path("/dev/null"), "picture"))).fault == "not a regular file"
    assert faults(tmp_path / "pipe.jpg") == ["not a regular file"]


def test_without_pyav_pictures_are_read_and_videos_name_the_extra(tmp_path, monkeypatch):
    PICTURE.save(tmp_path / "a.png")
    film(tmp_path / "b.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    picture, video = listed(str(tmp_path))
    assert not next(frames(picture)).fault
    with pytest.raises(LiveError, match=r"videos need PyAV: pip install 'fer_lab\[live\]'"):
        next(frames(video))
