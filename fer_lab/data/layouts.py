"""Drawn stand-ins for the data sets with votes, boxes or valence and arousal, in their on-disk layouts.

Written by `python -m fer_lab.data.draw LAYOUT ROOT`, as those of fer_lab.data.draw are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.draw import (
    FER2013_NAMES,
    FER2013_USAGES,
    Portrait,
    draw,
    own_folder,
    save,
    write_fer2013_csv,
    write_folder,
    write_jaffe,
    write_rows,
)
from fer_lab.data.faces import EXPRESSIONS, expression

FERPLUS_COLUMNS = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),
)
FERPLUS_FOLDERS = {"train": "FER2013Train", "validation": "FER2013Valid", "test": "FER2013Test"}
FERPLUS_QUIRKS = {
    7: (5, 5, 0, 0, 0, 0, 0, 0, 0, 0),  # a tie
    11: (1, 0, 1, 1, 1, 1, 1, 1, 2, 1),  # nobody knows
    15: (0, 0, 0, 0, 0, 0, 0, 0, 3, 6),  # not a face
    19: (0, 0, 0, 0, 0, 0, 0, 0, 0, 10),  # not a face, and without an image name
    23: (1, 2, 2, 3, 1, 0, 0, 0, 0, 0),  # no majority
}
"""What the votes of every 30th row are that is so many rows on; without a name where all ten say NF."""

RAFDB_NAMES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
AFFECTNET_OTHERS = ("none", "uncertain", "no face")
OLD_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)
ODD_SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png", ".bmp", ".PNG", ".tif")


class Drawn(NamedTuple):
    """A face of a drawn data set: where it belongs, its place in its usage and in all, and who it shows."""

    usage: str
    turn: int
    position: int
    face: Portrait


class Sketch(NamedTuple):
    """What was written where, in words for the terminal."""

    folder: Path
    total: int
    words: str


def write_ferplus(root: str | Path, counts: Mapping[str, int], layout: str = "csv", seed: int = 0) -> Path:
    """`csv`: fer2013.csv and fer2013new.csv, row by row; `icml`: the same with icml_face_data.csv; `folders`:
    Microsoft's FER2013Train and so on, with pictures and label.csv; `boxes`: those with the older label.csv.

    Ten judges see what is drawn the more surely the stronger it is shown; contempt, which FER2013 does not know,
    is filed under disgust there.
    """
    if layout not in ("csv", "icml", "folders", "boxes"):
        raise ValueError(f"layout={layout!r}; choices: csv, icml, folders, boxes")
    folder = own_folder(root)
    drawn = list(faces(counts, EXPRESSIONS, 48, 1, seed))
    rows = [(_ferplus_name(one), *map(str, _votes(one, seed))) for one in drawn]
    if layout in ("folders", "boxes"):
        _write_ferplus_folders(folder, drawn, rows, with_boxes=layout == "boxes")
        return folder
    write_rows(
        folder / "fer2013new.csv",
        ("Usage", "Image name", *FERPLUS_COLUMNS),
        [(FER2013_USAGES[one.usage], *row) for one, row in zip(drawn, rows, strict=True)],
    )
    table = [_fer2013_row(one) for one in drawn]
    if layout == "csv":
        write_rows(folder / "fer2013.csv", ("emotion", "pixels", "Usage"), table)
    else:
        turned = [(label, usage, pixels) for label, pixels, usage in table]
        write_rows(folder / "icml_face_data.csv", ("emotion", " Usage", " pixels"), turned)
    return folder


def write_rafdb(root: str | Path, counts: Mapping[str, int], layout: str = "official", seed: int = 0) -> Path:
    """`official`: EmoLabel/, Image/aligned, Image/original and the boxes; `folders`: DATASET/train/1..7, as re-packed."""
    if layout not in ("official", "folders"):
        raise ValueError(f"layout={layout!r}; choices: official, folders")
    folder = own_folder(root)
    lines = []
    for one in faces(counts, RAFDB_NAMES, 100, 3, seed):
        label = RAFDB_NAMES.index(one.face.expression) + 1
        stem = f"{one.usage}_{one.turn + 1:0{5 if one.usage == 'train' else 4}d}"
        lines.append(f"{stem}.jpg {label}\n")
        if layout == "folders":
            save(folder / "DATASET" / one.usage / str(label) / f"{stem}_aligned.jpg", one.face)
            continue
        save(folder / "Image/aligned" / f"{stem}_aligned.jpg", one.face)
        scene, (left, top, width, height) = within_scene(one)
        save(folder / "Image/original" / f"{stem}.jpg", one.face._replace(pixels=scene))
        corners = f"{left}.00 {top}.00 {left + width}.00 {top + height}.00 \n"
        _write(folder / "Annotation/boundingbox" / f"{stem}_boundingbox.txt", corners)
    if layout == "official":
        _write(folder / "EmoLabel/list_patition_label.txt", "".join(lines))
    return folder


def write_affectnet(root: str | Path, counts: Mapping[str, int], size: int = 224, seed: int = 0) -> Path:
    """train_set/ and val_set/ (the key `test`), numbers with gaps; 0-d arrays of texts; one in ten is undefined (-2)."""
    folder = own_folder(root)
    for one in faces(counts, EXPRESSIONS, size, 3, seed):
        place = folder / ("train_set" if one.usage == "train" else "val_set")
        number = str(3 * one.turn)
        save(place / "images" / f"{number}.jpg", one.face)
        (place / "annotations").mkdir(exist_ok=True)
        words = {"exp": str(EXPRESSIONS.index(one.face.expression)), "lnd": _landmarks(one, " ")}
        words |= dict(zip(("val", "aro"), _affect_words(one), strict=True))
        for kind, word in words.items():
            np.save(place / "annotations" / f"{number}_{kind}.npy", np.array(word))
    return folder


def write_affectnet_old(
    root: str | Path, counts: Mapping[str, int], header: bool = False, seed: int = 0
) -> Path:
    """training.csv, headerless as it often is, validation.csv, and Manually_Annotated_Images/ with numbered folders.

    Every eleventh turn is a row of each that is no expression (none, uncertain, no face), with -2 and, for no face,
    without a box; suffixes are odd; the last training picture is cut short.
    """
    folder = own_folder(root)
    images = folder / "Manually_Annotated_Images"
    rows: dict[str, list[str]] = {"train": [], "test": []}
    last = None
    for one in faces(counts, (*EXPRESSIONS, *AFFECTNET_OTHERS), 96, 3, seed):
        name = f"{one.turn % 5 + 1}/{one.position:056x}{ODD_SUFFIXES[one.position % len(ODD_SUFFIXES)]}"
        scene, box = within_scene(one)
        save(images / name, one.face._replace(pixels=scene))
        rows[one.usage].append(",".join((name, *_old_words(one, box))))
        last = images / name if one.usage == "train" else last
    if last:
        last.write_bytes(last.read_bytes()[:300])
    for usage, file in (("train", "training.csv"), ("test", "validation.csv")):
        top = [OLD_HEADER] if header or usage == "test" else []
        _write(folder / file, "\n".join([*top, *rows[usage], ""]))
    return folder


def faces(
    counts: Mapping[str, int], shown: tuple[str, ...], size: int, channels: int, seed: int
) -> Iterator[Drawn]:
    """`counts` faces of each usage, the expressions in turn, each of another person; other words are drawn neutral."""
    position = 0
    for usage, count in counts.items():
        for turn in range(count):
            word = shown[turn % len(shown)]
            face = draw(seed, position, position, word if word in EXPRESSIONS else "neutral", size, channels)
            yield Drawn(usage, turn, position, face._replace(expression=word))
            position += 1


def within_scene(one: Drawn) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """A picture half as large again with the face somewhere in it, and the box of the face."""
    side = len(one.face.pixels)
    random = np.random.default_rng((one.position, 2))
    left, top = (int(place) for place in random.integers(0, side // 2, 2))
    scene = random.integers(60, 120, (side * 3 // 2, side * 2, 3)).astype(np.uint8)
    scene[top : top + side, left : left + side] = one.face.pixels
    return scene, (left, top, side, side)


def _votes(one: Drawn, seed: int) -> tuple[int, ...]:
    """Of ten judges; a strongly shown face is hardly mistaken."""
    if (quirk := FERPLUS_QUIRKS.get(one.position % 30)) is not None:
        return quirk
    chances = np.full(len(FERPLUS_COLUMNS), (1 - one.face.intensity) * 0.35 / 9)
    chances[FERPLUS_COLUMNS.index(one.face.expression)] += 1 - chances.sum()
    drawn = np.random.default_rng((seed, 3, one.position)).multinomial(10, chances)
    return tuple(int(count) for count in drawn)


def _ferplus_name(one: Drawn) -> str:
    return "" if FERPLUS_QUIRKS.get(one.position % 30, ())[-1:] == (10,) else f"fer{one.position:07d}.png"


def _fer2013_row(one: Drawn) -> tuple[str, str, str]:
    known = {expression(name): label for label, name in enumerate(FER2013_NAMES)}
    label = known[one.face.expression if one.face.expression in known else "disgust"]
    return str(label), " ".join(map(str, one.face.pixels.ravel())), FER2013_USAGES[one.usage]


def _write_ferplus_folders(
    folder: Path, drawn: list[Drawn], rows: list[tuple[str, ...]], with_boxes: bool
) -> None:
    lists: dict[str, list[tuple[str, ...]]] = {}
    for one, (name, *votes) in zip(drawn, rows, strict=True):
        if name:
            box = ("(0, 0, 48, 48)",) if with_boxes else ()
            lists.setdefault(FERPLUS_FOLDERS[one.usage], []).append((name, *box, *votes))
            save(folder / FERPLUS_FOLDERS[one.usage] / name, one.face)
    for place, lines in lists.items():
        write_rows(folder / place / "label.csv", (), lines)


def _affect_words(one: Drawn) -> tuple[str, str]:
    if one.position % 10 == 9 or one.face.expression in AFFECTNET_OTHERS:
        return "-2", "-2"
    return f"{one.face.valence:.6g}", f"{one.face.arousal:.6g}"


def _old_words(one: Drawn, box: tuple[int, int, int, int]) -> tuple[str, ...]:
    label = (*EXPRESSIONS, *AFFECTNET_OTHERS).index(one.face.expression)
    if one.face.expression == "no face":
        return "NULL", "NULL", "NULL", "NULL", "NULL", str(label), "-2", "-2"
    return *map(str, box), _landmarks(one, ";"), str(label), *_affect_words(one)


def _landmarks(one: Drawn, between: str) -> str:
    """68 points; only their form is real."""
    points = np.random.default_rng((one.position, 4)).uniform(0, len(one.face.pixels), 136)
    return between.join(f"{value:.2f}" for value in points)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "ascii")


def _with(write: Callable[..., Path], words: str, *usages: str) -> Callable[[str, int, int], Sketch]:
    """A writer of so many training faces, and half as many in all of the other usages."""

    def written(root: str, count: int, seed: int) -> Sketch:
        counts = {"train": count} | {usage: count // 2 // len(usages) for usage in usages}
        return Sketch(write(root, counts, seed=seed), sum(counts.values()), words)

    return written


def _jaffe(root: str, count: int, seed: int) -> Sketch:
    return Sketch(write_jaffe(root, seed), 213, "JAFFE, of 10 people")


LAYOUTS: dict[str, Callable[[str, int, int], Sketch]] = {
    "jaffe": _jaffe,
    "fer2013": _with(write_fer2013_csv, "FER2013", "validation", "test"),
    "ferplus": _with(write_ferplus, "FER+", "validation", "test"),
    "rafdb": _with(write_rafdb, "RAF-DB", "test"),
    "affectnet": _with(write_affectnet, "AffectNet", "test"),
    "affectnet_old": _with(write_affectnet_old, "AffectNet's first release", "test"),
    "folder": _with(write_folder, "folders by expression", "validation", "test"),
}
"""What `python -m fer_lab.data.draw` offers, by the name of the data set."""
