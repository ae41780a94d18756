"""The square with the face: cut where it should be, found on real faces, and kept apart in the cache."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_lab.data import crop
from fer_lab.data.cache import Cache, open_cache
from fer_lab.data.crop import Crop, cut, largest_face
from fer_lab.data.draw import draw, write_folder
from fer_lab.data.faces import DataError, Item
from fer_lab.data.folder import Folder
from fer_lab.data.images import BadImage
from fer_lab.data.synthetic import Synthetic


class Boxed(Synthetic):
    """Drawn faces of 32 pixels, each with a box but the fourth; of the third it lies outside."""

    name = "boxed"

    def items(self) -> list[Item]:
        boxes = [(4, 6, 10, 20), (-5, -3, 12, 8), (40, 0, 9, 9), None, (20, 20, 16, 4)]
        return [replace(item, box=box) for item, box in zip(super().items(), boxes, strict=True)]


def in_scene(face: np.ndarray, left: int, top: int, height: int = 400, width: int = 600) -> np.ndarray:
    """Grey, with the face at this place."""
    scene = np.full((height, width), 128, np.uint8)
    scene[top : top + len(face), left : left + len(face)] = face
    return scene


def overlap(box, left: int, top: int, side: int) -> float:
    """Intersection over union with a square."""
    x, y, width, height = box
    across = max(0, min(x + width, left + side) - max(x, left))
    down = max(0, min(y + height, top + side) - max(y, top))
    return across * down / (width * height + side * side - across * down)


def mirrored(place: int, length: int) -> int:
    """The pixel that a reflection about the border pixel shows in that place."""
    place %= 2 * (length - 1)
    return min(place, 2 * (length - 1) - place)


@pytest.mark.parametrize(
    ("box", "margin", "left", "top", "side"),
    [
        ((10, 6, 20, 20), 0.0, 10, 6, 20),
        ((10, 6, 20, 20), 0.25, 5, 1, 30),  # a quarter of the side beyond each edge
        ((10, 6, 10, 20), 0.0, 5, 6, 20),  # a square about the middle
        ((-4, 20, 12, 12), 0.0, -4, 20, 12),  # over the left border
        ((0, 0, 60, 40), 0.5, -30, -40, 120),  # further than the picture is wide
    ],
)
@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3)])
def test_the_square_is_cut_and_reflected_at_the_borders(box, margin, left, top, side, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    found = cut(pixels, box, margin)
    assert found.shape == (side, side, *shape[2:]) and found.dtype == np.uint8
    for y, x in np.random.default_rng(1).integers(0, side, (200, 2)):
        assert np.array_equal(found[y, x], pixels[mirrored(top + y, 40), mirrored(left + x, 60)])


@pytest.mark.parametrize(
    "box", [(60, 0, 5, 5), (0, 40, 5, 5), (-9, 0, 9, 9), (58, 3, 9, 9), (3, 3, 0, 5), (3, 3, 5, -1)]
)
def test_a_box_outside_the_picture_is_a_bad_image(box):
    with pytest.raises(BadImage, match="face box outside the picture"):
        cut(np.zeros((40, 60), np.uint8), box, 0.1)


@pytest.mark.parametrize("box", [(0, 0, 30000, 30000), (-500, -500, 1061, 1061)])
def test_a_box_that_would_fill_the_memory_is_a_bad_image(box):
    with pytest.raises(BadImage, match=r"face box (far larger than|outside) the picture"):
        cut(np.zeros((40, 60), np.uint8), box, 0.1)


def test_the_items_own_boxes_cut_the_cached_pictures(tmp_path):
    source = Boxed(train=5, validation=0, test=0, size=32)
    cache = open_cache(source, 16, 1, tmp_path, bad="skip", workers=0, progress=False, crop="box")
    assert [reason for _, reason in cache.skipped] == ["face box outside the picture", "no face box"]
    last = source.pixels(source.items()[4])  # its box is 16 wide, 4 high and reaches 4 over the right border
    assert np.array_equal(cache.images[2, 0], np.hstack([last[14:30, 20:], last[14:30, 30:26:-1]]))


FOUND = draw(0, 1, 7, "anger", 192).pixels
"""A drawn face that the cascade takes for one (it does so of about nine in ten)."""


@pytest.mark.parametrize(("left", "top"), [(20, 30), (300, 180)])
def test_the_detector_goes_where_the_face_is(left, top):
    box = largest_face(in_scene(FOUND, left, top))
    assert box is not None and overlap(box, left, top, 192) > 0.5
    assert box == largest_face(in_scene(FOUND, left, top)), "the same picture, the same box"


def test_of_two_faces_the_larger_is_taken():
    small = np.asarray(Image.fromarray(FOUND).resize((120, 120)))
    scene = in_scene(FOUND, 390, 100)
    scene[40:160, 40:160] = small
    box = largest_face(scene)
    assert box is not None and overlap(box, 390, 100, 192) > 0.5


def test_large_pictures_are_searched_on_a_small_copy():
    scene = in_scene(FOUND, 150, 100, 400, 512)
    box = largest_face(scene)
    large = np.asarray(Image.fromarray(scene).resize((2048, 1600), Image.Resampling.NEAREST))
    again = largest_face(large)
    assert again is not None and box is not None
    assert np.abs(np.array(again) - 4 * np.array(box)).max() <= 12  # the copy's pixels are four times as wide
    assert largest_face(np.full((64, 64), 99, np.uint8)) is None


def test_real_faces_are_found(fer2013):
    """Of FER2013's happy test faces, enlarged fourfold and put somewhere in a grey picture, most are found there (of 60: 53)."""
    hits = []
    for place, path in enumerate(sorted((fer2013 / "test/happy").iterdir())[:20]):
        face = np.asarray(Image.open(path).convert("L").resize((192, 192), Image.Resampling.BICUBIC))
        left, top = 40 + 14 * place, 20 + 8 * place
        box = largest_face(in_scene(face, left, top))
        hits.append(box is not None and overlap(box, left, top, 192) > 0.5)
    assert np.mean(hits) > 0.6


# In the cache


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Eight pictures: six with the face that is found, each elsewhere; two without any."""
    root = tmp_path_factory.mktemp("scenes")
    for place in range(8):
        folder = root / ("happy" if place % 2 else "sad")
        folder.mkdir(exist_ok=True)
        scene = in_scene(FOUND, 20 + 50 * place, 20 + 20 * place, 360, 600)
        if place >= 6:
            scene = np.random.default_rng(place).integers(120, 136, (360, 600)).astype(np.uint8)
        Image.fromarray(scene).save(folder / f"{place}.png")
    return root


def opened(scenes: Path, folder: Path, **settings: object) -> Cache:
    asked = {"size": 64, "channels": 1, "bad": "skip", "workers": 0, "progress": False} | settings
    return open_cache(Folder(str(scenes)), folder=folder, **asked)


def test_a_cache_of_crops_holds_the_face_and_skips_pictures_without_one(scenes, tmp_path):
    cache = opened(scenes, tmp_path, crop="haar")
    assert sorted(cache.skipped) == [("happy/7.png", "no face found"), ("sad/6.png", "no face found")]
    assert len(cache.index) == 6
    faces = cache.images.reshape(6, -1).astype(float)
    assert np.corrcoef(faces).min() > 0.8, "the same face wherever it stood"
    with pytest.raises(DataError, match="2 of the 8 pictures of folder cannot be used: 2 no face found"):
        opened(scenes, tmp_path, crop="haar", bad="error")


def test_a_margin_shows_more_around_the_face(scenes, tmp_path):
    box = largest_face(np.asarray(Image.open(scenes / "sad/0.png")))
    cache = opened(scenes, tmp_path, crop="haar", margin=0.2, size=40)
    row = cache.index.names.index("sad/0.png")
    whole = cut(np.asarray(Image.open(scenes / "sad/0.png")), box, 0.2)
    assert len(whole) == round(1.4 * max(box[2:]))
    wanted = np.asarray(Image.fromarray(whole).resize((40, 40), Image.Resampling.BICUBIC))
    assert np.array_equal(cache.images[row, 0], wanted)


def test_crops_and_margins_are_caches_of_their_own_and_whole_pictures_keep_theirs(scenes, tmp_path):
    whole = opened(scenes, tmp_path)
    before = {path.name for path in tmp_path.glob("folder*") if path.is_dir()}
    assert before == {path.name for path in tmp_path.glob("folder-64x1-*")}, (
        "named as before there were crops"
    )
    assert opened(scenes, tmp_path, crop="none", margin=0.0).index.digest == whole.index.digest
    cropped = [opened(scenes, tmp_path, crop="haar", margin=margin) for margin in (0.0, 0.1)]
    assert len({one.index.digest for one in (whole, *cropped)}) == 3
    names = {path.name.rpartition("-")[0] for path in tmp_path.glob("folder*") if path.is_dir()}
    assert names == {"folder-64x1", "folder-haar0v2-64x1", "folder-haar0.1v2-64x1"}


def test_processes_that_decode_find_the_same_faces(scenes, tmp_path):
    alone = opened(scenes, tmp_path / "a", crop="haar")
    shared = opened(scenes, tmp_path / "b", crop="haar", workers=2)
    assert np.array_equal(alone.images, shared.images) and alone.skipped == shared.skipped


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"crop": "face"}, r"data.crop='face'; choices: none, haar, box"),
        ({"crop": "haar", "margin": -0.1}, r"data.margin=-0.1; expected a share of the face's side in 0..2"),
        ({"crop": "haar", "margin": "much"}, r"data.margin='much'; expected a share"),
        ({"crop": "box"}, r"data.crop=box, but folder gives no face boxes; choices: none, haar"),
    ],
)
def test_wrong_settings_are_refused_before_a_picture_is_read(tmp_path, settings, text):
    root = write_folder(tmp_path / "faces", {"": 7}, size=16)
    with pytest.raises(DataError, match=text):
        opened(root, tmp_path, **settings)


def test_without_opencv_the_extra_is_named(monkeypatch):
    crop.cascade.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"data.crop=haar needs OpenCV: pip install fer_lab\[faces\]"):
        Crop("haar").check("jaffe", [])
    crop.cascade.cache_clear()
