"""What a user may name: a file, a folder, a pattern, with names as odd as file systems allow."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.data.moving import write_video
from fer_lab.live.faces import LiveError
from fer_lab.live.source import frames, listed

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8))


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in (
        "b.png",
        "a/2.PNG",
        "a/1.png",
        "a/.hidden.png",
        ".cache/3.png",
        "a/deep/er/4.png",
        "a/notes.txt",
        "c",
    ):
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        PICTURE.save(tmp_path / "album" / name, "PNG")
    (tmp_path / "album/a/notes.txt").write_text("notes")
    write_video(tmp_path / "album/a/film.mp4", 2)
    return tmp_path / "album"


def test_a_folder_is_all_below_it_sorted_without_what_is_hidden_and_what_is_neither(album):
    found = listed(str(album))
    assert [source.name for source in found] == [
        "a/1.png",
        "a/2.PNG",
        "a/deep/er/4.png",
        "a/film.mp4",
        "b.png",
    ]
    assert [source.kind for source in found] == ["picture"] * 3 + ["video", "picture"]
    assert found.ignored == 2


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["b.png"]),
        ("a/*.[pP][nN]*", ["1.png", "2.PNG"]),
        ("**/*.png", ["a/1.png", "a/deep/er/4.png", "b.png"]),
        ("*", ["b.png", "c"]),  # c is a picture by its content
        ("a/../a/f*", ["film.mp4"]),
    ],
)
def test_a_pattern_names_files_below_its_fixed_part(album, pattern, names):
    assert [source.name for source in listed(f"{album}/{pattern}")] == names


def test_a_pattern_names_each_file_once(album):
    assert [source.name for source in listed(f"{album}/**/**/*.png")] == [
        "a/1.png",
        "a/deep/er/4.png",
        "b.png",
    ]
    (album / "a/deep/back").symlink_to(album)
    assert [source.name for source in listed(f"{album}/**/*.png")] == ["a/1.png", "a/deep/er/4.png", "b.png"]


def test_relative_names_home_and_files_with_a_pattern_in_their_name(album, monkeypatch):
    monkeypatch.chdir(album)
    monkeypatch.setenv("HOME", str(album))
    PICTURE.save("odd[1].png")
    for spec in ("odd[1].png", "./odd[1].png", "~/odd[1].png"):
        assert [source.name for source in listed(spec)] == ["odd[1].png"]
    assert [source.name for source in listed("a")] == ["1.png", "2.PNG", "deep/er/4.png", "film.mp4"]
    assert [source.name for source in listed("*.png")] == ["b.png", "odd[1].png"]


def test_odd_names_are_read_and_shown(tmp_path):
    names = ["-rf.png", "two\nlines.png", "名前 é.png", "a'b\"c;d.png", "..png", "http:x.png"]
    for name in names:
        PICTURE.save(tmp_path / name, "PNG")
    for name in (
        b"b\xff.png",
        rb"b\xff.png",
        b"\\\xff.png",
        rb"\\xff.png",
    ):  # bytes, and words that look like them
        (tmp_path / os.fsdecode(name)).write_bytes((tmp_path / "-rf.png").read_bytes())
    write_video(tmp_path / "concat:x.mp4", 2)
    found = listed(str(tmp_path))
    visible = [name for name in names if not name.startswith(".")]
    alike = (r"b\xff.png", r"b\\xff.png", r"\\\xff.png", r"\\\\xff.png")
    assert {source.name for source in found} == {*visible, *alike, "concat:x.mp4"}
    assert not any(frame.fault for source in found for frame in frames(source))
    assert all(source.name.encode() for source in found)
    assert len({source.name for source in found}) == len(found)


def test_links_are_followed_once_and_deep_folders_do_no_harm(tmp_path):
    (tmp_path / "in/side").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    PICTURE.save(tmp_path / "out/far.png")
    (tmp_path / "in/side/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/side/out").symlink_to(tmp_path / "out")
    (tmp_path / "in/near.png").symlink_to(tmp_path / "out/far.png")
    deep = tmp_path / "in/deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1050):  # deeper than Python recurses
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    found = [source.name for source in listed(str(tmp_path / "in"))]
    subprocess.run(["rm", "-rf", deep], check=True)  # Python's own way of removing it recurses
    assert found == ["near.png", "side/out/far.png"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", r"source=''; name a picture, a video, a folder, a pattern"),
        ("a\0b", r"name a picture"),
        ("{album}/b.pgn", r"there is no such file or folder; near: .*b\.png"),
        ("{album}/zzz/y.png", r"there is no such file or folder \(looked in .*album\)"),
        ("{album}/*.jpg", r"no picture and no video there; expected files such as"),
        ("{album}/a/*.txt", r"no picture and no video there \(1 other files\)"),
        ("~nobody-of-that-name/x", r"source=~nobody"),
        ("x" * 5000, r"File name too long"),
    ],
)
def test_what_is_not_there_is_told_with_what_is_near(album, spec, text):
    with pytest.raises(LiveError, match=text):
        listed(spec.format(album=album))
