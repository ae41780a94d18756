"""Both releases of AffectNet: labels, valence and arousal, boxes, and the quirks of their files."""

from __future__ import annotations

import csv
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fer_lab.data.affectnet import (
    TRAIN_COUNTS,
    VALIDATION_COUNTS,
    AffectNet,
    Annotation,
    items_of,
    read_one,
    scalar,
)
from fer_lab.data.affectnet_old import AffectNetOld
from fer_lab.data.cache import open_cache
from fer_lab.data.draw import affect, draw
from fer_lab.data.faces import EXPRESSIONS, DataError, Index
from fer_lab.data.layouts import write_affectnet, write_affectnet_old
from fer_lab.data.splits import Official

pytestmark = pytest.mark.filterwarnings("ignore:.*(results will not compare|faces left out)")


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    return write_affectnet(tmp_path_factory.mktemp("new"), {"train": 48, "test": 16}, size=48)


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    return write_affectnet_old(tmp_path_factory.mktemp("old"), {"train": 33, "test": 22})


# The release of npy files


@pytest.mark.parametrize("below", ["", "AffectNet"])
def test_the_new_layout_gives_labels_and_affect(new, tmp_path, below):
    if below:
        (tmp_path / below).symlink_to(new)
    source = pickle.loads(pickle.dumps(AffectNet(str(tmp_path if below else new))))
    items = source.items()
    assert (
        Counter(item.usage for item in items) == {"train": 48, "test": 16} and source.classes == EXPRESSIONS
    )
    for item in items:
        turn = int(Path(item.name).stem) // 3
        position = turn + (48 if item.usage == "test" else 0)
        assert item.label == turn % 8
        if position % 10 == 9:
            assert item.affect is None
        else:
            assert item.affect == pytest.approx(affect(0, position, EXPRESSIONS[turn % 8]), abs=1e-5)
    index = Index.of(source.name, source.classes, items)
    assert index.affect.shape == (64, 2) and int(np.isnan(index.affect).any(1).sum()) == 6
    assert source.pixels(items[0]).shape == (48, 48, 3)


def test_seven_classes_leave_contempt_out(new):
    with pytest.warns(UserWarning, match=r"8 faces left out \(8 contempt\)"):
        items = AffectNet(str(new), classes=7).items()
    assert len(items) == 56 and {item.label for item in items} == set(range(7))
    assert AffectNet(str(new), 7).stamp() != AffectNet(str(new)).stamp()
    with pytest.raises(DataError, match=r"data.source.classes=6; choices: 7 \(without contempt\), 8"):
        AffectNet(str(new), 6)


def test_validation_is_carved_out_of_train_and_the_official_one_tests(new):
    source = AffectNet(str(new))
    index = Index.of(source.name, source.classes, source.items())
    split = Official()(index)
    usages = np.array(index.usages)
    assert set(usages[split.test]) == {"test"} and len(split.test) == 16
    assert set(usages[split.train]) == set(usages[split.validation]) == {"train"}
    assert np.bincount(index.labels[split.validation], minlength=8).tolist() == [1] * 8


@pytest.mark.parametrize(
    "value", ["3", "-0.0158730", "-2", 3, np.float64(-0.25), np.array("0.5", dtype="S3").astype(str)]
)
def test_scalars_are_read_as_numpy_reads_them(tmp_path, value):
    np.save(tmp_path / "one.npy", np.array(value))
    path = str(tmp_path / "one.npy")
    word = scalar(Path(path).read_bytes(), path)
    assert word == str(np.load(path, allow_pickle=False)[()])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (np.array({"a": 1}, dtype=object), "not a pickle"),
        (b"\x93NUMPY\x02\x00", "is no npy file of version 1"),
        (b"", "is no npy file of version 1"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<U1',", "has a broken header; unpack it again"),
        (b"\x93NUMPY\x01\x00\x10\x00{'shape': ()}    x", "has a broken header; unpack it again"),
        (b"\x93NUMPY\x01\x00\x10\x00[1, 2]           x", "has a broken header; unpack it again"),
        (np.array("11"), r"has expression 11; expected 0..10 \(neutral … no face\)"),
        (np.array("happy"), "could not convert string"),
    ],
)
def test_files_that_hold_something_else_are_refused(new, tmp_path, content, text):
    for kind in ("exp", "val", "aro"):
        np.save(tmp_path / f"1_{kind}.npy", np.array("1"))
    if isinstance(content, bytes):
        (tmp_path / "1_exp.npy").write_bytes(content)
    else:
        np.save(tmp_path / "1_exp.npy", content)
    with pytest.raises(DataError, match=text):
        read_one(f"{tmp_path}/1")


def test_affect_outside_its_range_is_refused_and_absent_affect_is_undefined(tmp_path):
    np.save(tmp_path / "1_exp.npy", np.array("1"))
    assert read_one(f"{tmp_path}/1") == (1, -2, -2)
    assert read_one(f"{tmp_path}/2") is None
    np.save(tmp_path / "1_val.npy", np.array("1.5"))
    with pytest.raises(DataError, match=r"valence 1.5; expected -1..1, or -2 where it is undefined"):
        read_one(f"{tmp_path}/1")


def test_pictures_without_annotations_are_left_out_and_counted(tmp_path):
    root = write_affectnet(tmp_path, {"train": 16}, size=24)
    (root / "train_set/annotations/3_exp.npy").unlink()
    with pytest.warns(UserWarning, match="1 pictures without annotations left out"):
        assert len(AffectNet(str(root)).items()) == 15


def test_the_stamp_follows_pictures_and_annotations(tmp_path):
    root = write_affectnet(tmp_path, {"train": 8}, size=24)
    stamps = [AffectNet(str(root)).stamp()]
    assert AffectNet(str(root)).stamp() == stamps[0]
    np.save(root / "train_set/annotations/3_exp.npy", np.array("7"))
    stamps.append(AffectNet(str(root)).stamp())
    (root / "train_set/images/3.jpg").unlink()
    stamps.append(AffectNet(str(root)).stamp())
    assert len(set(stamps)) == 3


def test_the_release_s_counts_are_told_from_others(recwarn):
    assert sum(TRAIN_COUNTS.values()) == 287651 and sum(VALIDATION_COUNTS.values()) == 3999
    whole = [
        Annotation(f"{usage}/{shown}/{number}", usage, EXPRESSIONS.index(shown), 0.0, 0.0)
        for usage, counts in (("train", dict.fromkeys(EXPRESSIONS, 3)), ("test", VALIDATION_COUNTS))
        for shown, count in counts.items()
        for number in range(count)
    ]
    official = {"train": dict.fromkeys(EXPRESSIONS, 3), "test": VALIDATION_COUNTS}
    assert len(items_of(whole, EXPRESSIONS, "root", official)) == len(whole) and not recwarn
    with pytest.warns(UserWarning, match=r"differs from the release \(test contempt 498 not 499\)"):
        items_of(whole[:-1], EXPRESSIONS, "root", official)


# The release of csv files


@pytest.mark.parametrize("header", [False, True])
def test_the_old_lists_are_read_with_and_without_a_header(tmp_path, header):
    root = write_affectnet_old(tmp_path, {"train": 22, "test": 11}, header=header)
    assert (root / "training.csv").read_text().startswith("subDirectory_filePath") == header
    source = pickle.loads(pickle.dumps(AffectNetOld(str(root))))
    items = source.items()
    assert Counter(item.usage for item in items) == {"train": 16, "test": 8}
    assert Counter(source.classes[item.label] for item in items) == dict.fromkeys(EXPRESSIONS, 3)


def test_the_old_lists_equal_what_csv_reads(old):
    """Faces, boxes and affect against the standard library's reader, by name."""
    expected = {}
    for name in ("training.csv", "validation.csv"):
        for row in csv.reader((old / name).open(newline="")):
            if row[0] != "subDirectory_filePath" and int(row[6]) < 8:
                undefined = "-2" in row[7:]
                expected[row[0]] = (
                    int(row[6]),
                    None if undefined else (float(row[7]), float(row[8])),
                    tuple(int(word) for word in row[1:5]),
                )
    items = AffectNetOld(str(old)).items()
    assert {item.name: (item.label, item.affect, item.box) for item in items} == expected
    assert len({Path(item.name).suffix for item in items}) > 4, "suffixes are odd"


def test_what_is_no_expression_is_left_out_and_told(old):
    with pytest.warns(UserWarning, match=r"15 faces left out \(5 none, 5 uncertain, 5 no face\)"):
        AffectNetOld(str(old)).items()


def test_the_box_cuts_the_face_and_the_cut_file_is_unreadable(tmp_path):
    root = write_affectnet_old(tmp_path / "set", {"train": 30, "test": 11})
    settings = {"size": 96, "channels": 3, "workers": 0, "progress": False, "crop": "box"}
    with pytest.raises(DataError, match=r"1 of the 32 pictures of affectnet_old cannot be used: 1 truncated"):
        open_cache(AffectNetOld(str(root)), folder=tmp_path / "cache", **settings)
    cache = open_cache(AffectNetOld(str(root)), folder=tmp_path / "cache", bad="skip", **settings)
    exact = 0
    for row, name in enumerate(cache.index.names):
        position = int(Path(name).stem, 16)
        face = draw(0, position, position, EXPRESSIONS[cache.index.labels[row]], 96, 3).pixels
        difference = np.abs(cache.images[row].transpose(1, 2, 0).astype(int) - face).mean()
        assert difference < 12
        exact += difference == 0  # png, bmp and tif lose nothing
    assert exact > 10


def test_archives_unpacked_into_folders_of_their_own(old, tmp_path):
    lists = tmp_path / "Manually_Annotated_file_lists"
    lists.mkdir()
    for name in ("training.csv", "validation.csv"):
        (lists / name).write_bytes((old / name).read_bytes())
    (tmp_path / "Manually_Annotated").mkdir()
    (tmp_path / "Manually_Annotated/Manually_Annotated_Images").symlink_to(old / "Manually_Annotated_Images")
    source = AffectNetOld(str(tmp_path))
    assert source.stamp() and source.pixels(source.items()[0]).shape == (144, 192, 3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda row: row[:-1],
            r"training.csv row 2 has 8 columns; expected 9: subDirectory_filePath, face_x",
        ),
        (lambda row: [*row[:6], "12", *row[7:]], r"row 2 has expression 12; expected 0..10"),
        (lambda row: [*row[:7], "-3", row[8]], r"row 2 has valence -3; expected -1..1"),
    ],
)
def test_wrong_rows_are_named(tmp_path, change, text):
    path = write_affectnet_old(tmp_path, {"train": 11}) / "training.csv"
    rows = list(csv.reader(path.open(newline="")))
    rows[1] = change(rows[1])
    path.write_text("\n".join(",".join(row) for row in rows))
    with pytest.raises(DataError, match=text):
        AffectNetOld(str(tmp_path)).items()


def test_a_list_that_is_no_utf_8_is_named(tmp_path):
    path = write_affectnet_old(tmp_path, {"train": 11}) / "training.csv"
    path.write_bytes(path.read_bytes() + "gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(DataError, match=r"training.csv is no UTF-8 text \(.*0xfc"):
        AffectNetOld(str(tmp_path)).items()


def test_a_link_to_nothing_among_the_annotations_is_passed_over(tmp_path):
    write_affectnet(tmp_path, {"train": 8}, size=16)
    source = AffectNet(str(tmp_path))
    before = source.stamp()
    (source._folders[0] / "annotations/gone.npy").symlink_to(tmp_path / "nowhere")
    assert source.stamp() != before and len(source.items()) == 8


def test_repeated_rows_count_once(tmp_path):
    path = write_affectnet_old(tmp_path, {"train": 11}) / "training.csv"
    path.write_text(path.read_text() * 2)
    with pytest.warns(UserWarning, match="11 rows that name a picture again left out"):
        assert len(AffectNetOld(str(tmp_path)).items()) == 8


def test_each_release_says_where_the_other_is_read(new, old, tmp_path):
    with pytest.raises(DataError, match=r"holds no train_set/images. .* data=affectnet_old"):
        AffectNet(str(old)).items()
    with pytest.raises(DataError, match=r"holds no training.csv. .* data=affectnet"):
        AffectNetOld(str(new)).items()
    (tmp_path / "training.csv").write_bytes((old / "training.csv").read_bytes())
    with pytest.raises(
        DataError, match=r"none of the first 33 pictures of .*training.csv \(1/0+.jpg …\) lies in"
    ):
        AffectNetOld(str(tmp_path)).stamp()
