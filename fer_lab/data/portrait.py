"""One drawn face: who it is, what the face does, how it is seen, and the pixels of that.

Lengths are in half heights of the picture, x to the right, y downwards; features are signed distance
fields, so that any size is drawn alike and antialiased.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWER_VERSION = 1
"""Raise it when the same seed draws other pixels: caches of drawn data are then rebuilt."""

Field = NDArray[np.floating]
LUMA = np.array([0.299, 0.587, 0.114])


class Identity(NamedTuple):
    """What stays the same in every picture of a person."""

    width: float
    height: float
    jaw: float
    eye_gap: float
    eye_level: float
    eye_size: float
    brow_level: float
    brow_weight: float
    nose: float
    mouth: float
    hairline: float
    hair_length: float
    glasses: float
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    clothes: tuple[float, float, float]
    rest: Look


class Look(NamedTuple):
    """What the face does, 0 at rest and about 1 (or -1) at full strength."""

    brow_raise: float = 0.0
    brow_slant: float = 0.0  # + inner ends up (sadness), - inner ends down (anger)
    eye_open: float = 0.0
    mouth_curve: float = 0.0  # + corners up
    mouth_open: float = 0.0
    mouth_width: float = 0.0
    nose_wrinkle: float = 0.0
    smirk: float = 0.0  # one corner up

    def towards(self, other: Look, part: float) -> Look:
        return Look(*(mine + part * theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def valence(self) -> float:
        """-1 (unpleasant) to 1 (pleasant)."""
        unpleasant = 0.5 * abs(self.brow_slant) + 0.6 * self.nose_wrinkle + 0.3 * abs(self.smirk)
        return float(np.tanh(1.1 * self.mouth_curve - unpleasant))

    @property
    def arousal(self) -> float:
        """-1 (calm) to 1 (excited)."""
        excited = 0.7 * self.eye_open + 0.6 * self.mouth_open + 0.3 * self.brow_raise
        return float(np.tanh(excited + 0.5 * max(0.0, -self.brow_slant) - 0.3 * max(0.0, self.brow_slant)))


LOOKS: dict[str, tuple[Look, ...]] = {
    "neutral": (Look(),),
    "happiness": (
        Look(eye_open=-0.4, mouth_curve=1.0, mouth_width=0.5),
        Look(eye_open=-0.5, mouth_curve=1.0, mouth_open=0.5, mouth_width=0.6),
    ),
    "sadness": (Look(brow_raise=0.1, brow_slant=0.9, eye_open=-0.4, mouth_curve=-0.8, mouth_width=-0.1),),
    "surprise": (Look(brow_raise=1.0, eye_open=0.8, mouth_open=1.0, mouth_width=-0.5),),
    "fear": (
        Look(brow_raise=0.6, brow_slant=0.7, eye_open=0.9, mouth_curve=-0.3, mouth_open=0.4, mouth_width=0.4),
        Look(brow_raise=0.5, brow_slant=0.8, eye_open=0.9, mouth_curve=-0.5, mouth_width=0.3),
    ),
    "disgust": (Look(-0.3, -0.3, eye_open=-0.5, mouth_curve=-0.6, mouth_open=0.15, nose_wrinkle=1.0),),
    "anger": (
        Look(brow_raise=-0.6, brow_slant=-0.9, eye_open=0.1, mouth_curve=-0.4, mouth_width=-0.2),
        Look(-0.6, -1.0, eye_open=0.3, mouth_curve=-0.3, mouth_open=0.6, mouth_width=0.2, nose_wrinkle=0.3),
    ),
    "contempt": (Look(eye_open=-0.3, mouth_curve=0.05, mouth_width=-0.1, smirk=1.0),),
}
"""The ways each expression is shown at full strength."""


class View(NamedTuple):
    """How the face is seen: place, size, turn, light and noise."""

    x: float
    y: float
    scale: float
    roll: float
    yaw: float
    light_x: float
    light_y: float
    gain: float
    background: float
    noise: float


def identity(random: np.random.Generator) -> Identity:
    def between(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    tone, hair = between(0.3, 0.9), between(0.03, 0.5)
    return Identity(
        width=between(0.5, 0.62),
        height=between(0.7, 0.82),
        jaw=between(0.1, 0.4),
        eye_gap=between(0.21, 0.27),
        eye_level=between(-0.16, -0.06),
        eye_size=between(0.85, 1.15),
        brow_level=between(0.16, 0.21),
        brow_weight=between(0.018, 0.038),
        nose=between(0.2, 0.3),
        mouth=between(0.2, 0.27),
        hairline=between(-0.6, -0.4),
        hair_length=between(-0.3, 0.9),
        glasses=float(random.random() < 0.15),
        skin=(min(1.0, tone + 0.1), tone * 0.85, tone * 0.72),
        hair=(hair, hair * 0.8, hair * 0.6),
        clothes=(between(0, 1), between(0, 1), between(0, 1)),
        rest=Look(*random.normal(0, 0.1, len(Look._fields)).tolist()),
    )


def look(expression: str, intensity: float, random: np.random.Generator) -> Look:
    """One way of showing an expression, with its variation from one picture to the next."""
    ways = LOOKS[expression]
    shown = Look().towards(ways[int(random.integers(len(ways)))], intensity)
    if random.random() < 0.5:
        shown = shown._replace(smirk=-shown.smirk)
    return shown.towards(Look(*random.normal(0, 0.1, len(Look._fields)).tolist()), 1.0)


def view(random: np.random.Generator) -> View:
    x, y, scale, roll, yaw, light_x, light_y, gain = random.normal(
        (0, 0.04, 1.12, 0, 0, 0, 0, 1), (0.05, 0.04, 0.05, 0.09, 0.05, 0.22, 0.12, 0.12)
    ).tolist()
    background, noise = random.uniform((0.1, 0.01), (0.9, 0.05)).tolist()
    return View(x, y, max(scale, 0.9), roll, yaw, light_x, light_y, max(gain, 0.6), background, noise)


def render(
    who: Identity, shown: Look, seen: View, size: int, channels: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    """(size, size) grey or (size, size, 3) RGB pixels; `random` gives the noise alone."""
    shown = who.rest.towards(shown, 1.0)
    easel = _Easel(seen, size, channels)
    _head(easel, who)
    level = who.eye_level
    _nose(easel.band(level - 0.3, level + 0.65), who, shown)
    _eyes(easel.band(level - 0.2, level + 0.2), who, shown)
    _brows(easel.band(level - 0.5, level + 0.1), who, shown)
    _mouth(easel.band(level + 0.2, level + 0.95), who, shown)
    canvas = easel.canvas * (seen.gain * (1 + seen.light_x * easel.u + seen.light_y * easel.v))
    canvas += seen.noise * random.standard_normal(canvas.shape, dtype=np.float32)
    pixels = np.clip(canvas * 255, 0, 255).astype(np.uint8)
    return pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


class _Easel:
    """Canvas (C, size, size) and the coordinates of the face on it: u, v, and |u| after the turn of the head."""

    def __init__(self, seen: View, size: int, channels: int) -> None:
        axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
        x, y = axis[None, :] - seen.x, axis[:, None] - seen.y
        cos, sin = np.cos(seen.roll) / seen.scale, np.sin(seen.roll) / seen.scale
        self.u: Field = (x * cos + y * sin).astype(np.float32)
        self.v: Field = (y * cos - x * sin).astype(np.float32)
        self.inner: Field = self.u - np.float32(seen.yaw)  # features slide over the head as it turns
        self.across: Field = np.abs(self.inner)
        self.pixel = 2 / size / seen.scale
        self.luma = channels == 1
        shade = seen.background + 0.15 * self.v
        self.canvas: Field = np.broadcast_to(shade, (channels, size, size)).astype(np.float32)

    def band(self, top: float, bottom: float) -> _Easel:
        """The rows of this easel that a feature between two heights v can touch."""
        rows = np.flatnonzero(((self.v > top) & (self.v < bottom)).any(axis=1))
        part = copy(self)
        cut = slice(rows[0], rows[-1] + 1)
        part.u, part.v, part.inner, part.across = self.u[cut], self.v[cut], self.inner[cut], self.across[cut]
        part.canvas = self.canvas[:, cut]
        return part

    def paint(self, cover: Field, colour: tuple[float, float, float] | NDArray[np.float64]) -> None:
        tone = np.array([np.dot(LUMA, colour)]) if self.luma else np.asarray(colour)
        self.canvas += cover * (tone.astype(np.float32)[:, None, None] - self.canvas)

    def cover(self, distance: Field) -> Field:
        """1 inside, 0 outside, and the covered part of the pixels between."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)

    def ellipse(self, u: Field, v: Field, width: float, height: float) -> Field:
        reach = np.sqrt((u / width) ** 2 + (v / height) ** 2)
        return self.cover((reach - 1) * min(width, height))


def _shade(colour: tuple[float, float, float], factor: float) -> NDArray[np.float64]:
    return np.asarray(colour) * factor


def _head(easel: _Easel, who: Identity) -> None:
    u, v = easel.u, easel.v
    across = np.abs(u)
    easel.paint(easel.ellipse(u, v + 0.12, who.width * 1.2, who.height), who.hair)
    long_hair = np.maximum(across - who.width * 1.15, np.abs(v - who.hair_length / 2) - who.hair_length / 2)
    easel.paint(easel.cover(long_hair), who.hair)
    easel.paint(easel.ellipse(u, v - 1.35, 0.95, 0.55), who.clothes)
    easel.paint(easel.cover(np.maximum(across - 0.26, np.abs(v - 0.65) - 0.3)), _shade(who.skin, 0.75))
    easel.paint(
        easel.ellipse(across - who.width, v - who.eye_level - 0.1, 0.07, 0.13), _shade(who.skin, 0.85)
    )
    narrowing = 1 - who.jaw * np.maximum(v, 0) ** 2
    face = easel.ellipse(u / narrowing, v, who.width, who.height)
    easel.paint(face, who.skin)
    fringe = easel.cover(v - who.hairline - 0.35 * u * u)
    easel.paint(easel.ellipse(u, v, who.width * 1.03, who.height * 1.03) * fringe, who.hair)


def _eyes(easel: _Easel, who: Identity, shown: Look) -> None:
    u, v = easel.across - who.eye_gap, easel.v - who.eye_level
    width = 0.115 * who.eye_size
    height = 0.055 * who.eye_size * max(0.12, 1 + 0.75 * shown.eye_open)
    easel.paint(easel.ellipse(u, v + 0.012, width + 0.018, height + 0.018), _shade(who.skin, 0.35))
    white = easel.ellipse(u, v, width, height)
    easel.paint(white, (0.92, 0.92, 0.92))
    easel.paint(white * easel.ellipse(u, v + 0.01, 0.055, 0.055), _shade(who.hair, 0.4))
    if who.glasses:
        rim = np.abs(np.sqrt((u / 0.17) ** 2 + (v / 0.14) ** 2) - 1) * 0.14 - 0.012
        bridge = np.maximum(easel.across - who.eye_gap + 0.16, np.abs(v) - 0.012)
        easel.paint(easel.cover(np.minimum(rim, bridge)), (0.1, 0.1, 0.12))


def _brows(easel: _Easel, who: Identity, shown: Look) -> None:
    along = (easel.across - who.eye_gap) / 0.15  # -1 at the inner end, 1 at the outer
    level = who.eye_level - who.brow_level - 0.08 * shown.brow_raise
    line = level + 0.065 * shown.brow_slant * along + 0.025 * along * along
    distance = np.maximum(np.abs(easel.v - line) - who.brow_weight, (np.abs(along) - 1) * 0.15)
    easel.paint(easel.cover(distance), _shade(who.hair, 0.7))
    furrow = max(0.0, -shown.brow_slant) * 0.6
    if furrow > 0.05:
        crease = np.maximum(np.abs(easel.across - 0.045) - 0.012, np.abs(easel.v - level - 0.04) - 0.06)
        easel.paint(furrow * easel.cover(crease), _shade(who.skin, 0.55))


def _nose(easel: _Easel, who: Identity, shown: Look) -> None:
    wrinkle = max(0.0, shown.nose_wrinkle)
    tip = who.eye_level + who.nose - 0.03 * wrinkle
    u, v = easel.inner, easel.v
    ridge = np.maximum(np.abs(u - 0.045) - 0.015, np.abs(v - who.eye_level - who.nose / 2) - who.nose / 2)
    easel.paint(0.5 * easel.cover(ridge), _shade(who.skin, 0.7))
    easel.paint(
        easel.ellipse(easel.across - 0.06, v - tip, 0.035 + 0.012 * wrinkle, 0.02), _shade(who.skin, 0.4)
    )
    if wrinkle > 0.05:
        band = np.exp(-((u / 0.11) ** 2) - ((v - who.eye_level - 0.06) / 0.09) ** 2)
        stripes = 0.5 + 0.5 * np.cos((v - who.eye_level) * 75)
        easel.paint((0.8 * wrinkle * band * stripes).clip(0, 1), _shade(who.skin, 0.45))
    fold = max(wrinkle, shown.mouth_curve - 0.2, 0.0)
    if fold > 0.05:  # from the wings of the nose to the corners of the mouth
        line = easel.across - 0.1 - 0.45 * (v - tip)
        crease = np.maximum(np.abs(line) - 0.013, np.abs(v - tip - 0.1) - 0.11)
        easel.paint(min(0.8, 0.6 * fold) * easel.cover(crease), _shade(who.skin, 0.6))


def _mouth(easel: _Easel, who: Identity, shown: Look) -> None:
    width = who.mouth * (1 + 0.3 * shown.mouth_width)
    along = easel.inner / width
    square = along * along
    bow = np.sqrt(np.clip(1 - square, 0, 1))
    centre = who.eye_level + who.nose + 0.2 - 0.03 * max(0.0, shown.nose_wrinkle)
    opening = 0.2 * max(0.0, shown.mouth_open)
    one_side = 0.09 * abs(shown.smirk) * np.clip(along * np.sign(shown.smirk), 0, 1)
    middle = centre - 0.1 * shown.mouth_curve * (square - 0.4) - one_side
    upper, lower = middle - 0.3 * opening * bow, middle + 0.7 * opening * bow
    ends = (np.abs(along) - 1) * width
    lips = np.maximum(np.maximum(upper - 0.035 * bow - easel.v, easel.v - lower - 0.045 * bow), ends)
    easel.paint(easel.cover(lips), np.asarray(who.skin) * (0.75, 0.5, 0.55))
    gap = np.maximum(np.maximum(upper - 0.006 - easel.v, easel.v - lower - 0.006), ends)
    inside = easel.cover(gap)
    easel.paint(inside, (0.16, 0.06, 0.06))
    if opening > 0.04:
        easel.paint(inside * easel.cover(easel.v - upper - 0.045), (0.9, 0.9, 0.86))
