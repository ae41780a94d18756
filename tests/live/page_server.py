"""The page's application behind a real uvicorn on a free port, with a net that needs no torch."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from fer_lab.live.detect import make
from fer_lab.live.faces import Net
from fer_lab.live.look import Look
from fer_lab.live.page import LIMITS, Limits, application, bound
from fer_lab.live.track import Tracker

CLASSES = ("neutral", "happiness", "surprise")


def brightness(squares: np.ndarray) -> np.ndarray:
    """(B, 5): the brighter the upper half of a face, the happier; the lower half decides on surprise."""
    upper, lower = squares[:, 0, :24].mean((1, 2)) / 255, squares[:, 0, 24:].mean((1, 2)) / 255
    told = np.exp(np.stack([np.full(len(upper), 0.5), 3 * upper, lower], 1))
    return np.c_[told / told.sum(1, keepdims=True), upper, -lower].astype(np.float32)


NET = Net("drawn-1", CLASSES, size=48, channels=1, affect=True, margin=0.1, guessed=False, tell=brightness)


def upper_half(square: np.ndarray) -> tuple[np.ndarray, str]:
    heat = np.zeros(square.shape[2:], np.float32)
    heat[:24] = 1
    return heat, "Grad-CAM"


class Address(NamedTuple):
    port: int

    def ask(self, method: str, path: str, body=None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )
        finally:
            connection.close()

    def post(self, path: str, body, **headers: str) -> tuple[int, dict]:
        status, _, told = self.ask("POST", path, body, **headers)
        return status, json.loads(told)


@contextmanager
def serving(
    net: Net = NET,
    detector: str = "haar",
    smooth: float = 0.0,
    explain: Callable | None = upper_half,
    limits: Limits = LIMITS,
    protocol: type | None = None,
) -> Iterator[Address]:
    from fer_lab.live.guard import Prompt, Server

    finder = make(detector)
    inside = application(net, lambda: Look(net, finder, Tracker(smooth)), explain, limits=limits)
    server = Server(inside, protocol or Prompt)
    with bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Address(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)


@cache
def astronaut() -> np.ndarray:
    from skimage.data import astronaut as portrait

    return portrait()


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def plain(level: int, size: int = 48) -> bytes:
    """A picture of one grey, for which the whole of it is the face."""
    return encoded(np.full((size, size), level, np.uint8))
