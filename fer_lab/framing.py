"""How the faces that trained a net stand in their pictures, so that faces a detector finds can be cut out alike.

A net that learned from whole pictures has no margin of its own, that of the data set's own boxes (data.crop=box) is not
one of a detector's squares, and a net that always sees faces cut closer or wider than those it learned from errs more.
So the detector looks at some of the pictures that trained it, once, and what it finds is kept beside the weights. In
pictures that are cut much closer than its squares it finds none: their margin stays unknown.

Of a run on FER2013, framing.json shows that its pictures are nearly the detector's squares themselves.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hydra.errors import InstantiationException
from numpy.typing import NDArray
from omegaconf.errors import OmegaConfBaseException

from fer_lab.cli import UsageError
from fer_lab.data.crop import NEIGHBOURS, SCALE_STEP, Crop, cascade
from fer_lab.data.faces import DataError
from fer_lab.data.images import BadImage, grey, square

if TYPE_CHECKING:
    from omegaconf import DictConfig

FILE = "framing.json"
PICTURES = 200
ENOUGH = 20
"""Found faces below which their median says little."""
SIDE = 192
"""Pixels that a picture is looked at with: faces of 48 pixels are too coarse for the cascade's steps."""
ROOM = SIDE // 4
"""Reflected around the picture on each side: the detector's square of a face that fills the picture reaches over it."""
OFF_CENTRE = 0.25
"""Shares of the side; what is found further from the middle is no face that the picture was cut for."""
CLOSEST, WIDEST = -0.25, 1.0
SMALLEST = round(SIDE / (1 + 2 * WIDEST))
UNKNOWABLE = (
    DataError,
    UsageError,
    InstantiationException,
    OmegaConfBaseException,
    OSError,
    ValueError,
    KeyError,
)
"""No data here, no OpenCV, a data set or a record of another version; a folder that may only be read."""


class Framing(NamedTuple):
    """`margin` moves each edge of the detector's square outwards (inwards below 0) by so much of its side to where the
    edge of a training picture was: the median over `found` of the `looked` pictures. `across` and `down`: where the
    square's middle lies from the picture's, as shares of the picture's side, medians too."""

    margin: float
    across: float
    down: float
    found: int
    looked: int


def framing_of(folder: Path, config: DictConfig) -> Framing | None:
    """Of a run that learned from whole pictures or the data set's boxes, kept in its folder from the first time on; None
    where its data are not on this machine, OpenCV is not, or too few faces were found."""
    known = read(folder / FILE)
    if known is None:
        with suppress(*UNKNOWABLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a data set that is not quite the published one
            known = measured(training_pictures(folder, config))
            if known.looked:  # else the data set has other pictures by now
                write(folder / FILE, known)
    return known if known is not None and known.found >= ENOUGH else None


def training_pictures(folder: Path, config: DictConfig) -> Iterator[NDArray[np.uint8]]:
    """Up to PICTURES of them, spread over all that trained the run, (H, W) grey: what was cut out of them, as large as it is
    on disk."""
    from fer_lab.build import instantiate

    names = json.loads((folder / "split.json").read_text())["train"]
    chosen = [names[place] for place in np.linspace(0, len(names) - 1, min(len(names), PICTURES)).astype(int)]
    source = instantiate(config.data.source)
    crop = Crop(config.data.get("crop", "none"), config.data.get("margin", 0.0))
    items = {item.name: item for item in source.items()}
    for item in (items[name] for name in chosen if name in items):
        with suppress(BadImage):
            yield grey(crop(source.pixels(item), item))


def measured(pictures: Iterator[NDArray[np.uint8]]) -> Framing:
    """Raises DataError where there is no OpenCV."""
    looks = [place_of_face(pixels) for pixels in pictures]
    found = np.array([look for look in looks if look is not None]).reshape(-1, 3)
    if not len(found):
        return Framing(0.0, 0.0, 0.0, 0, len(looks))
    margin, across, down = (round(float(value), 3) for value in np.median(found, axis=0))
    return Framing(min(max(margin, CLOSEST), WIDEST), across, down, len(found), len(looks))


def place_of_face(pixels: NDArray[np.uint8]) -> tuple[float, float, float] | None:
    """Margin, and how far right and down of the middle, of the largest face in the centre square of (H, W) pixels."""
    seen = np.pad(square(pixels, SIDE, 1)[0], ROOM, mode="reflect")
    found = cascade().detectMultiScale(
        seen, scaleFactor=SCALE_STEP, minNeighbors=NEIGHBOURS[0], minSize=(SMALLEST, SMALLEST)
    )
    places = [
        (width, (left + width / 2 - ROOM) / SIDE - 0.5, (top + width / 2 - ROOM) / SIDE - 0.5)
        for left, top, width, _ in np.asarray(found).reshape(-1, 4).tolist()  # the cascade's boxes are square
    ]
    near = [place for place in places if max(map(abs, place[1:])) <= OFF_CENTRE]
    if not near:
        return None
    width, across, down = max(near)
    return (SIDE / width - 1) / 2, across, down


def read(path: Path) -> Framing | None:
    """What an earlier look kept; None where nobody looked or the file is another's."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
        return Framing(**{name: kept[name] for name in Framing._fields})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, framing: Framing) -> None:
    """Whole or not at all: two predictions may look at the same time."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(framing._asdict()))
    part.replace(path)
