"""The square that the net sees of a face: pixel by pixel that of training, and level where the eyes are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from fer_lab.data.cache import open_cache
from fer_lab.data.crop import cut
from fer_lab.data.folder import Folder
from fer_lab.data.images import square
from fer_lab.live.crop import face_square, tilt
from fer_lab.live.detect import make
from fer_lab.live.faces import Face, Net

PICTURE = astronaut()


def net(size: int = 48, channels: int = 1, margin: float = 0.0) -> Net:
    return Net(
        "drawn",
        ("a",),
        size,
        channels,
        False,
        margin,
        False,
        lambda pixels: np.zeros((len(pixels), 1), np.float32),
    )


def with_eyes(box: tuple[int, int, int, int], degrees: float) -> Face:
    x, y = box[0] + box[2] / 2, box[1] + 0.4 * box[3]
    across, down = 20 * np.cos(np.radians(degrees)), 20 * np.sin(np.radians(degrees))
    return Face(box, 9.0, ((x - across, y - down), (x + across, y + down)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("grey", [False, True])
def test_it_is_what_a_cache_of_training_holds_of_the_same_picture(tmp_path, channels, margin, grey):
    (tmp_path / "set/happy").mkdir(parents=True)
    picture = Image.fromarray(PICTURE).convert("L" if grey else "RGB")
    picture.save(tmp_path / "set/happy/one.png")
    cache = open_cache(
        Folder(str(tmp_path / "set")), 64, channels, tmp_path / "cache", bad="skip", workers=0, progress=False,
        crop="haar", margin=margin,
    )  # fmt: skip
    pixels = np.asarray(picture.convert("RGB"))
    face = make("haar")(pixels)[0]
    assert np.array_equal(face_square(pixels, face, net(64, channels, margin)), cache.images[0])


@pytest.mark.parametrize("shape", [(512, 512, 3), (90, 1200, 3), (1200, 90, 3), (7, 9, 3)])
@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.37, 1.0])
def test_it_equals_the_cut_of_training_wherever_the_box_lies(shape, margin):
    random = np.random.default_rng(sum(shape))
    pixels = random.integers(0, 256, shape).astype(np.uint8)
    for _ in range(12):
        width, height = (int(random.integers(1, min(shape[:2]))) for _ in range(2))
        left, top = (
            int(random.integers(-width // 2 + 1, shape[1] - width // 2 - 1)),
            int(random.integers(-height // 2 + 1, shape[0] - height // 2 - 1)),
        )
        face = Face((left, top, width, height), 5.0)
        wanted = square(cut(pixels, face.box, margin), 24, 3)
        assert np.array_equal(face_square(pixels, face, net(24, 3, margin)), wanted), (face, margin)


def test_where_nobody_looked_it_is_the_centre_square_of_the_whole_picture():
    (face,) = make("none")(PICTURE[:300])
    assert np.array_equal(face_square(PICTURE[:300], face, net(32, 3, 0.4)), square(PICTURE[:300], 32, 3))


@pytest.mark.parametrize("degrees", [-30, -5, 5, 20, 45])
@pytest.mark.parametrize("box", [(150, 120, 120, 120), (-20, 380, 150, 150)])
def test_a_tilted_face_is_turned_about_the_middle_of_its_square(degrees, box):
    margin, size = 0.1, 144 if box[2] == 120 else 180
    pixels = np.asarray(Image.fromarray(PICTURE).resize((512, 512), Image.Resampling.BOX))
    found = face_square(pixels, with_eyes(box, degrees), net(size, 3, margin)).transpose(1, 2, 0)
    padded = Image.fromarray(np.pad(pixels, ((200, 200), (200, 200), (0, 0)), mode="reflect"))
    middle = (200 + box[0] + box[2] / 2, 200 + box[1] + box[3] / 2)
    level = np.asarray(padded.rotate(degrees, Image.Resampling.BILINEAR, center=middle))
    left, top = round(middle[0] - size / 2), round(middle[1] - size / 2)
    wanted = level[top : top + size, left : left + size]
    assert np.abs(found.astype(int) - wanted).mean() < 1.5
    assert np.abs(found.astype(int) - square(cut(pixels, box, margin), size, 3).transpose(1, 2, 0)).mean() > 5


def test_after_turning_the_eyes_are_level():
    pixels = np.full((200, 200, 3), 200, np.uint8)
    for x, y in ((80, 75), (120, 100)):
        pixels[y - 3 : y + 4, x - 3 : x + 4] = 0
    face = Face((50, 50, 100, 100), 9.0, ((80.0, 75.0), (120.0, 100.0)))
    found = face_square(pixels, face, net(100, 1))[0] < 100
    rows, columns = np.nonzero(found)
    left, right = rows[columns < 50].mean(), rows[columns > 50].mean()
    assert abs(left - right) < 0.5


@pytest.mark.parametrize(
    ("degrees", "align"), [(2.5, True), (-2.9, True), (46, True), (-80, True), (20, False)]
)
def test_slight_and_impossible_turns_and_those_not_wanted_leave_it_as_it_is(degrees, align):
    box = (150, 120, 120, 120)
    plain = face_square(PICTURE, Face(box, 9.0), net())
    assert np.array_equal(face_square(PICTURE, with_eyes(box, degrees), net(), align), plain)
    assert np.degrees(tilt(with_eyes(box, degrees))) == pytest.approx(degrees)


def test_grey_nets_see_the_turned_grey_picture():
    face = with_eyes((150, 120, 120, 120), 15)
    colours = face_square(PICTURE, face, net(60, 3)).transpose(1, 2, 0)
    luma = np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))
    assert np.abs(face_square(PICTURE, face, net(60, 1))[0].astype(int) - luma).max() <= 2
