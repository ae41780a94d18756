"""What the page's server refuses, and how it goes on after that."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("cv2")

from starlette.applications import Starlette

from fer_lab import nets
from fer_lab.exporting.facts import Facts
from fer_lab.exporting.predictor import Predictor
from fer_lab.learning.tasks import Emotion
from fer_lab.live.detect import make
from fer_lab.live.guard import Prompt, may_be_called
from fer_lab.live.look import Look
from fer_lab.live.page import Limits, Page
from fer_lab.live.worker import Sessions
from fer_lab.models.preprocess import Preprocess
from fer_lab.models.small import Small
from tests.live.page_server import CLASSES, NET, astronaut, brightness, encoded, plain, serving

ROOT = Path(__file__).resolve().parents[2]


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
        ("POST", "/predict/", b"x", 404, "there is no /predict/ here"),
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
        SECONDS = 2.0

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
        self.open = threading.Event()
        self.seen: list[int] = []

    def tell(self, squares: np.ndarray) -> np.ndarray:
        self.seen.append(int(squares.max()))
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
    with serving(NET._replace(tell=gate.tell), "none", limits=Limits(seconds=0.7)) as address:
        with ThreadPoolExecutor(3) as clients:
            answers = [*clients.map(lambda _: address.post("/predict", plain(50)), range(3))]
        assert answers == [(504, {"error": "this took longer than 0.7 s"})] * 3
        gate.open.set()
        give_up = time.monotonic() + 30
        while address.post("/predict", plain(90))[0] != 200:  # a busy machine may be too slow for one
            assert time.monotonic() < give_up
        assert gate.seen.count(50) <= 1


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
        ({"Host": "evil.example@127.0.0.1"}, 421),
        ({"Host": "127.0.0.1/../evil.example"}, 421),
        ({"Host": "127.0.0.1?evil.example"}, 421),
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


def test_sessions_are_forgotten(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fer_lab.live.worker.monotonic", lambda: clock[0])
    sessions = Sessions(object, most=2, seconds=60)  # type: ignore[arg-type]
    first, second = sessions["first"], sessions["second"]
    assert (sessions["first"], sessions["second"]) == (first, second)
    third = sessions["third"]
    assert sessions["first"] is not first  # the one that asked longest ago
    clock[0] = 61
    sessions.forget()
    assert list(sessions.views) == []
    assert sessions["third"] is not third


def test_the_last_visitor_is_forgotten_too():
    page = Page(NET, lambda: Look(NET, make("none")), None, (), Limits(idle=0.01))

    async def visited() -> None:
        async with page.life(Starlette()):
            page.sessions["only-one"].told = []
            while page.sessions.views:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(visited(), 30))


@pytest.mark.parametrize(
    "request_of",
    [
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: much\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"hello\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_a_sentence_and_not_on_the_terminal(server, caplog, request_of):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(request_of)
        head, _, told = rest(line).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"nosniff" in head
    assert json.loads(told) == {"error": "this is no HTTP request that can be read"}
    assert caplog.text == ""


def test_requests_for_a_websocket_do_not_fill_the_terminal(server, caplog):
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    status, _, told = server.ask("GET", "/live", **asked, **{"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert (status, "there is no /live here" in json.loads(told)["error"]) == (404, True)
    assert caplog.text == ""


@pytest.fixture
def torch_net(monkeypatch, tmp_path):
    """(net, explain) of an untrained net with the way through torch and captum that a run's has."""
    facts = Facts("torch-1", "Small", CLASSES, 48, 1)
    net, preprocess, task = Small(classes=3, size=48).eval(), Preprocess(1, [0.5], [0.25]), Emotion(CLASSES)
    predict = Predictor(net, preprocess, "none", None, task.predictions).eval()
    loaded = nets.Loaded("torch-1", facts, predict, nets.Rebuilt(net, preprocess, task))
    monkeypatch.setattr(nets, "open_net", lambda *_: loaded)
    return nets.load("torch-1", tmp_path), nets.explainer("torch-1", tmp_path)


OPENED: list[str] | None = None


def test_nothing_is_written_while_pictures_are_looked_at(torch_net, tmp_path):
    global OPENED

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and OPENED is not None and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            OPENED.append(str(arguments[0]))

    sys.addaudithook(watch)  # stays until the process ends, and is idle but for this test
    net, explain = torch_net
    with serving(net, explain=explain) as address:
        OPENED = []
        (face,) = address.post("/predict", encoded(astronaut()))[1]["faces"]
        assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        address.post("/predict?session=one-of-two", encoded(astronaut(), "TIFF"))
        status, headers, _ = address.ask("POST", "/explain", encoded(astronaut(), "JPEG"))
        assert (status, headers["x-method"]) == (200, "Grad-CAM")
        address.ask("POST", "/picture", encoded(astronaut(), "JPEG"))
    (tmp_path / "seen").write_text("the hook sees this")
    opened, OPENED = OPENED, None
    opened = [path for path in opened if "__pycache__" not in path]  # of imports, on a machine that is new
    assert opened == [str(tmp_path / "seen")]
