"""The page on which a net looks at pictures and at the browser's camera, and POST /predict for programs.

Pictures are looked at in memory, by one thread, and forgotten: nothing is written, nothing is logged, nothing is asked of other hosts.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fer_lab.data.images import BadImage, decode
from fer_lab.live.drawing import COLOURS
from fer_lab.live.faces import LiveError, Net, Pixels, Told
from fer_lab.live.guard import Guard, Server, is_loopback
from fer_lab.live.look import Look
from fer_lab.live.overlay import laid_over, png
from fer_lab.live.source import coloured
from fer_lab.live.worker import Busy, Sessions, View, Worker

T = TypeVar("T")
Explain = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], str]]
"""A face (1, C, S, S) -> where the net looks for what it says of it, (S, S) in 0..1, and the name of the method."""

FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}
SESSION, FACE = re.compile(r"[A-Za-z0-9-]{8,64}"), re.compile(r"[0-9]{1,9}")


class Limits(NamedTuple):
    """`size` of a picture in bytes; it has `reading` seconds to arrive, as one of `readers`; then `waiting` pictures may
    wait, and each has `seconds` to be looked at. `sessions` live views are remembered, each for `idle` seconds."""

    size: int = 10_000_000
    reading: float = 15
    readers: int = 16
    waiting: int = 8
    seconds: float = 10
    sessions: int = 16
    idle: float = 60


LIMITS = Limits()


class Page:
    """`look` makes a fresh Look, cheaply: each picture gets one, and each live view, whose frames come in their order."""

    def __init__(
        self,
        net: Net,
        look: Callable[[], Look],
        explain: Explain | None,
        notes: Sequence[str],
        limits: Limits,
    ) -> None:
        self.net, self.look, self.explain, self.notes, self.limits = net, look, explain, notes, limits
        self.worker = Worker(limits.waiting, limits.seconds)
        self.sessions = Sessions(look, limits.sessions, limits.idle)
        self.reading = 0
        folder = Path(__file__).parent
        self.files = {path: (folder / f"page{Path(path).suffix or '.html'}").read_bytes() for path in FILES}

    def routes(self) -> list[Route]:
        files = [Route(path, self.file) for path in FILES]
        told = [Route("/facts", self.facts), Route("/health", self.health)]
        asked = {"/predict": self.predict, "/explain": self.explained, "/picture": self.picture}
        return files + told + [Route(path, answer, methods=["POST"]) for path, answer in asked.items()]

    @asynccontextmanager
    async def life(self, _: Starlette) -> AsyncIterator[None]:
        tidying = asyncio.create_task(self.tidy())
        yield
        tidying.cancel()
        self.worker.close()

    async def tidy(self) -> None:
        """What was seen of visitors who are gone is forgotten, in the thread that views belong to."""
        while True:
            await asyncio.sleep(self.limits.idle / 4)
            self.worker.thread.submit(self.sessions.forget)

    async def file(self, request: Request) -> Response:
        path = request.url.path
        return Response(self.files[path], media_type=FILES[path])

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def facts(self, request: Request) -> Response:
        net = self.net
        return JSONResponse(
            {
                "net": net.name,
                "classes": net.classes,
                "colours": {
                    name: "#{:02x}{:02x}{:02x}".format(*COLOURS[name])
                    for name in net.classes
                    if name in COLOURS
                },
                "affect": net.affect,
                "size": net.size,
                "channels": net.channels,
                "explains": self.explain is not None,
                "notes": self.notes,
                "bytes": self.limits.size,
            }
        )

    async def predict(self, request: Request) -> Response:
        """The faces of a picture; with ?session=ID those of a frame, followed and smoothed from one to the next."""
        session = asked(request, "session", SESSION, "8 to 64 letters, digits or -")
        data = await self.body(request)

        def work() -> dict[str, Any]:
            start = perf_counter()
            pixels = picture(data)
            view = View(self.look()) if session is None else self.sessions[session]
            view.told = view.look(pixels)
            return answer(self.net, pixels, view.told, perf_counter() - start)

        return JSONResponse(await self.turn(work))

    async def explained(self, request: Request) -> Response:
        """A PNG of the picture's shape to lay over it: where the net looks for what it says of ?face=ID, or of the
        largest; of a frame with ?session=ID, the faces that /predict found in it. X-Method names the method."""
        session = asked(request, "session", SESSION, "8 to 64 letters, digits or -")
        wanted = asked(request, "face", FACE, "the face_id that /predict gives")
        data = await self.body(request)
        explain = self.explain
        if explain is None:
            raise HTTPException(501, "no maps here: they need captum (pip install 'fer_lab[live]')")

        def work() -> tuple[bytes, str]:
            pixels = picture(data)
            view = View(self.look()) if session is None else self.sessions[session]
            face = chosen(view.told or view.look(pixels), wanted).face
            heat, method = explain(view.look.squares(pixels, [face]))
            return png(laid_over(heat, pixels.shape[:2], face, self.net, view.look.align)), method

        shown, method = await self.turn(work)
        return Response(shown, media_type="image/png", headers={"X-Method": method})

    async def picture(self, request: Request) -> Response:
        """The picture as a PNG, for browsers that cannot show what it is, such as a TIFF."""
        data = await self.body(request)
        return Response(await self.turn(lambda: png(picture(data))), media_type="image/png")

    async def body(self, request: Request) -> bytes:
        """Raises 400, 408, 413 and 503."""
        limits = self.limits
        if int(request.headers.get("content-length", 0)) > limits.size:
            raise too_large(limits.size)
        if self.reading >= limits.readers:
            raise busy()
        self.reading += 1
        try:
            async with asyncio.timeout(limits.reading):
                data = await received(request, limits.size)
        except TimeoutError:
            raise HTTPException(408, f"the picture took longer than {limits.reading:g} s to arrive") from None
        except ClientDisconnect:
            raise HTTPException(400, "the picture ended early") from None
        finally:
            self.reading -= 1
        if not data:
            raise HTTPException(400, "no picture: send the bytes of one, e.g. curl --data-binary @face.jpg")
        return data

    async def turn(self, work: Callable[[], T]) -> T:
        """Raises 415, 503 and 504."""
        try:
            return await self.worker(work)
        except Busy:
            raise busy() from None
        except TimeoutError:
            raise HTTPException(504, f"this took longer than {self.limits.seconds:g} s") from None
        except BadImage as error:
            raise HTTPException(415, f"not a picture that can be read: {error}") from None


def asked(request: Request, name: str, pattern: re.Pattern[str], expected: str) -> str | None:
    """What the address says of `name`. Raises 400."""
    value = request.query_params.get(name)
    if value is not None and not pattern.fullmatch(value):
        raise HTTPException(400, f"{name}={value[:80]!r}; expected {expected}")
    return value


async def received(request: Request, most: int) -> bytes:
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > most:
            raise too_large(most)
    return bytes(parts)


def too_large(most: int) -> HTTPException:
    return HTTPException(413, f"more than {most / 1e6:g} MB: send a smaller picture")


def busy() -> HTTPException:
    return HTTPException(503, "too many pictures wait already: try again in a second", {"Retry-After": "1"})


def chosen(told: Sequence[Told], wanted: str | None) -> Told:
    """The face whose id is wanted, or the largest. Raises 404."""
    if not told:
        raise HTTPException(404, "no face found in this picture")
    if wanted is None:
        return max(told, key=lambda one: one.face.box[2] * one.face.box[3])
    for one in told:
        if one.face_id == int(wanted):
            return one
    known = ", ".join(str(one.face_id) for one in told)
    raise HTTPException(404, f"face={wanted}: no such face in this picture; choices: {known}")


def answer(net: Net, pixels: Pixels, told: Sequence[Told], seconds: float) -> dict[str, Any]:
    """What /predict says; the columns of fer_lab.predict by the same names."""
    return {
        "net": net.name,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "status": "ok" if told else "no_face",
        "faces": [face_facts(net, one) for one in told],
        "milliseconds": round(seconds * 1e3, 1),
    }


def face_facts(net: Net, told: Told) -> dict[str, Any]:
    shares = {
        name: round(float(share), 6) for name, share in zip(net.classes, told.probabilities, strict=True)
    }
    label = max(shares, key=lambda name: shares[name], default=None)
    valence, arousal = (None, None) if told.affect is None else (round(float(one), 6) for one in told.affect)
    return {
        "face_id": told.face_id,
        "box": [int(length) for length in told.face.box],
        "det_score": told.face.score,
        "label": label,
        "confidence": None if label is None else shares[label],
        "probabilities": shares,
        "valence": valence,
        "arousal": arousal,
    }


async def refused(request: Request, error: Exception) -> Response:
    """Every error is a sentence."""
    if not isinstance(error, HTTPException):
        return JSONResponse({"error": "this failed here; the terminal of the server says why"}, 500)
    words = error.detail
    if error.status_code == 404 and words == "Not Found":
        words = f"there is no {request.url.path[:80]} here; choices: /, /facts, /health, POST /predict and POST /explain"
    elif error.status_code == 405:
        words = f"{request.method} {request.url.path} is not possible here; choices: {(error.headers or {})['Allow']}"
    return JSONResponse({"error": words}, error.status_code, error.headers)


def application(
    net: Net,
    look: Callable[[], Look],
    explain: Explain | None = None,
    host: str = "127.0.0.1",
    notes: Sequence[str] = (),
    limits: Limits = LIMITS,
) -> ASGIApp:
    page = Page(net, look, explain, notes, limits)
    handlers: dict[Any, Any] = {HTTPException: refused, Exception: refused}
    inside = Starlette(routes=page.routes(), exception_handlers=handlers, lifespan=page.life)
    inside.router.redirect_slashes = False
    return Guard(inside, host)


def serve(
    net: Net,
    look: Callable[[], Look],
    explain: Explain | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    notes: Sequence[str] = (),
) -> None:
    """Until Ctrl-C. Port 0 is any free one. Raises LiveError where the address cannot be listened on."""
    listening = bound(host, port)
    port = listening.getsockname()[1]
    look()(np.zeros((480, 640, 3), np.uint8))  # the first looks are the slowest
    net.tell(np.zeros((1, net.channels, net.size, net.size), np.uint8))
    if not is_loopback(host):
        print(warning(host, port), file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"{net.name} at http://{shown}:{port}  (Ctrl-C stops it)", flush=True)
    with listening, suppress(KeyboardInterrupt):
        Server(application(net, look, explain, host, notes)).run(sockets=[listening])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the last look may end; who cannot wait for it need not


def bound(host: str, port: int) -> socket.socket:
    """Listening. Raises LiveError."""
    if not isinstance(host, str) or not host:
        raise LiveError(f"host={host}: expected an address of this machine, usually 127.0.0.1")
    if not isinstance(port, int) or not 0 <= port < 65536:
        raise LiveError(f"port={port}; ports are 1 to 65535, and 0 takes any that is free")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise LiveError(f"host={host} is no address of this machine ({error}); usual: 127.0.0.1") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(place)
        listening.listen()  # who comes before the server runs waits for it
    except OSError as error:
        listening.close()
        raise LiveError(f"port {port} on {host} is not free ({error}); try port={port % 65535 + 1}") from None
    return listening


def warning(host: str, port: int) -> str:
    return (
        f"Listening on {host}: who reaches this machine can have pictures looked at, without a password, and whoever is on "
        "the way sees them: it is plain http. Browsers give their camera only to localhost or https: for that, leave out "
        f"host= here, type ssh -L {port}:127.0.0.1:{port} {socket.gethostname()} there, and open http://localhost:{port}"
    )


def picture(data: bytes) -> Pixels:
    """(H, W, 3), upright; a dark frame is one without a face. Raises BadImage."""
    return coloured(decode(data, "the picture", blank=True))
