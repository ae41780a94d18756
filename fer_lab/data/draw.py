"""Drawn stand-ins for real data sets, in their on-disk layouts, quirks included.

python -m fer_lab.data.draw jaffe data/jaffe_drawn
python -m fer_lab.data.draw video drawn.mp4 300
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.data import portrait
from fer_lab.data.faces import EXPRESSIONS, DataError, expression

MARK = "Drawn by fer_lab; no photograph of anybody."
JAFFE_COUNTS = {"NE": 30, "HA": 31, "SA": 31, "SU": 30, "AN": 30, "DI": 29, "FE": 32}
JAFFE_ORDER = ("KM", "KA", "KL", "KR", "MK", "NA", "NM", "TM", "UY", "YM")
JAFFE_THREE_BUT = {
    ("KA", "FE"): 4, ("KA", "HA"): 4, ("KL", "SA"): 4, ("KM", "FE"): 4,
    ("KR", "DI"): 2, ("NM", "AN"): 2, ("YM", "AN"): 4,
}  # fmt: skip
JAFFE_GAPS = (6, 13, 20, 77, 130, 184)
FER2013_NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FER2013_USAGES = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}


class Portrait(NamedTuple):
    """A drawn face, (size, size) grey or (size, size, 3) RGB, and what is true of it."""

    pixels: NDArray[np.uint8]
    expression: str
    intensity: float
    valence: float
    arousal: float


def draw(seed: int, person: int, position: int, shown: str, size: int = 48, channels: int = 1) -> Portrait:
    """The face at `position` of the drawn world `seed`; the same arguments give the same pixels.

    Some faces are shown so faintly (`intensity` towards 0) that nobody could be sure.
    """
    random, intensity, look = _shown(seed, position, shown)
    who = portrait.identity(np.random.default_rng((seed, 0, person)))
    pixels = portrait.render(who, look, portrait.view(random), size, channels, random)
    return Portrait(pixels, shown, intensity, look.valence, look.arousal)


def affect(seed: int, position: int, shown: str) -> tuple[float, float]:
    """Valence and arousal of the face that `draw` gives, without drawing it."""
    look = _shown(seed, position, shown)[2]
    return look.valence, look.arousal


def write_jaffe(root: str | Path, seed: int = 0) -> Path:
    """213 TIFFs of 256x256 with JAFFE's subjects, counts, names and quirks; returns the root.

    190 are big-endian grey; all of KM and KA.AN1.39 are little-endian palette with the palette reversed,
    so that reading the indices as grey gives a negative. README and .DS_Store lie among them.
    """
    import tifffile

    folder = own_folder(root)
    palette = np.repeat(np.arange(255, -1, -1, dtype=np.uint16)[None] * 257, 3, axis=0)
    for subject, code, name, serial in _jaffe_names():
        pixels = draw(seed, JAFFE_ORDER.index(subject), serial, expression(code), 256).pixels
        path = folder / f"{name}.tiff"
        plain: dict[str, Any] = {
            "byteorder": ">",
            "photometric": "minisblack",
            "software": False,
            "metadata": None,
        }
        if subject == "KM" or name == "KA.AN1.39":
            plain.update(byteorder="<", photometric="palette", colormap=palette)
            pixels = 255 - pixels
        tifffile.imwrite(path, pixels, **plain)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return folder


def write_fer2013_csv(
    root: str | Path, counts: Mapping[str, int], header: str = "official", seed: int = 0
) -> Path:
    """`counts` faces per usage (train, validation, test), the seven classes in turn.

    header: `official` fer2013.csv; `icml` icml_face_data.csv, other order and leading spaces; `kaggle`
    train.csv without Usage and test.csv with neither Usage nor labels.
    """
    folder = own_folder(root)
    rows = [
        (str(label), " ".join(map(str, face.pixels.ravel())), FER2013_USAGES[usage])
        for usage, label, _, face in _fer2013_faces(counts, seed)
    ]
    if header == "official":
        write_rows(folder / "fer2013.csv", ("emotion", "pixels", "Usage"), rows)
    elif header == "icml":
        turned = [(label, usage, pixels) for label, pixels, usage in rows]
        write_rows(folder / "icml_face_data.csv", ("emotion", " Usage", " pixels"), turned)
    elif header == "kaggle":
        train = [row[:2] for row in rows if row[2] == "Training"]
        write_rows(folder / "train.csv", ("emotion", "pixels"), train)
        write_rows(folder / "test.csv", ("pixels",), [row[1:2] for row in rows if row[2] != "Training"])
    else:
        raise ValueError(f"header={header!r}; choices: official, icml, kaggle")
    return folder


def write_fer2013_folders(
    root: str | Path, counts: Mapping[str, int], layout: str = "kaggle", seed: int = 0
) -> Path:
    """`kaggle`: train/ and test/ with the usage in the file names; `usage`: Training/, PublicTest/, ….

    Numbers start again in every class, as stems are not unique in the real set either.
    """
    if layout not in ("kaggle", "usage"):
        raise ValueError(f"layout={layout!r}; choices: kaggle, usage")
    folder = own_folder(root)
    for usage, label, number, face in _fer2013_faces(counts, seed):
        official = FER2013_USAGES[usage]
        top = official if layout == "usage" else "train" if usage == "train" else "test"
        name = f"{official}_{number}.jpg" if layout == "kaggle" else f"{number}.jpg"
        save(folder / top / FER2013_NAMES[label] / name, face)
    return folder


def write_folder(
    root: str | Path,
    counts: Mapping[str, int],
    classes: tuple[str, ...] = EXPRESSIONS[:7],
    suffixes: tuple[str, ...] = (".png", ".jpg", ".bmp", ".tif", ".webp"),
    size: int = 64,
    seed: int = 0,
) -> Path:
    """`counts` RGB faces per split folder; the key "" writes root/<class>. Files are personP_N.suffix, P of four."""
    folder = own_folder(root)
    number = 0
    for split, count in counts.items():
        for turn in range(count):
            shown = classes[turn % len(classes)]
            face = draw(seed, number // 4, number, expression(shown), size, channels=3)
            name = f"person{number // 4}_{number}{suffixes[number % len(suffixes)]}"
            save(folder / split / shown / name, face)
            number += 1
    return folder


def _shown(seed: int, position: int, shown: str) -> tuple[np.random.Generator, float, portrait.Look]:
    """The intensity and the look of a face, and the generator that goes on to how it is seen."""
    random = np.random.default_rng((seed, 1, position))
    intensity = 0.35 + 0.65 * float(random.beta(2.0, 1.0))
    return random, intensity, portrait.look(shown, intensity, random)


def own_folder(root: str | Path) -> Path:
    """The folder, made if need be; refuses one that holds anything that was not drawn."""
    folder = Path(root).expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder to draw into")
    note = folder / "README"
    if folder.is_dir() and any(folder.iterdir()) and not (note.is_file() and MARK in note.read_text("utf-8")):
        raise DataError(f"{folder} holds files that this program did not draw; name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(MARK + "\n", "utf-8")
    return folder


def _jaffe_names() -> Iterator[tuple[str, str, str, int]]:
    """Subject, code, stem and serial of every picture; KA.AN1.39 falls where it does in JAFFE."""
    serials = (serial for serial in range(1, 220) if serial not in JAFFE_GAPS)
    for subject in JAFFE_ORDER:
        for code in JAFFE_COUNTS:
            count = JAFFE_THREE_BUT.get((subject, code), 3)
            skips = count == 2 or (subject, code) in {("NA", "HA"), ("TM", "FE"), ("YM", "SU")}
            digits = [1, 3, 4] if skips else [1, 2, 3, 4]
            for digit in digits[:count]:
                serial = next(serials)
                yield subject, code, f"{subject}.{code}{digit}.{serial}", serial


def _fer2013_faces(counts: Mapping[str, int], seed: int) -> Iterator[tuple[str, int, int, Portrait]]:
    position = 0
    for usage, count in counts.items():
        for turn in range(count):
            label = turn % len(FER2013_NAMES)
            face = draw(seed, position, position, expression(FER2013_NAMES[label]))
            yield usage, label, turn // len(FER2013_NAMES), face
            position += 1


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header] if header else [])
        writer.writerows(rows)


def save(path: Path, face: Portrait) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(face.pixels).save(path)


def main(arguments: list[str] | None = None) -> int:
    from fer_lab.data.layouts import LAYOUTS

    parser = argparse.ArgumentParser(prog="python -m fer_lab.data.draw", description=__doc__)
    parser.add_argument(
        "layout", choices=(*LAYOUTS, "video"), help="the data set whose layout is written, or a video"
    )
    parser.add_argument("root", help="a new or empty folder, e.g. data/jaffe_drawn; for a video a new file")
    parser.add_argument(
        "frames", nargs="?", type=int, default=300, help="of a video, 30 a second (default 300)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other people (default 0)")
    parser.add_argument(
        "--faces", type=int, default=700, help="training faces, and half as many to test (not jaffe)"
    )
    asked = parser.parse_args(arguments)
    try:
        if asked.layout == "video":
            return _draw_video(asked.root, asked.frames, asked.seed)
        folder, count, words = LAYOUTS[asked.layout](asked.root, asked.faces, asked.seed)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{count} drawn faces in {folder}, laid out like {words}. Next:")
    options = "model=vgg19 " if asked.layout == "jaffe" else ""
    weights = " model.weights=null" if options else ""
    print(f"  python -m fer_lab.train {options}data={asked.layout} data.root={folder}{weights}")
    return 0


def _draw_video(path: str, frames: int, seed: int) -> int:
    from fer_lab.data.moving import write_video

    target = write_video(path, frames, seed)
    print(f"{frames} drawn frames in {target}. Next:\n  python -m fer_lab.predict run=ID source={target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
