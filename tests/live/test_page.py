"""The page's server as programs see it: what it tells, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("cv2")

from fer_lab.data.crop import largest_face
from fer_lab.data.images import grey
from fer_lab.live.crop import face_square
from fer_lab.live.faces import Face, LiveError
from fer_lab.live.guard import Prompt, may_be_called
from fer_lab.live.overlay import laid_over
from fer_lab.live.page import Limits, bound, warning
from fer_lab.live.worker import Sessions
from tests.live.page_server import CLASSES, NET, astronaut, brightness, encoded, serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server():
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def whole():
    """The picture is the face: what is told is known exactly."""
    with serving(detector="none") as address:
        yield address


def plain(level: int, size: int = 48) -> bytes:
    return encoded(np.full((size, size), level, np.uint8))


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
        assert "server" not in headers or "uvicorn" in headers["server"]
        assert b"http://" not in body.replace(
            b"http://www.w3.org/", b""
        )  # names of namespaces, never asked for
        assert b"https://" not in body
    facts = json.loads(server.ask("GET", "/facts")[2])
    assert facts["classes"] == list(CLASSES)
    assert facts["colours"]["happiness"].startswith("#")
    assert (facts["size"], facts["affect"], facts["explains"], facts["bytes"]) == (48, True, True, 10_000_000)
    assert json.loads(server.ask("GET", "/health")[2]) == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/predict", b"", 400, "no picture"),
        ("POST", "/predict", b"hello", 415, "not a picture that can be read: not an image"),
        ("POST", "/predict", encoded(astronaut(), "JPEG")[:4000], 415, "truncated"),
        ("POST", "/predict?session=../../etc", b"x", 400, "expected 8 to 64 letters"),
        ("POST", "/explain?face=-1", b"x", 400, "face='-1'"),
        (
            "POST",
            "/explain?face=7",
            encoded(astronaut()),
            404,
            "face=7: no such face in this picture; choices: 0",
        ),
        ("GET", "/predict", None, 405, "GET /predict is not possible here; choices: POST"),
        ("POST", "/facts", b"x", 405, "choices: GET, HEAD"),
        ("GET", "/../page.py", None, 404, "choices: /, /facts"),
        ("GET", "/runs", None, 404, "there is no /runs here"),
    ],
)
def test_errors_are_sentences(server, method, path, body, status, words):
    found, _, told = server.ask(method, path, body)
    assert found == status
    assert words in json.loads(told)["error"].replace("HEAD, GET", "GET, HEAD")


def test_a_bomb_is_refused_from_its_header(server):
    header = (100_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    chunk = (
        len(header).to_bytes(4, "big") + b"IHDR" + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big")
    )
    status, told = server.post("/predict", b"\x89PNG\r\n\x1a\n" + chunk + plain(9)[33:])
    assert status == 415
    assert "too large (more than 50,000,000 pixels)" in told["error"]


def test_large_bodies_are_refused_by_their_length_and_while_they_come(server):
    large = bytes(10_000_001)
    assert server.post("/predict", large) == (413, {"error": "more than 10 MB: send a smaller picture"})
    chunks = iter([large[:4_000_000]] * 3)
    assert server.post("/predict", chunks)[0] == 413  # sent without a length
    with socket.create_connection(
        ("127.0.0.1", server.port)
    ) as line:  # the answer does not wait for the body
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 413")


def test_slow_bodies_and_silent_connections_end():
    class Impatient(Prompt):
        SECONDS = 0.2

    with serving(limits=Limits(reading=0.3), protocol=Impatient) as address:
        line = socket.create_connection(("127.0.0.1", address.port), timeout=20)
        line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
        told = rest(line)  # what is left of the body is not waited for
        assert told.startswith(b"HTTP/1.1 408")
        assert b"longer than 0.3 s to arrive" in told
        silent = socket.create_connection(("127.0.0.1", address.port), timeout=20)
        silent.sendall(b"GET / HTTP/1.1\r\nHo")
        assert rest(silent) == b""
        assert address.ask("GET", "/health")[0] == 200


def rest(line: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    told = b""
    try:
        while part := line.recv(4000):
            told += part
    except ConnectionResetError:
        pass
    return told


class Gate:
    """A net that waits until it may go on."""

    def __init__(self) -> None:
        self.asked, self.open, self.calls = threading.Semaphore(0), threading.Event(), 0

    def tell(self, squares: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.asked.release()
        assert self.open.wait(30)
        return brightness(squares)


def test_too_many_that_wait_are_told_so():
    gate = Gate()
    with (
        serving(NET._replace(tell=gate.tell), "none", limits=Limits(waiting=2)) as address,
        ThreadPoolExecutor(4) as clients,
    ):
        asked = [clients.submit(address.ask, "POST", "/predict", plain(level)) for level in range(4)]
        (refused,), others = wait(asked, timeout=30, return_when="FIRST_COMPLETED")
        status, headers, told = refused.result()
        assert (status, headers["retry-after"]) == (503, "1")
        assert "too many pictures wait" in json.loads(told)["error"]
        assert address.ask("GET", "/health")[0] == 200
        gate.open.set()
        assert [one.result(30)[0] for one in others] == [200] * 3


def test_a_look_that_takes_too_long_is_given_up_and_what_waits_behind_it_never_runs():
    gate = Gate()
    with serving(NET._replace(tell=gate.tell), "none", limits=Limits(seconds=0.3)) as address:
        with ThreadPoolExecutor(3) as clients:
            answers = [*clients.map(lambda _: address.post("/predict", plain(50)), range(3))]
        assert answers == [(504, {"error": "this took longer than 0.3 s"})] * 3
        gate.open.set()
        assert address.post("/predict", plain(50))[0] == 200
        assert gate.calls == 2


def test_readers_are_bounded():
    with serving(limits=Limits(readers=2, reading=20)) as address:
        slow = [socket.create_connection(("127.0.0.1", address.port)) for _ in range(2)]
        for line in slow:
            line.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
            )
            assert line.recv(100).startswith(b"HTTP/1.1 100")  # it is read now
        assert address.post("/predict", plain(9))[0] == 503
        for line in slow:
            line.close()
        give_up = time.monotonic() + 30
        while address.post("/predict", plain(9))[0] == 503 and time.monotonic() < give_up:
            pass  # until the server has noticed that they are gone
        assert address.post("/predict", plain(9))[0] == 200


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


def test_many_large_posts_at_once_are_answered(whole):
    noise = np.random.default_rng(0).bytes(9_900_000)
    with ThreadPoolExecutor(24) as clients:
        answers = {*clients.map(lambda _: whole.post("/predict", noise)[0], range(24))}
    assert 415 in answers
    assert answers <= {415, 503}
    assert whole.post("/predict", plain(7))[0] == 200


def test_a_failure_of_the_net_is_an_answer_too(caplog):
    def broken(squares: np.ndarray) -> np.ndarray:
        raise RuntimeError("the weights are gone")

    with serving(NET._replace(tell=broken), "none") as address:
        status, headers, told = address.ask("POST", "/predict", plain(3))
    assert (status, headers["x-content-type-options"]) == (500, "nosniff")
    assert "the terminal of the server says why" in json.loads(told)["error"]
    assert "the weights are gone" in caplog.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:PORT", "Origin": "http://localhost:PORT"}, 200),
        ({"Host": "[::1]:PORT"}, 200),
        ({"Host": "evil.example:PORT"}, 421),  # its DNS says 127.0.0.1
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "192.168.0.7"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"Origin": "null"}, 403),
    ],
)
def test_only_this_servers_own_page_may_ask(whole, headers, status):
    headers = {name: value.replace("PORT", str(whole.port)) for name, value in headers.items()}
    assert whole.post("/predict", plain(9), **headers)[0] == status


@pytest.mark.parametrize(
    ("name", "host", "allowed"),
    [
        ("192.168.0.7", "0.0.0.0", True),  # an address needs no DNS
        ("fe80::1", "::", True),
        (socket.gethostname().lower(), "0.0.0.0", True),
        ("evil.example", "0.0.0.0", False),
        ("lab.example", "lab.example", True),
        ("192.168.0.7", "192.168.0.7", True),
        ("evil.example", "192.168.0.7", False),
        ("", "127.0.0.1", False),
    ],
)
def test_names_of_a_server(name, host, allowed):
    assert may_be_called(name, host) is allowed


def test_a_session_is_smoothed_by_itself():
    with serving(detector="none", smooth=0.5) as address:

        def happiness(level: int, query: str = "") -> float:
            return address.post(f"/predict{query}", plain(level))[1]["faces"][0]["probabilities"]["happiness"]

        dark, bright = happiness(0), happiness(255)
        assert happiness(0, "?session=one-of-two") == dark
        assert happiness(255, "?session=two-of-two") == bright
        assert happiness(255, "?session=one-of-two") == pytest.approx((dark + bright) / 2, abs=1e-5)
        assert happiness(255) == bright


def test_sessions_are_forgotten(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fer_lab.live.worker.monotonic", lambda: clock[0])
    sessions = Sessions(object, most=2, seconds=60)  # type: ignore[arg-type]
    first, second = sessions["first"], sessions["second"]
    assert (sessions["first"], sessions["second"]) == (first, second)
    third = sessions["third"]
    assert sessions["first"] is not first  # the one that asked longest ago
    clock[0] = 61
    assert sessions["third"] is not third
    assert list(sessions.looks) == ["third"]


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


OPENED: list[str] | None = None


def test_nothing_is_written_while_pictures_are_looked_at(server):
    global OPENED

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and OPENED is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            OPENED.append(str(arguments[0]))

    sys.addaudithook(watch)  # stays until the process ends, and is idle but for this test
    OPENED = []
    server.post("/predict", encoded(astronaut()))
    server.post("/predict?session=one-of-two", encoded(astronaut(), "TIFF"))
    server.ask("POST", "/explain", encoded(astronaut(), "JPEG"))
    server.ask("POST", "/picture", encoded(astronaut(), "JPEG"))
    opened, OPENED = OPENED, None
    assert opened == []


SCRIPT = """
from fer_lab.live.page import serve
from tests.live.page_server import *
serve(NET, lambda: Look(NET, make("none")), upper_half, *{host_and_port})
"""


def test_ctrl_c_ends_it_quietly():
    line = [sys.executable, "-c", SCRIPT.format(host_and_port=("127.0.0.1", 0))]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        printed = process.stdout.readline()
        assert printed.startswith("drawn-1 at http://127.0.0.1:")
        port = int(printed.split(":")[-1].split()[0])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as browser:
            browser.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert browser.recv(100).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGINT)  # with the connection still open
            assert process.communicate(timeout=60) == ("", "")
    finally:
        process.kill()
    assert process.wait() == 0


def test_addresses_that_cannot_be_listened_on():
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LiveError, match=rf"port {port} on 127.0.0.1 is not free .*; try port={port + 1}"):
            bound("127.0.0.1", port)
    with pytest.raises(LiveError, match=r"port=65536; ports are 1 to 65535"):
        bound("127.0.0.1", 65536)
    with pytest.raises(LiveError, match=r"host=no.such.host.invalid is no address of this machine"):
        bound("no.such.host.invalid", 7860)


def test_a_server_open_to_the_network_says_what_that_means():
    words = warning("0.0.0.0")
    assert "without a password" in words
    assert "plain http" in words
    assert "only to localhost or https" in words
