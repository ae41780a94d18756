"""A drawn video: people come into a room, show an expression, sway, and leave; some meet.

python -m fer_lab.data.draw video party.mp4 600
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from math import cos, pi, sin
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_lab.data import portrait
from fer_lab.data.faces import EXPRESSIONS, DataError

WIDTH, HEIGHT, RATE = 640, 480, 30
PEOPLE = (0, 2, 3, 4, 5, 9, 11, 12, 15, 18, 19, 20)
"""Of the drawn people some whom the cascade takes for a face in every expression."""

STAY, PAUSE, WALK = 130, 50, 24
"""Frames for which people stay (a quarter more or less), that a place is empty at least, and to come in."""

STEPS = 6
"""From a face at rest to its full expression."""

SPRITE = 256
ZOOM, LOWERED = 1.12, 0.04
"""How the drawn faces of the data sets are seen on average."""

WALLS = (0.3, 0.6)
"""The greys in front of which a head is drawn to tell what covers them; neither is clipped."""


class Visitor(NamedTuple):
    """Somebody in the room: who, where the head is (left, top, width, height, perhaps over the border), what is shown and
    how strongly (0..1)."""

    person: int
    box: tuple[int, int, int, int]
    expression: str
    intensity: float


class Scene(NamedTuple):
    """A frame, (480, 640, 3) RGB, and who is in it."""

    pixels: NDArray[np.uint8]
    visitors: tuple[Visitor, ...]


class Visit(NamedTuple):
    """When somebody is there, and how: frames, pixels, and a `phase` of the swaying in radians."""

    person: int
    expression: str
    begin: int
    end: int
    side: float
    place: float
    height: float
    phase: float
    entrance: int


def scenes(frames: int, seed: int = 0, together: int = 2) -> Iterator[Scene]:
    """At most `together` people at a time; the same arguments give the same pixels."""
    room = background(seed)
    coming = visits(seed, together)
    there: list[Visit] = []
    following = next(coming)
    for number in range(frames):
        while following.begin <= number:
            there.append(following)
            following = next(coming)
        there = [visit for visit in there if number < visit.end]
        pixels = room.copy()
        seen = [_paint(pixels, visit, number) for visit in sorted(there, key=lambda one: one.side)]
        yield Scene(pixels, tuple(seen))


def visits(seed: int, together: int) -> Iterator[Visit]:
    """Endless, in order of their beginnings."""
    random = np.random.default_rng((seed, 5))
    shown = [name for name in EXPRESSIONS[:7] if name != "neutral"]
    for number in count():
        stay = int(random.integers(STAY * 3 // 4, STAY * 5 // 4))
        begin = number * (STAY * 5 // 4 + PAUSE) // together
        slot = number % together
        yield Visit(
            person=PEOPLE[int(random.integers(len(PEOPLE)))],
            expression=shown[int(random.integers(len(shown)))],
            begin=begin,
            end=begin + stay,
            side=float(random.uniform(150, 250 if together < 3 else 190)),
            place=WIDTH * (slot + float(random.uniform(0.35, 0.65))) / together,
            height=HEIGHT * float(random.uniform(0.4, 0.6)),
            phase=float(random.uniform(0, 2 * pi)),
            entrance=int(random.choice((-1, 1))),
        )


def background(seed: int) -> NDArray[np.uint8]:
    """A blurred room: soft shapes without edges that a cascade might take for a face."""
    random = np.random.default_rng((seed, 6))
    rough = (random.integers(80, 160, (7, 9, 1)) + random.integers(-12, 13, (7, 9, 3))).astype(np.uint8)
    fine = random.integers(0, 9, (HEIGHT, WIDTH, 1)).astype(np.uint8)
    return (
        np.asarray(Image.fromarray(rough).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) // 8 * 7 + fine
    )


def write_video(path: str | Path, frames: int = 300, seed: int = 0, together: int = 2) -> Path:
    """An mp4 of 640x480 at 30 frames a second; refuses to replace a file that is there."""
    try:
        import av
    except ImportError:
        raise DataError("a drawn video needs PyAV: pip install 'fer_lab[live]'") from None
    target = Path(path).expanduser()
    if target.exists():
        raise DataError(f"{target} exists; name a new file")
    if frames < 1:
        raise DataError(f"frames={frames}; expected 1 or more")
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(target), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1  # the same file whatever the machine's number of cores
        for scene in scenes(frames, seed, together):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return target


def _paint(pixels: NDArray[np.uint8], visit: Visit, number: int) -> Visitor:
    """Lays the person over the picture, in place."""
    age, left_over = number - visit.begin, visit.end - 1 - number
    away = max(0.0, 1 - age / WALK) - max(
        0.0, 1 - left_over / WALK
    )  # comes from one side, leaves by the other
    wave = 2 * pi * age / 75 + visit.phase
    side = round(visit.side * (1 + 0.08 * sin(0.7 * wave)))
    across = visit.place + 30 * sin(wave) + away * visit.entrance * (WIDTH / 2 + visit.side)
    down = visit.height + 15 * cos(1.3 * wave)
    strength = min(1.0, max(0.0, (age - WALK) / 20), max(0.0, (left_over - WALK) / 20))
    step = round(strength * (STEPS - 1))
    left, top = round(across - side / 2), round(down - side / 2)
    _lay(pixels, sprite(visit.person, visit.expression, step), left, top, side, 5 * sin(0.9 * wave))
    head = portrait.identity(np.random.default_rng((0, 0, visit.person)))
    width, height = round(side * head.width * ZOOM), round(side * head.height * ZOOM)
    box = (left + (side - width) // 2, top + (side - height) // 2, width, height)
    return Visitor(visit.person, box, visit.expression if step else "neutral", step / (STEPS - 1))


def _lay(pixels: NDArray[np.uint8], image: Image.Image, left: int, top: int, side: int, tilt: float) -> None:
    """The sprite as a square of that side and tilt (degrees), as far as it lies inside the picture."""
    scale = SPRITE / side
    over, up = scale * cos(tilt * pi / 180), scale * sin(tilt * pi / 180)
    middle = side / 2
    back = (over, -up, SPRITE / 2 - middle * (over - up), up, over, SPRITE / 2 - middle * (up + over))
    drawn = image.transform(
        (side, side), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor=(0, 0, 0, 255)
    )
    cut = np.s_[max(0, -top) : max(0, HEIGHT - top), max(0, -left) : max(0, WIDTH - left)]
    over_it = np.asarray(drawn)[cut]
    place = pixels[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    through = over_it[..., 3:].astype(np.uint16)
    place[...] = over_it[..., :3] + (place * through // 255).astype(np.uint8)


@lru_cache(maxsize=256)
def sprite(person: int, expression: str, step: int) -> Image.Image:
    """A head without a background in four channels (Pillow weighs an alpha channel in, so it is called CMYK): the
    colours as far as they cover, and what shines through, 255 all of it.

    What shines through is what differs between the face before a dark and before a light wall.
    """
    who = portrait.identity(np.random.default_rng((0, 0, person)))
    look = portrait.Look().towards(portrait.LOOKS[expression][0], step / (STEPS - 1))
    dark, light = (
        portrait.render(
            who,
            look,
            portrait.View(0, LOWERED, ZOOM, 0, 0, 0, 0, 1, grey, 0),
            SPRITE,
            3,
            np.random.default_rng(0),
        ).astype(np.float32)
        for grey in WALLS
    )
    through = ((light - dark).mean(axis=2, keepdims=True) / (255 * (WALLS[1] - WALLS[0]))).clip(0, 1)
    height = ((np.arange(SPRITE, dtype=np.float32) + 0.5) * 2 / SPRITE - 1 - LOWERED) / ZOOM
    wall = 255 * (WALLS[0] + 0.15 * height)[:, None, None]
    covering = (dark - through * wall).clip(0, 255 * (1 - through))
    return Image.fromarray(np.concatenate([covering, 255 * through], axis=2).astype(np.uint8), "CMYK")
