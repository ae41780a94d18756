"""Who may ask the page's server, and what its answers allow a browser to do.

A server on loopback is reached by every page that the user's browser shows: one from elsewhere could post to it, or, with a
name that its own DNS turns to 127.0.0.1, even read the answers. Both are told apart by what browsers say of themselves.
"""

from __future__ import annotations

import asyncio
import json
import socket
from ipaddress import ip_address
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
EVERYWHERE = ("0.0.0.0", "::")


class Guard:
    """The application `inside`, for those who come by a name of this server (421 otherwise) and not from another
    site's page (403); every answer has HEADERS. `host` is the address that the server listens on."""

    def __init__(self, inside: ASGIApp, host: str) -> None:
        self.inside, self.host = inside, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.inside(scope, receive, send)

        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self.refusal(Headers(scope=scope))
        try:
            await (refusal or self.inside)(scope, receive, send_guarded)
        except asyncio.CancelledError:  # who waits when the server stops is told so
            if not begun:
                await JSONResponse({"error": "this server is stopping"}, 503)(scope, receive, send_guarded)

    def refusal(self, headers: Headers) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not may_be_called(hostname(host), self.host):
            advice = "ask by the address that was printed when it started"
            return JSONResponse({"error": f"this server is not called {host!r}; {advice}"}, 421)
        if origin is not None and address(origin) != host.lower():
            return JSONResponse({"error": f"a page of {origin!r} may not use this server"}, 403)
        return None


def hostname(netloc: str) -> str:
    """Without the port; empty where it is no host."""
    if set(netloc) & set("@/?#\\"):
        return ""  # urlsplit would take what stands before or after
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def address(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def may_be_called(name: str, host: str) -> bool:
    """Whether a server that listens on `host` answers to `name`. Names that somebody's DNS could turn to this machine
    are refused; an address is nobody's name, so that a server open to the network answers to each."""
    if name == host.lower() or is_loopback(name):
        return True
    if is_loopback(host):
        return False
    machine = socket.gethostname().lower()
    try:
        return bool(ip_address(name))
    except ValueError:
        return host in EVERYWHERE and name in (machine, f"{machine}.local")


class Prompt(H11Protocol):
    """HTTP/1.1 for clients that go on: uvicorn itself waits for ever for the end of a request's head, or of a body
    that has its answer already."""

    SECONDS = 15.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.look_again(None)

    def look_again(self, before: Any) -> None:
        """Ends the connection where nobody has come further since the cycle `before`."""
        if self.transport.is_closing():
            return
        stuck = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if stuck and before == (self.cycle,):
            self.transport.abort()
        else:
            self.loop.call_later(self.SECONDS, self.look_again, (self.cycle,))

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP, whatever the application would say of the part that it knows."""
        if self.cycle:
            self.cycle.disconnected = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": "this is no HTTP request that can be read"}).encode()
            headers = {
                **HEADERS,
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
            }
            head = h11.Response(status_code=400, headers=[*headers.items()])
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Uvicorn, as quiet as possible; whoever still waits when it stops is told so at once."""

    def __init__(self, inside: ASGIApp, protocol: type[Prompt] = Prompt) -> None:
        super().__init__(
            uvicorn.Config(
                inside,
                http=protocol,
                ws="none",
                log_config=None,  # what fails reaches the terminal, who asks for what does not
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At a second Ctrl-C uvicorn would break off, with tracebacks: this is over soon."""
        if not self.should_exit:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self.server_state.tasks:
            task.cancel()
        await super().shutdown(sockets)
