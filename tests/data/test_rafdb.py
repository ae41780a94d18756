"""RAF-DB as released and as re-packed: names, labels, boxes and counts."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.data.cache import open_cache
from fer_lab.data.draw import draw
from fer_lab.data.faces import DataError
from fer_lab.data.images import BadImage
from fer_lab.data.layouts import write_rafdb
from fer_lab.data.rafdb import OFFICIAL, RafDb

COUNTS = {"train": 21, "test": 14}
NATIVE = {1: "surprise", 2: "fear", 3: "disgust", 4: "happiness", 5: "sadness", 6: "anger", 7: "neutral"}
pytestmark = pytest.mark.filterwarnings("ignore:.*results will not compare")


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    return write_rafdb(tmp_path_factory.mktemp("rafdb"), COUNTS)


def listed(root: Path) -> dict[str, str]:
    lines = (root / "EmoLabel/list_patition_label.txt").read_text().split("\n")[:-1]
    return {line.split()[0][:-4]: NATIVE[int(line.split()[1])] for line in lines}


@pytest.mark.parametrize("images", ["aligned", "original"])
@pytest.mark.parametrize("below", ["", "basic"])
def test_the_released_list_names_files_usages_and_labels(official, tmp_path, images, below):
    root = official
    if below:
        (tmp_path / below).symlink_to(official)
        root = tmp_path
    source = pickle.loads(pickle.dumps(RafDb(str(root), images)))
    items = source.items()
    assert Counter(item.usage for item in items) == COUNTS
    ending = "_aligned.jpg" if images == "aligned" else ".jpg"
    assert {i.name.removesuffix(ending): source.classes[i.label] for i in items} == listed(official)
    assert items[0].name == f"train_00001{ending}" and items[21].name == f"test_0001{ending}"
    assert source.pixels(items[0]).shape == ((100, 100, 3) if images == "aligned" else (150, 200, 3))


def test_re_packed_folders_read_the_same(tmp_path, official):
    source = RafDb(str(write_rafdb(tmp_path, COUNTS, "folders")))
    items = source.items()
    assert {Path(i.name).name.removesuffix("_aligned.jpg"): source.classes[i.label] for i in items} == listed(
        official
    )
    assert {item.name.split("/")[0] for item in items} == {"train", "test"} == {item.usage for item in items}
    names = write_rafdb(tmp_path / "named", {"train": 7}, "folders") / "DATASET/train"
    (names / "4").rename(names / "happy")
    items = RafDb(str(tmp_path / "named")).items()
    assert sorted(source.classes[item.label] for item in items) == sorted(NATIVE.values())


def test_the_official_box_cuts_the_face_out_of_the_original_picture(official, tmp_path):
    source = RafDb(str(official), "original")
    cache = open_cache(source, 100, 3, tmp_path, workers=0, progress=False, crop="box")
    for row in (0, 5, 20):
        face = draw(0, row, row, cache.index.classes[cache.index.labels[row]], 100, 3).pixels
        assert (
            np.abs(cache.images[row].transpose(1, 2, 0).astype(int) - face).mean() < 10
        )  # noise, as JPEG keeps it
    with pytest.raises(DataError, match=r"data.crop=box, but rafdb gives no face boxes; choices: none, haar"):
        open_cache(RafDb(str(official)), 100, 3, tmp_path, workers=0, progress=False, crop="box")


def test_files_that_are_absent_blank_or_of_another_size_are_one_list(tmp_path):
    folder = write_rafdb(tmp_path / "set", COUNTS) / "Image/aligned"
    (folder / "train_00002_aligned.jpg").unlink()
    Image.new("RGB", (100, 100)).save(folder / "train_00003_aligned.jpg")
    Image.open(folder / "test_0001_aligned.jpg").resize((120, 90)).save(folder / "test_0001_aligned.jpg")
    with pytest.raises(DataError) as refusal:
        open_cache(RafDb(str(tmp_path / "set")), 48, 3, tmp_path / "cache", workers=0, progress=False)
    text = str(refusal.value)
    assert text.startswith("3 of the 35 pictures of rafdb cannot be used")
    assert "test_0001_aligned.jpg: 120x90 pixels, expected 100x100" in text
    assert "train_00003_aligned.jpg: blank" in text and "No such file" in text and "data.bad=skip" in text
    with pytest.raises(BadImage, match="120x90"):
        source = RafDb(str(tmp_path / "set"))
        source.pixels(next(item for item in source.items() if "test_0001" in item.name))


def test_counts_are_those_of_the_release():
    assert sum(OFFICIAL["train"].values()) == 12271 and sum(OFFICIAL["test"].values()) == 3068


def test_other_counts_are_told_and_the_official_ones_are_not(official, tmp_path):
    with pytest.warns(UserWarning, match=r"has 35 faces, the release 15,339 \(train surprise 3 not 1,290"):
        RafDb(str(official)).items()
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "Image/aligned").mkdir(parents=True)
    lines = [
        f"{usage}_{number:05d}.jpg {label}"
        for usage, counts in (("train", (1290, 281, 717, 4772, 1982, 705, 2524)), ("test", (329, 74, 160, 1185, 478, 162, 680)))
        for number, label in enumerate(np.repeat(np.arange(1, 8), counts), 1)
    ]  # fmt: skip
    (tmp_path / "EmoLabel/list_patition_label.txt").write_text("\n".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(RafDb(str(tmp_path)).items()) == 15339


def test_what_is_wrong_is_named(official, tmp_path):
    with pytest.raises(DataError, match=r"data.source.images='raw'; choices: aligned, original"):
        RafDb(str(official), "raw")
    with pytest.raises(
        DataError, match=r"holds neither EmoLabel/list_patition_label.txt nor train/1..7. RAF-DB is"
    ):
        RafDb(str(tmp_path)).items()
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "EmoLabel/list_patition_label.txt").write_text("train_00001.jpg 5\ntrain_00002.jpg 8\nx\n")
    with pytest.raises(DataError, match=r"has no Image/aligned/; unpack aligned.zip there"):
        RafDb(str(tmp_path)).stamp()
    with pytest.raises(
        DataError, match=r"line 2 is 'train_00002.jpg 8'; 1 more such lines; expected `train_00001.jpg 5`"
    ):
        RafDb(str(tmp_path)).items()
    folders = write_rafdb(tmp_path / "folders", {"train": 7}, "folders") / "DATASET/train"
    (folders / "4").rename(folders / "8")
    with pytest.raises(DataError, match=r"has pictures in train/8; expected train/1..7"):
        RafDb(str(tmp_path / "folders")).items()
    (tmp_path / "EmoLabel/list_patition_label.txt").write_bytes(b"train_00001.jpg 5\ntrain_\xff.jpg 5\n")
    with pytest.raises(DataError, match=r"list_patition_label.txt is no UTF-8 text \(.*0xff"):
        RafDb(str(tmp_path)).items()
