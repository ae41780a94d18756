"""The page's live path: a camera's frame as JPEG to `POST /predict`, and what the net tells of its face back as JSON.

The server is the command as typed, in a process of its own; the frames are those of the film in benchmarks/video.py, asked
one after the other over one connection on loopback, as by the page's script; what the browser takes to make and to draw
them is not in it.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from fer_lab.benchmarks.measure import BenchmarkError, Figure
from fer_lab.benchmarks.video import HEIGHT, WIDTH, background, placed, portrait, trained
from fer_lab.cli import ROOT

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

WARM_UP = 20


def measure(setting: Setting, repeats: int, frames: int) -> Iterator[Figure]:
    pictures = camera(frames + WARM_UP)
    with served(setting, trained(setting)) as port:
        rounds = [asked(port, f"benchmark{turn}", pictures) for turn in range(repeats)]
    words = (
        f"ms from frame to answer, {frames} JPEGs of {WIDTH} x {HEIGHT} with one face, one after the other"
    )
    for share in (50, 99):
        values = [float(np.percentile(one, share)) for one in rounds]
        yield Figure(f"live page, p{share}", words, "ms", values, None, at_most=True)


def camera(count: int) -> list[bytes]:
    from PIL import Image

    face, ground = portrait(), background(np.random.default_rng(0))
    found = []
    for number in range(count):
        kept = BytesIO()
        Image.fromarray(placed(face, ground, number / 10)).save(kept, "JPEG", quality=80)
        found.append(kept.getvalue())
    return found


@contextmanager
def served(setting: Setting, run: str) -> Iterator[int]:
    """The port of a page on loopback, which the page itself chose and tells."""
    words = [sys.executable, "-m", "fer_lab.predict", f"run={run}", "page=true", "port=0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in server.stdout)
            address = next(filter(None, told), None)
            if address is None:
                raise BenchmarkError(f"{' '.join(words[1:])} did not start")
            yield int(address[1])
        finally:
            server.terminate()


def asked(port: int, session: str, pictures: list[bytes]) -> list[float]:
    """Milliseconds of each after the first WARM_UP. Raises BenchmarkError where faces were not found."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    taken, with_face, answer = [], 0, {}
    for number, picture in enumerate(pictures):
        begin = time.perf_counter()
        connection.request("POST", f"/predict?session={session}", picture, {"Content-Type": "image/jpeg"})
        answer = json.loads(connection.getresponse().read())
        if number >= WARM_UP:
            taken.append(1000 * (time.perf_counter() - begin))
            with_face += len(answer.get("faces", ())) == 1
    connection.close()
    if with_face < 0.95 * len(taken):
        raise BenchmarkError(
            f"one face was found in {with_face} of {len(taken)} frames: not the work that was meant"
        )
    return taken
