"""Boxes, labels and bars on a frame. Numpy alone: a frame costs less than a millisecond, and text is drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fer_lab.live.faces import Pixels, Told

Colour = tuple[int, int, int]
Area = tuple[int, int, int, int]
"""Left, top, right, bottom."""

COLOURS: dict[str, Colour] = {
    "neutral": (176, 182, 190),
    "happiness": (240, 201, 48),
    "sadness": (61, 143, 217),
    "surprise": (86, 197, 233),
    "fear": (204, 121, 167),
    "disgust": (0, 158, 115),
    "anger": (225, 94, 10),
    "contempt": (160, 120, 95),
}
"""Okabe and Ito's, a little lighter, so that they stand on dark ground; the figures and the page use the same."""

TEAL: Colour = (64, 190, 178)
DARK, TRACK, LIGHT, WHITE = (18, 21, 26), (62, 67, 75), (206, 211, 218), (255, 255, 255)
OPACITY = 200
AFFECT = ("valence", "arousal")
LARGEST = 48
"""Pixels of the text's size; what is kept of it for the next frame is some hundred MB at worst."""

PANELS = 3
"""Of so many faces, the largest, all probabilities are drawn; of the others the likeliest alone."""

FINER = 4
"""Round corners are drawn so many times larger, and shrunk."""


class Sprite(NamedTuple):
    """A small picture to lay over another: `opacity` in 0..256 and `colour` times that, both (H, W, 3)."""

    colour: NDArray[np.uint16]
    opacity: NDArray[np.uint16]


def annotate(pixels: Pixels, tolds: Sequence[Told], classes: Sequence[str], caption: str = "") -> Pixels:
    """A copy of the frame with every face's box, the likeliest expression and, of the largest faces, all that was told;
    `caption` (lines of ASCII) stands in the upper left corner."""
    drawn = np.array(pixels)
    size = text_size(drawn)
    order = sorted(tolds, key=lambda told: -told.face.box[2] * told.face.box[3])
    taken = [area_of(told) for told in order]
    for told in reversed(order):  # the largest last, over the others
        draw_box(drawn, area_of(told), colour_of(told, classes), max(2, size // 6))
    for told in order:
        draw_label(
            drawn, told, label_of(told, classes, numbered=len(tolds) > 1), colour_of(told, classes), size
        )
    for told in order[:PANELS]:
        draw_panel(drawn, told, classes, size, taken)
    for line, words in enumerate(caption.splitlines()):
        lay(drawn, chip(words, DARK, size), size // 2, size // 2 + line * 2 * size)
    return drawn


def text_size(pixels: Pixels) -> int:
    """In pixels, so that seven bars fill about a quarter of the frame's height."""
    return min(LARGEST, max(11, round(min(pixels.shape[:2]) / 38)))


def area_of(told: Told) -> Area:
    left, top, width, height = told.face.box
    return left, top, left + width, top + height


def colour_of(told: Told, classes: Sequence[str]) -> Colour:
    return COLOURS.get(classes[int(told.probabilities.argmax())], TEAL) if len(told.probabilities) else TEAL


def label_of(told: Told, classes: Sequence[str], numbered: bool) -> str:
    """The likeliest expression and its probability, else valence and arousal, behind the face's number."""
    number = f"#{told.face_id}  " if numbered else ""
    if len(told.probabilities):
        best = int(told.probabilities.argmax())
        return f"{number}{classes[best]} {told.probabilities[best]:.0%}"
    if told.affect is not None:
        return f"{number}valence {told.affect[0]:+.2f}  arousal {told.affect[1]:+.2f}"
    return f"{number}face"


def draw_box(pixels: Pixels, area: Area, colour: Colour, thick: int) -> None:
    """A thin frame with strong corners."""
    left, top, right, bottom = area
    reach = max(2 * thick, (right - left) // 6)
    for row, inward in ((top, 1), (bottom - 1, -1)):
        fill(pixels, (left, row, right, row + 1), colour)
        for start, end in ((left, left + reach), (right - reach, right)):
            fill(
                pixels,
                (start, min(row, row + inward * (thick - 1)), end, max(row, row + inward * (thick - 1)) + 1),
                colour,
            )
    for column, inward in ((left, 1), (right - 1, -1)):
        fill(pixels, (column, top, column + 1, bottom), colour)
        for start, end in ((top, top + reach), (bottom - reach, bottom)):
            first, last = sorted((column, column + inward * (thick - 1)))
            fill(pixels, (first, start, last + 1, end), colour)


def draw_label(pixels: Pixels, told: Told, words: str, colour: Colour, size: int) -> None:
    """Above the box; inside its upper edge where there is no room above."""
    left, top, _, _ = told.face.box
    sprite = chip(words, colour, size)
    height, width = sprite.opacity.shape[:2]
    above = top - height - 2
    left = min(max(left, 0), max(0, pixels.shape[1] - width))
    lay(pixels, sprite, left, above if above >= 0 else max(top, 0) + 2)


def draw_panel(pixels: Pixels, told: Told, classes: Sequence[str], size: int, taken: list[Area]) -> None:
    """A row for each class, then valence and arousal, beside the box where the least is hidden by it."""
    bars = bars_of(told, classes)
    if not bars:
        return
    ground, (first, last), row_height = panel(tuple(bar.name for bar in bars), size)
    height, width = ground.opacity.shape[:2]
    place = best_place(area_of(told), (height, width), pixels.shape, taken, size // 2)
    if place is None:
        return
    left, top = place
    taken.append((left, top, left + width, top + height))
    lay(pixels, ground, left, top)
    for row, bar in enumerate(bars):
        line = top + size // 2 + row * row_height
        start, end = (left + first + round((last - first) * share) for share in (bar.start, bar.end))
        fill(pixels, (start, line + size // 2, max(end, start + 1), line + size), bar.colour)
        number = text(bar.words, size, LIGHT)
        lay(pixels, number, left + width - size // 2 - number.opacity.shape[1], line)


class Bar(NamedTuple):
    """From `start` to `end`, both in 0..1; `words` say how much it is."""

    name: str
    words: str
    start: float
    end: float
    colour: Colour


def bars_of(told: Told, classes: Sequence[str]) -> list[Bar]:
    """Valence and arousal have their zero in the middle."""
    shares = zip(classes, told.probabilities.tolist(), strict=False)
    bars = [Bar(name, f"{share:.0%}", 0.0, share, COLOURS.get(name, TEAL)) for name, share in shares]
    if told.affect is not None:
        for name, value in zip(AFFECT, told.affect.tolist(), strict=True):
            start, end = sorted((0.5, (value + 1) / 2))
            bars.append(Bar(name, f"{value:+.2f}", start, end, TEAL))
    return bars


def with_room(pixels: Pixels, tolds: Sequence[Told], classes: Sequence[str]) -> Pixels:
    """The picture, made wider on its right where its largest face would be hidden by its own bars."""
    told = max(tolds, key=lambda told: told.face.box[2] * told.face.box[3], default=None)
    if told is None or not (bars := bars_of(told, classes)):
        return pixels
    size = text_size(pixels)
    height, width = panel(tuple(bar.name for bar in bars), size)[0].opacity.shape[:2]
    place = best_place(area_of(told), (height, width), pixels.shape, [area_of(told)], size // 2)
    if place and not overlap((*place, place[0] + width, place[1] + height), area_of(told)):
        return pixels
    beside = told.face.box[0] + told.face.box[2] + width + size
    missing = max(0, height - pixels.shape[0]), max(0, beside - pixels.shape[1])
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=DARK[1])


def best_place(
    face: Area, shape: tuple[int, ...], frame: tuple[int, ...], taken: Sequence[Area], gap: int
) -> tuple[int, int] | None:
    """Left and top of a panel of `shape` right of the face, left of it, below or above, inside the frame; None where it
    would hide a third of what it has to hide the least."""
    height, width = shape[:2]
    if height > frame[0] or width > frame[1]:
        return None
    left, top, right, bottom = face
    places = [
        (min(max(column, 0), frame[1] - width), min(max(row, 0), frame[0] - height))
        for column, row in (
            (right + gap, top),
            (left - gap - width, top),
            (left, bottom + gap),
            (left, top - 3 * gap - height),
        )
    ]

    def hidden(place: tuple[int, int]) -> int:
        area = (*place, place[0] + width, place[1] + height)
        return sum(overlap(area, other) for other in taken)

    best = min(places, key=hidden)
    return best if len(taken) == 1 or hidden(best) <= height * width / 3 else None


def overlap(one: Area, other: Area) -> int:
    """In pixels."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, across) * max(0, down)


def fill(pixels: Pixels, area: Area, colour: Colour) -> None:
    left, top, right, bottom = (max(0, edge) for edge in area)
    pixels[top:bottom, left:right] = colour


def lay(pixels: Pixels, sprite: Sprite, left: int, top: int) -> None:
    """Lays it over the frame, as far as it is inside."""
    height, width = sprite.opacity.shape[:2]
    region = pixels[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    first, start = max(0, -top), max(0, -left)
    cut = np.s_[first : first + region.shape[0], start : start + region.shape[1]]
    colour, opacity = sprite.colour[cut], sprite.opacity[cut]
    region[:] = (region * (256 - opacity) + colour) >> 8


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(512)
def text(words: str, size: int, colour: Colour) -> Sprite:
    """(about 1.5 sizes, as wide as the words): all lines of one size are equally high."""
    width = round(font(size).getlength(words)) + 1
    mask = Image.new("L", (width, size + size // 2))
    ImageDraw.Draw(mask).text((0, size * 1.08), words, font=font(size), fill=255, anchor="ls")
    return sprite_of(np.asarray(mask), colour)


def sprite_of(mask: NDArray[np.uint8], colour: Colour) -> Sprite:
    opacity = np.rint(mask[..., None].repeat(3, 2) * (256 / 255)).astype(np.uint16)
    return Sprite(opacity * np.array(colour, np.uint16), opacity)


@lru_cache(256)
def chip(words: str, colour: Colour, size: int) -> Sprite:
    """Words on a round-cornered ground, dark on light colours and light on dark ones."""
    bright = colour[0] * 0.299 + colour[1] * 0.587 + colour[2] * 0.114 > 110
    line = text(words, size, (10, 12, 16) if bright else WHITE)
    height, width = line.opacity.shape[:2]
    ground = rounded(width + size, height + size // 3, size // 3, colour, 230 if bright else OPACITY)
    return over(ground, line, size // 2, size // 6)


@lru_cache(8)
def panel(names: tuple[str, ...], size: int) -> tuple[Sprite, tuple[int, int], int]:
    """Ground, names and empty bars; the bars' left and right edge; the height of a row."""
    row_height, pad = size + size // 2, size // 2
    first = 2 * pad + max(text(name, size, LIGHT).opacity.shape[1] for name in names)
    last = first + 5 * size
    width = last + pad + text("+0.00", size, LIGHT).opacity.shape[1] + pad
    ground = rounded(width, row_height * len(names) + 2 * pad, pad, DARK, OPACITY)
    for row, name in enumerate(names):
        top = pad + row * row_height
        ground = over(ground, text(name, size, LIGHT), pad, top)
        bar = np.s_[top + size // 2 : top + size, first:last]
        ground.opacity[bar], ground.colour[bar] = 256, np.array(TRACK, np.uint16) * 256
    return ground, (first, last), row_height


def rounded(width: int, height: int, radius: int, colour: Colour, opacity: int) -> Sprite:
    mask = Image.new("L", (width * FINER, height * FINER))
    area = (0, 0, width * FINER - 1, height * FINER - 1)
    ImageDraw.Draw(mask).rounded_rectangle(area, radius * FINER, fill=opacity)
    return sprite_of(np.asarray(mask.resize((width, height), Image.Resampling.BOX)), colour)


def over(ground: Sprite, sprite: Sprite, left: int, top: int) -> Sprite:
    """`sprite` on `ground`, of the size of `ground`."""
    colour, opacity = ground.colour.copy(), ground.opacity.copy()
    height, width = sprite.opacity.shape[:2]
    region = np.s_[top : top + height, left : left + width]
    rest = 256 - sprite.opacity.astype(np.uint32)
    colour[region] = sprite.colour + (colour[region] * rest >> 8)
    opacity[region] = sprite.opacity + (opacity[region] * rest >> 8)
    return Sprite(colour, opacity)
