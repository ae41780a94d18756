"""The page's server as programs see it: what it tells, and how it starts and ends."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("cv2")

from fer_lab.data.crop import largest_face
from fer_lab.data.images import grey
from fer_lab.live.crop import face_square
from fer_lab.live.detect import make
from fer_lab.live.faces import Face, LiveError
from fer_lab.live.guard import Server
from fer_lab.live.look import Look
from fer_lab.live.overlay import laid_over
from fer_lab.live.page import application, bound, warning
from tests.live.page_server import CLASSES, NET, Address, astronaut, brightness, encoded, plain, serving

ROOT = Path(__file__).resolve().parents[2]


def test_the_astronauts_face_is_told_as_the_net_tells_it(server):
    status, told = server.post("/predict", encoded(astronaut()))
    (face,) = told["faces"]
    box = largest_face(grey(astronaut()))
    expected = brightness(face_square(astronaut(), Face(box, 9.0), NET)[None])[0]
    assert (status, told["net"], told["width"], told["height"]) == (200, "drawn-1", 512, 512)
    assert (told["status"], tuple(face["box"]), face["face_id"]) == ("ok", box, 0)
    assert tuple(face["probabilities"]) == CLASSES
    assert list(face["probabilities"].values()) == pytest.approx(expected[:3].tolist(), abs=1e-5)
    assert [face["valence"], face["arousal"]] == pytest.approx(expected[3:].tolist(), abs=1e-5)
    assert face["label"] == CLASSES[expected[:3].argmax()]
    assert face["confidence"] == face["probabilities"][face["label"]]
    assert told["milliseconds"] > 0


def test_pictures_of_any_kind_are_taken_upright(server):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    file = io.BytesIO()
    Image.fromarray(np.rot90(astronaut()[:, :400])).save(file, "JPEG", quality=95, exif=turned)
    _, told = server.post("/predict", file.getvalue())
    assert (told["width"], told["height"], len(told["faces"])) == (400, 512, 1)
    big_endian = encoded(grey(astronaut()), "TIFF")
    assert len(server.post("/predict", big_endian)[1]["faces"]) == 1
    status, headers, shown = server.ask("POST", "/picture", big_endian)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown)).convert("L")), grey(astronaut()))


def test_no_face_is_no_error(server):
    for pixels in (np.zeros((60, 80, 3), np.uint8), np.full((60, 80), 200, np.uint8)):
        status, told = server.post("/predict", encoded(pixels))
        assert (status, told["status"], told["faces"]) == (200, "no_face", [])
        assert server.post("/explain", encoded(pixels)) == (404, {"error": "no face found in this picture"})


def test_every_answer_keeps_the_browser_from_other_hosts(server):
    for path, kind in {
        "/": "text/html",
        "/page.css": "text/css",
        "/page.js": "text/javascript",
        "/nowhere": "application/json",
    }.items():
        _, headers, body = server.ask("GET", path)
        assert headers["content-type"].startswith(kind)
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["permissions-policy"].startswith("camera=(self)")
        assert "server" not in headers
        assert b"http://" not in body.replace(
            b"http://www.w3.org/", b""
        )  # names of namespaces, never asked for
        assert b"https://" not in body
    facts = json.loads(server.ask("GET", "/facts")[2])
    assert facts["classes"] == list(CLASSES)
    assert facts["colours"]["happiness"].startswith("#")
    assert (facts["size"], facts["affect"], facts["explains"], facts["bytes"]) == (48, True, True, 10_000_000)
    assert json.loads(server.ask("GET", "/health")[2]) == {"status": "ok"}


def test_each_of_many_at_once_gets_its_own_answer(whole):
    levels = range(0, 256, 17)

    def happiness(level: int) -> float:
        status, told = whole.post("/predict", plain(level))
        while status == 503:
            status, told = whole.post("/predict", plain(level))
        return told["faces"][0]["probabilities"]["happiness"]

    with ThreadPoolExecutor(16) as clients:
        told = [*clients.map(happiness, levels)]
    expected = brightness(np.stack([np.full((1, 48, 48), level, np.uint8) for level in levels]))[:, 1]
    assert told == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_session_is_smoothed_by_itself():
    with serving(detector="none", smooth=0.5) as address:

        def happiness(level: int, query: str = "") -> float:
            return address.post(f"/predict{query}", plain(level))[1]["faces"][0]["probabilities"]["happiness"]

        dark, bright = happiness(0), happiness(255)
        assert happiness(0, "?session=one-of-two") == dark
        assert happiness(255, "?session=two-of-two") == bright
        assert happiness(255, "?session=one-of-two") == pytest.approx((dark + bright) / 2, abs=1e-5)
        assert happiness(255) == bright


def test_the_map_of_a_frame_is_of_the_faces_that_were_told(server):
    told = server.post("/predict?session=shows-the-map", encoded(astronaut()))[1]
    dark = encoded(astronaut() // 60)  # where no face would be found
    path = f"/explain?session=shows-the-map&face={told['faces'][0]['face_id']}"
    assert server.ask("POST", path, dark)[2] == server.ask("POST", "/explain", encoded(astronaut()))[2]
    assert server.ask("POST", "/explain?session=shows-no-face", dark)[0] == 404


def test_the_map_lies_on_the_face(server):
    status, headers, told = server.ask("POST", "/explain?face=0", encoded(astronaut()))
    assert (status, headers["content-type"], headers["x-method"]) == (200, "image/png", "Grad-CAM")
    shown = np.asarray(Image.open(io.BytesIO(told)))
    left, top, width, height = largest_face(grey(astronaut()))
    rows, columns = np.nonzero(shown[..., 3])
    assert shown.shape == (512, 512, 4)
    assert abs(columns.min() - (left - 0.1 * width)) <= 2
    assert abs(columns.max() - (left + 1.1 * width)) <= 2
    assert abs(rows.min() - (top - 0.1 * height)) <= 2
    assert abs(rows.max() - (top + height / 2)) <= 2  # the upper half


@pytest.mark.parametrize("eyes", [None, ((60, 90), (110, 110)), ((70, 110), (120, 88))])
@pytest.mark.parametrize("box", [(30, 60, 120, 120), (24, 30, 140, 140), (100, 40, 90, 90)])
def test_a_map_is_laid_where_the_face_was_cut(box, eyes):
    """Cutting the face from the overlay gives the map again."""
    heat = np.zeros((48, 48), np.float32)
    heat[12:20, 10:16], heat[30:36, 28:40] = 1, 0.5
    face = Face(box, 5.0, eyes)
    laid = laid_over(heat, (220, 200), face, NET, align=True)[..., 3]
    again = face_square(np.repeat(laid[..., None], 3, 2), face, NET, align=True)[0]
    inside = face_square(np.full((220, 200, 3), 255, np.uint8), face, NET)[0] > 0
    expected = np.sqrt(heat) * 0.75 * 255
    assert np.corrcoef(again[inside], expected[inside])[0, 1] > 0.9


def test_a_map_of_a_whole_picture_is_in_its_middle():
    laid = laid_over(np.ones((48, 48), np.float32), (100, 300), Face((0, 0, 300, 100)), NET, align=True)
    assert np.nonzero(laid[50, :, 3])[0][[0, -1]].tolist() == [100, 199]
    assert laid_over(
        np.ones((48, 48), np.float32), (2560, 100), Face((0, 0, 9, 9), 1.0), NET, True
    ).shape == (1280, 50, 4)


def test_without_captum_it_says_what_to_install():
    with serving(explain=None) as address:
        status, told = address.post("/explain", encoded(astronaut()))
        assert (status, "pip install 'fer_lab[live]'" in told["error"]) == (501, True)
        assert json.loads(address.ask("GET", "/facts")[2])["explains"] is False


SCRIPT = """
import sys
from fer_lab.live.page import serve
from tests.live.page_server import *

def tell(squares):
    if squares.any():
        print("busy", flush=True)
        sys.stdin.readline()
    return brightness(squares)

serve(NET, lambda: Look(NET._replace(tell=tell), make("none")), upper_half, "127.0.0.1", 0)
"""


@contextmanager
def started():
    """A server of its own, and its port; it says when it is busy with a picture that is not black, until it gets a line."""
    pipe = subprocess.PIPE
    line = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(line, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            printed = process.stdout.readline()
            assert printed.startswith("drawn-1 at http://127.0.0.1:")
            yield process, Address(int(printed.split(":")[-1].split()[0]))
        finally:
            process.kill()


def test_ctrl_c_ends_it_quietly():
    with started() as (process, address):
        with socket.create_connection(("127.0.0.1", address.port), timeout=30) as browser:
            browser.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert browser.recv(100).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGINT)  # with the connection still open
            assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


def test_a_second_ctrl_c_does_not_break_off_what_ends_anyway():
    server = Server(application(NET, lambda: Look(NET, make("none"))))
    for _ in range(2):
        server.handle_exit(signal.SIGINT, None)
    assert (server.should_exit, server.force_exit) == (True, False)


def test_ctrl_c_tells_those_who_wait():
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with started() as (process, address), ThreadPoolExecutor(1) as client:
        looked_at = client.submit(address.ask, "POST", "/predict", plain(200))
        assert process.stdout.readline() == "busy\n"
        with socket.create_connection(("127.0.0.1", address.port), timeout=30) as slow:
            slow.sendall(head % 100)
            assert slow.recv(100).startswith(b"HTTP/1.1 100")  # its picture is read now
            process.send_signal(signal.SIGINT)
            assert slow.recv(100).startswith(b"HTTP/1.1 503")
        status, headers, told = looked_at.result(30)
        assert (status, json.loads(told)) == (503, {"error": "this server is stopping"})
        assert headers["x-content-type-options"] == "nosniff"
        assert process.communicate("go on\n", timeout=60) == ("", "")
        assert process.returncode == 0


def test_addresses_that_cannot_be_listened_on():
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LiveError, match=rf"port {port} on 127.0.0.1 is not free .*; try port={port + 1}"):
            bound("127.0.0.1", port)
    with pytest.raises(LiveError, match=r"port=65536; ports are 1 to 65535"):
        bound("127.0.0.1", 65536)
    with pytest.raises(LiveError, match=r"host=no.such.host.invalid is no address of this machine"):
        bound("no.such.host.invalid", 7860)
    for host, port in ((None, 7860), ("", 7860), ("127.0.0.1", None), ("127.0.0.1", "http")):
        with pytest.raises(
            LiveError, match=r"(host|port)=(None|http)?[:;] (expected an address|ports are 1 to)"
        ):
            bound(host, port)


def test_a_server_open_to_the_network_says_what_that_means():
    words = warning("192.168.1.5", 17861)
    assert "without a password" in words
    assert "plain http" in words
    assert "only to localhost or https" in words
    assert f"leave out host= here, type ssh -L 17861:127.0.0.1:17861 {socket.gethostname()} there" in words
    assert words.endswith("http://localhost:17861")


def test_the_live_extra_names_what_the_page_imports():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["live"]
    source = "".join((ROOT / f"fer_lab/live/{name}.py").read_text() for name in ("guard", "page", "worker"))
    for name in ("h11", "starlette", "uvicorn"):
        assert re.search(rf"^(import|from) {name}\b", source, re.MULTILINE)
        assert any(re.match(rf"{name}>=", line) for line in extra)
    assert any(
        re.match(r"uvicorn>=[\d.]+,<", line) for line in extra
    )  # guard.py is built on what it does not promise
