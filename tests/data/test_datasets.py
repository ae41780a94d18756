"""Every layout and header, drawn and read back; labels are checked by the name of the expression."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.data.draw import draw, write_fer2013_csv, write_fer2013_folders, write_folder
from fer_lab.data.faces import DataError, Item, Source
from fer_lab.data.fer2013 import Fer2013
from fer_lab.data.folder import Folder
from fer_lab.data.images import BadImage
from fer_lab.data.jaffe import Jaffe

COUNTS = {"train": 14, "validation": 7, "test": 9}
FER2013_TURNS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
pytestmark = pytest.mark.filterwarnings("ignore:.*results will not compare")


def shown(source: Source, item: Item) -> str:
    return source.classes[item.label]


# JAFFE


def test_jaffe_reads_names_people_and_all_kinds_of_tiff(drawn_jaffe: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # complete: nothing to warn of
        source = Jaffe(str(drawn_jaffe))
        items = source.items()
    assert Counter(shown(source, item) for item in items) == {
        "anger": 30, "disgust": 29, "fear": 32, "happiness": 31, "neutral": 30, "sadness": 31, "surprise": 30,
    }  # fmt: skip
    assert len({item.subject for item in items}) == 10 and all(item.usage is None for item in items)
    for name, person, serial, expression in (
        ("KA.AN1.39.tiff", 1, 39, "anger"),
        ("KA.AN2.40.tiff", 1, 40, "anger"),
        ("KM.NE1.1.tiff", 0, 1, "neutral"),
    ):
        item = next(item for item in items if item.name == name)
        assert (shown(source, item), item.subject) == (expression, name[:2])
        assert np.array_equal(source.pixels(item), draw(0, person, serial, expression, 256).pixels)


def test_jaffe_per_class_folders_re_encodes_and_strays(drawn_jaffe: Path, tmp_path: Path) -> None:
    for place, path in enumerate(sorted(drawn_jaffe.glob("K[AL].*.tiff"))):
        folder = tmp_path / "jaffedbase" / path.name[3:5]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = (".jpg", ".png", ".tif", ".JPEG")[place % 4]
        Image.open(path).convert("RGB").save(folder / (path.stem + suffix))
        (folder / "Thumbs.db").write_bytes(b"stray")
        (folder / f"._{path.stem}.jpg").write_bytes(b"stray")
        (folder / f"{path.name}.bak").write_bytes(b"stray")
        (folder / "montage.jpg").write_bytes(b"stray")
    source = Jaffe(str(tmp_path))
    items = source.items()
    assert len(items) == 45 and {item.subject for item in items} == {"KA", "KL"}
    assert Jaffe(str(drawn_jaffe)).classes[next(i for i in items if "HA" in i.name).label] == "happiness"
    assert all(source.pixels(item).shape == (256, 256) for item in items[:8])


def test_jaffe_twice_in_one_folder_counts_once(drawn_jaffe: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "copy"):
        folder.mkdir(exist_ok=True)
        (folder / "KA.AN1.39.tiff").write_bytes((drawn_jaffe / "KA.AN1.39.tiff").read_bytes())
    Image.open(drawn_jaffe / "KA.AN1.39.tiff").convert("L").save(tmp_path / "KA.AN1.39.jpg")
    with pytest.warns(UserWarning, match="2 second copies"):
        items = Jaffe(str(tmp_path)).items()
    assert [item.name for item in items] == ["KA.AN1.39.tiff"]


def test_jaffe_warns_of_other_counts(drawn_jaffe: Path, tmp_path: Path) -> None:
    (tmp_path / "KA.AN1.39.tiff").write_bytes((drawn_jaffe / "KA.AN1.39.tiff").read_bytes())
    with pytest.warns(UserWarning, match="1 pictures, the release has 213 .AN 1 not 30"):
        Jaffe(str(tmp_path)).items()


@pytest.mark.parametrize("root", [None, "/no/such/place"])
def test_missing_jaffe_says_where_from_where_to_and_the_stand_in(root: str | None) -> None:
    with pytest.raises(DataError) as refusal:
        Jaffe(root).stamp()
    for part in ("zenodo.org", "Lyons, Kamachi & Gyoba", "data.root=", "python -m fer_lab.data.draw jaffe"):
        assert part in str(refusal.value)
    if root:
        assert root in str(refusal.value)


def test_an_empty_or_packed_root_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file named like KA\.AN1\.39\.tiff"):
        Jaffe(str(tmp_path)).items()
    (tmp_path / "jaffe.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file, not a folder; unpack it"):
        Jaffe(str(tmp_path / "jaffe.zip")).items()


# FER2013


def read_fer2013(root: Path) -> tuple[Fer2013, list[Item]]:
    source = pickle.loads(pickle.dumps(Fer2013(str(root))))
    return source, source.items()


def expect_drawn(source: Fer2013, items: list[Item], tolerance: int) -> None:
    """`items` in the order they were drawn."""
    place = dict.fromkeys(COUNTS, 0)
    for position, item in enumerate(items):
        assert item.usage is not None
        expression = FER2013_TURNS[place[item.usage] % 7]
        place[item.usage] += 1
        assert shown(source, item) == expression
        pixels = source.pixels(item).astype(int)
        assert np.abs(pixels - draw(0, position, position, expression).pixels).mean() <= tolerance


@pytest.mark.parametrize("header", ["official", "icml"])
def test_fer2013_csv(tmp_path: Path, header: str) -> None:
    source, items = read_fer2013(write_fer2013_csv(tmp_path, COUNTS, header))
    assert Counter(item.usage for item in items) == COUNTS
    assert items[16].name == ("fer2013.csv:17" if header == "official" else "icml_face_data.csv:17")
    expect_drawn(source, items, 0)
    elsewhere = pickle.loads(pickle.dumps(source))
    assert np.array_equal(elsewhere.pixels(items[5]), source.pixels(items[5]))


def test_fer2013_csv_by_its_own_path_and_below_the_root(tmp_path: Path) -> None:
    folder = write_fer2013_csv(tmp_path / "fer2013", COUNTS)
    assert len(read_fer2013(folder / "fer2013.csv")[1]) == len(read_fer2013(tmp_path)[1]) == 30


def test_kaggle_csv_is_all_training_and_says_that_test_has_no_labels(tmp_path: Path) -> None:
    write_fer2013_csv(tmp_path, COUNTS, "kaggle")
    with pytest.warns(UserWarning, match=r"test.csv has no labels and is not used"):
        source, items = read_fer2013(tmp_path)
    assert Counter(item.usage for item in items) == {"train": 14}
    expect_drawn(source, items, 0)
    with pytest.raises(
        DataError, match=r"test.csv has the columns pixels; expected emotion, pixels and Usage"
    ):
        Fer2013(str(tmp_path / "test.csv")).items()


@pytest.mark.parametrize("layout", ["kaggle", "usage"])
@pytest.mark.parametrize("below", ["", "fer2013"])
def test_fer2013_folders_recover_the_usage(tmp_path: Path, layout: str, below: str) -> None:
    write_fer2013_folders(tmp_path / below, COUNTS, layout)
    source, items = read_fer2013(tmp_path)
    assert Counter(item.usage for item in items) == COUNTS
    folders = {"angry": "anger", "happy": "happiness", "sad": "sadness"}
    for item in items:
        folder = item.name.split("/")[-2]
        assert shown(source, item) == folders.get(folder, folder)
    stems = Counter(Path(item.name).name for item in items)
    assert max(stems.values()) > 1, "stems are not unique across classes"
    angry = next(item for item in items if item.usage == "validation" and shown(source, item) == "anger")
    assert np.abs(source.pixels(angry).astype(int) - draw(0, 14, 14, "anger").pixels).mean() < 6


def test_fer2013_test_folder_without_prefixes_has_no_validation(tmp_path: Path) -> None:
    write_fer2013_folders(tmp_path, COUNTS)
    for path in list(tmp_path.glob("test/*/*.jpg")):
        path.rename(path.with_name(path.name.replace("_", "-")))
    with pytest.warns(UserWarning, match="do not tell PublicTest from PrivateTest"):
        _, items = read_fer2013(tmp_path)
    assert Counter(item.usage for item in items) == {"train": 14, "test": 16}


def test_fer2013_counts_are_compared_with_the_release(tmp_path: Path) -> None:
    write_fer2013_csv(tmp_path, COUNTS)
    with pytest.warns(UserWarning, match=r"has train 14, validation 7, test 9; the release has train 28,709"):
        Fer2013(str(tmp_path)).items()


def test_bad_rows_are_named_with_what_was_expected(tmp_path: Path) -> None:
    path = write_fer2013_csv(tmp_path, COUNTS) / "fer2013.csv"
    lines = path.read_text().splitlines()
    lines[17] = "9" + lines[17][1:]
    lines[20] = lines[20].replace("PublicTest", "Public")
    lines[30] = lines[30][:100]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as refusal:
        Fer2013(str(tmp_path)).items()
    text = str(refusal.value)
    assert text.startswith("fer2013.csv row 17 has label 9; expected 0..6 (angry … neutral)")
    assert "2 more such rows: row 20 has usage 'Public'; expected Training" in text
    assert "row 30 has 2 columns; expected 3" in text


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [("1 2 3", "3 pixels, expected 2304"), (" ".join(["0"] * 2304), "blank"), ("1 x 3", "not numbers"),
     ("", "0 pixels"), (" ".join(["300"] * 2304), "pixel value 300, expected 0 to 255")],
)  # fmt: skip
def test_bad_pixels_of_a_row_are_a_bad_image(tmp_path: Path, pixels: str, reason: str) -> None:
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},Training\n")
    source, items = read_fer2013(tmp_path)
    with pytest.raises(BadImage, match=reason):
        source.pixels(items[0])


def test_a_rewritten_csv_is_read_again(tmp_path: Path) -> None:
    write_fer2013_csv(tmp_path, {"train": 7})
    source, _ = read_fer2013(tmp_path)
    before = source.stamp()
    write_fer2013_csv(tmp_path, {"train": 21})
    assert source.stamp() != before and len(source.items()) == 21
    assert source.pixels(source.items()[20]).shape == (48, 48)


def test_fer2013_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Challenges in Representation Learning"):
        Fer2013(None).items()
    with pytest.raises(DataError, match=r"neither fer2013.csv, icml_face_data.csv, train.csv nor pictures"):
        Fer2013(str(tmp_path)).items()
    write_folder(tmp_path, {"train": 3}, classes=("neutral", "contempt", "fear"))
    with pytest.raises(DataError, match=r"contempt, which FER2013 does not have.*data=folder"):
        Fer2013(str(tmp_path)).items()


# any folder


def test_folder_with_splits_and_synonyms(tmp_path: Path) -> None:
    counts = {"training": 10, "valid": 5, "Testing": 5}
    write_folder(tmp_path, counts, classes=("happy", "Sad", "surprised", "fearful", "angry"))
    source = Folder(str(tmp_path))
    assert source.classes == ("happiness", "sadness", "surprise", "fear", "anger")
    items = source.items()
    assert Counter(item.usage for item in items) == {"train": 10, "validation": 5, "test": 5}
    for item in items:
        drawn = item.name.split("/")[1].lower()
        assert shown(source, item)[:3] == {"surprised": "sur", "fearful": "fea"}.get(drawn, drawn)[:3]
        assert source.pixels(item).shape == (64, 64, 3)


def test_folder_without_splits_takes_people_from_the_names(tmp_path: Path) -> None:
    write_folder(tmp_path, {"": 12}, classes=("neutral", "happiness"))
    items = Folder(str(tmp_path), subject=r"^person(\d+)_").items()
    assert {item.subject for item in items} == {"0", "1", "2"}
    assert all(item.usage is None for item in items)
    with pytest.raises(DataError, match=r"subject='\^person' finds no group 1 in .*; write a pattern"):
        Folder(str(tmp_path), subject="^person").items()
    assert Folder(str(tmp_path)).stamp() != Folder(str(tmp_path), subject=r"^(p)").stamp()


def test_unknown_folders_are_listed_with_the_choices(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "dev": 2}, classes=("neutral", "happiness"))
    (tmp_path / "train" / "bored").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "train" / "bored" / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError) as refusal:
        Folder(str(tmp_path)).items()
    for part in (
        "'dev/neutral'",
        "'train/bored'",
        "the root itself",
        "neutral, happiness, sadness",
        "train, val",
    ):
        assert part in str(refusal.value)


def test_a_missing_or_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    for root in (None, "/no/such/place", str(tmp_path)):
        with pytest.raises(DataError, match=r"<split>/<class>/\*"):
            Folder(root).items()
