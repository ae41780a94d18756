"""Watching a camera: a network camera of our own, and a file in a camera's stead."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.live import camera, grab
from fer_lab.live.camera import mirrored, scaled, watch
from fer_lab.live.detect import make
from fer_lab.live.faces import Face, LiveError, Net, Told
from fer_lab.live.grab import Camera, CameraLost, without_password
from fer_lab.live.look import Look
from fer_lab.live.record import Recorder, silent
from tests.live.cameras import until, write


def shade(number: int) -> np.ndarray:
    """A frame that says by its brightness which it is, with something to see in it."""
    pixels = np.full((120, 160, 3), 10 * number % 250, np.uint8)
    pixels[40:80, 60:100] += 5
    return pixels


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Twelve frames, ten a second."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", [shade(number) for number in range(12)], 10)


def whole(net: Net | None = None) -> Look:
    """Takes every frame for a face."""
    return Look(net or silent(), make("none"))


class Network:
    """A camera as they stand in networks: pictures over HTTP, each when the test gives it; None ends them."""

    def __init__(self) -> None:
        self.pictures: queue.Queue[np.ndarray | None] = queue.Queue()
        network = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while (pixels := network.pictures.get()) is not None:
                    data = BytesIO()
                    Image.fromarray(pixels).save(data, "jpeg", quality=95)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data.getvalue())}\r\n\r\n"
                    self.wfile.write(head.encode() + data.getvalue() + b"\r\n")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def source(self) -> str:
        return f"camera:http://anna:secret@127.0.0.1:{self.server.server_port}/live?key=1"

    def give(self, numbers: range) -> None:
        for number in numbers:
            self.pictures.put(shade(number))


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.pictures.put(None)
    made.server.shutdown()
    made.server.server_close()


def test_only_the_newest_frame_is_ever_seen(network):
    network.give(range(8))
    with Camera(network.source) as eye:
        until(lambda: eye.grabbed == 8)
        newest = eye.newest(10)
        assert newest is not None and newest.frame.pixels is not None
        assert newest.frame.number == 7 and abs(newest.frame.pixels[0, 0, 0] - 70.0) <= 2
        assert newest.frame.source == eye.name and "secret" not in eye.name and "key=1" not in eye.name
        assert eye.newest(0.01) is None
        network.give(range(8, 9))
        following = eye.newest(10)
        assert following is not None and following.frame.number == 8
        assert following.frame.time_s > newest.frame.time_s
        network.pictures.put(None)
        with pytest.raises(CameraLost, match=r"is lost after 9 frames; is it still there, and does another"):
            until(lambda: eye.newest(10))


def test_a_camera_that_falls_silent_is_told(network, monkeypatch):
    network.give(range(8))
    with Camera(network.source) as eye:
        until(lambda: eye.grabbed == 8)
        eye.newest(10)
        monkeypatch.setattr(grab, "PATIENCE", 0.2)
        with pytest.raises(CameraLost, match="gave 8 frames, and none for 0 s"):
            until(lambda: eye.newest(0.05))
        network.pictures.put(None)


def test_an_address_that_accepts_and_says_nothing_is_given_up(network, monkeypatch):
    monkeypatch.setattr(grab, "PATIENCE", 0.3)
    with pytest.raises(LiveError, match=r"camera:http://127.0.0.1:\d+/live\?… does not answer"):
        Camera(network.source)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("0", "camera:0 is not there. This machine shows no camera"),
        ("/dev/video7", "camera:7 is not there"),
        ("", "camera: is no camera; camera:0 is this machine's first"),
        ("clip.mp4", "camera:clip.mp4 is no camera"),
        ("file:///etc/passwd", "is no camera"),
        ("rtsp://anna:secret@127.0.0.1:1/x", "camera:rtsp://127.0.0.1:1/x does not answer"),
    ],
)
def test_what_is_no_camera_is_told_with_what_there_is(place, words, monkeypatch, capfd):
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    real = Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda path, **how: not path.match("/dev/video*") and real(path, **how)
    )
    with pytest.raises(LiveError) as caught:
        Camera(f"camera:{place}")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert capfd.readouterr().err == ""  # OpenCV and FFmpeg have nothing to add


def test_devices_are_listed_by_number(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/video10"), Path("/dev/video2")]))
    assert grab.devices() == "Devices here: /dev/video2, /dev/video10"


def test_a_file_that_is_no_video_cannot_be_played(tmp_path):
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(LiveError, match="cannot be played"):
        Camera(f"camera:{tmp_path}/notes.txt")


def test_a_picture_in_a_cameras_stead_that_cannot_be_read_is_told(tmp_path):
    """A PNG whose pixels are missing opens, and then gives nothing."""
    data = BytesIO()
    Image.fromarray(shade(1)).save(data, "png")
    (tmp_path / "torn.png").write_bytes(data.getvalue()[:60])
    with pytest.raises(LiveError, match=r"^camera:torn\.png gave no frame; check it with another player$"):
        watch(f"camera:{tmp_path}/torn.png", whole(), show=False)


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("rtsp://anna:p@ss@camera.local:554/live?user=a", "rtsp://camera.local:554/live?…"),
        ("http://camera.local/", "http://camera.local/"),
        ("0", "0"),
    ],
)
def test_addresses_are_shown_without_passwords(place, shown):
    assert without_password(place) == shown


@pytest.mark.parametrize("every", [1, 5])
def test_a_file_in_a_cameras_stead_gives_its_frames_and_their_times(clip, every):
    seen = []
    told = watch(f"camera:{clip}", whole(), show=False, on_seen=seen.append, every=every, each=True)
    numbers = list(range(0, 12, every))
    assert [one.frame.number for one in seen] == numbers
    assert {one.frame.source for one in seen} == {"camera:clip.mp4"}  # not where it is on this machine
    assert [one.frame.time_s for one in seen] == pytest.approx([number / 10 for number in numbers])
    for one in seen:
        assert np.abs(one.frame.pixels.astype(int) - shade(one.frame.number)).mean() < 2
    assert (told.frames, told.grabbed, told.faces, told.interrupted) == (
        len(numbers),
        12,
        len(numbers),
        False,
    )
    assert 0 < told.latency_p50 <= told.latency_p99


def test_a_file_plays_at_its_own_rate(clip):
    seen = []
    told = watch(f"camera:{clip}", whole(), show=False, on_seen=seen.append)
    assert told.seconds >= 1.1  # the last of its frames is of that time
    assert told.grabbed == 12 and seen[-1].frame.number == 11


def test_a_terminal_is_told_what_is_seen(clip, monkeypatch, capsys):
    monkeypatch.setattr(camera, "LINE_SECONDS", 0.0)
    tells = Net(
        "n", ("neutral", "anger"), 8, 1, False, 0.0, False, lambda squares: np.array([[0.2, 0.8]], np.float32)
    )
    watch(f"camera:{clip}", whole(tells), show=False, each=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "waiting" not in line]
    assert "s · 12 frames · " in lines[-1]
    assert lines[-1].endswith(" ms · anger 80%")


def test_ctrl_c_ends_with_the_frame_at_hand(clip):
    seen = []

    def interrupt(one) -> None:
        if one.frame.number == 2:
            signal.raise_signal(signal.SIGINT)
        seen.append(one)

    before = signal.getsignal(signal.SIGINT)
    told = watch(f"camera:{clip}", whole(), show=False, on_seen=interrupt, each=True)
    assert told.interrupted and len(seen) == told.frames == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_faces_are_recorded_at_once_where_there_is_no_window(clip, tmp_path):
    recorder = Recorder(tmp_path, "surprise", "anna")
    watch(f"camera:{clip}", whole(), show=False, record=recorder, each=True)
    assert (
        recorder.added == len(list(tmp_path.glob("surprise/anna_clip_*.png"))) == 6
    )  # five a second at most


def test_what_goes_wrong_in_a_row_ends_the_thread_too(clip):
    def fail(_) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        watch(f"camera:{clip}", whole(), show=False, on_seen=fail)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "camera"])


def test_a_mirror_and_a_larger_window_move_faces_with_their_frame():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    face = Told(3, Face((10, 5, 20, 30), eyes=((12.0, 8.0), (20.0, 8.0))), np.array([1.0], np.float32), None)
    turned, (there,) = mirrored(pixels, [face])
    left, top, width, height = there.face.box
    assert np.array_equal(turned[top : top + height, left : left + width][:, ::-1], pixels[5:35, 10:30])
    assert there.face_id == 3 and there.probabilities is face.probabilities
    larger, (there,) = scaled(pixels, [face], 2.0)
    assert larger.shape == (120, 160, 3) and there.face.box == (20, 10, 40, 60)


def test_without_a_display_there_is_another_way(clip, monkeypatch):
    pytest.importorskip("tkinter")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(
        LiveError, match=r"no window can be opened here \(.*display.*\); add headless=true .* or page=true"
    ):
        watch(f"camera:{clip}", whole())


def test_without_tkinter_there_is_another_way(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(LiveError, match=r"this Python lacks tkinter .* headless=true"):
        watch(f"camera:{clip}", whole())
