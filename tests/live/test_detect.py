"""Faces are found as in training, followed cheaply to the same places, and searched for again where they are lost."""

from __future__ import annotations

import sys
from itertools import islice

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skimage.data import astronaut

from fer_lab.data import crop
from fer_lab.data.crop import largest_face
from fer_lab.data.draw import draw
from fer_lab.data.images import grey
from fer_lab.data.moving import background, scenes
from fer_lab.live.crop import tilt
from fer_lab.live.detect import Detector, Following, Haar, make, overlap
from fer_lab.live.faces import Face, LiveError

PORTRAIT = astronaut()[:256, 96:352]
EYES = (105, 100), (151, 103)
"""Where they are in the portrait, read off it by hand, to a few pixels."""


def over(scene: np.ndarray, face: np.ndarray, left: int, top: int) -> np.ndarray:
    scene = scene.copy()
    scene[top : top + len(face), left : left + face.shape[1]] = face
    return scene


def turned(degrees: float) -> np.ndarray:
    """The portrait in the room, turned clockwise."""
    picture = Image.fromarray(over(background(0), PORTRAIT, 192, 112))
    return np.asarray(picture.rotate(-degrees, Image.Resampling.BICUBIC))


class Counting(Detector):
    """What another finds, and how often it was asked to look at the whole and how often nearby."""

    def __init__(self, detector: Detector) -> None:
        self.detector, self.whole, self.nearby = detector, 0, 0

    def __call__(self, pixels):
        self.whole += 1
        return self.detector(pixels)

    def near(self, pixels, face):
        self.nearby += 1
        return self.detector.near(pixels, face)


# As in training


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize(
    ("person", "shown", "scale"), [(1, "anger", 1), (9, "happiness", 1), (2, "surprise", 2.5)]
)
def test_the_largest_face_is_the_one_that_training_crops(video, person, shown, scale):
    scene = over(background(1), draw(0, person, 7, shown, 192, channels=3).pixels, 300, 180)
    scene[40:160, 40:160] = np.asarray(Image.fromarray(PORTRAIT).resize((120, 120)))
    if scale > 1:
        scene = np.asarray(Image.fromarray(scene).resize((int(640 * scale), int(480 * scale))))
    found = make("haar", video=video)(scene)
    assert found[0].box == largest_face(grey(scene))
    assert all(face.score >= 5 for face in found) and found[0].eyes is None
    sizes = [face.box[2] for face in found]
    assert sizes == sorted(sizes, reverse=True)


def test_a_picture_gets_a_second_and_less_strict_look_and_a_video_does_not():
    strict, less = make("haar", video=True), make("haar")
    small = np.asarray(Image.fromarray(PORTRAIT).resize((96, 96))) * 0.5
    scores = []
    for seed in range(20):
        noisy = np.clip(small + np.random.default_rng(seed).integers(0, 90, small.shape), 0, 255).astype(
            np.uint8
        )
        sure, found = strict(noisy), less(noisy)
        assert not sure or found == sure
        scores += [] if sure else [face.score for face in found]
    assert scores and all(3 < score <= 5 for score in scores), "OpenCV asks for more than so many neighbours"


def test_nothing_found_is_no_error():
    for pixels in (np.zeros((480, 640, 3), np.uint8), np.zeros((1, 1, 3), np.uint8), background(0)):
        assert make("haar", eyes=True)(pixels) == []


def test_none_takes_the_picture_as_it_is():
    pixels = np.zeros((30, 50, 3), np.uint8)
    assert make("none")(pixels) == [Face((0, 0, 50, 30))] == Following(make("none"))(pixels)


# Eyes


def test_both_eyes_of_a_real_face_are_found_where_they_are():
    (face,) = make("haar", eyes=True)(PORTRAIT)
    assert np.abs(np.array(face.eyes) - EYES).max() < 6


@pytest.mark.parametrize("degrees", [-14, -8, 8, 14])
def test_the_turn_of_the_head_is_told_by_the_eyes(degrees):
    straight, there = (
        max(make("haar", eyes=True)(turned(by)), key=lambda face: face.score) for by in (0, degrees)
    )
    assert np.degrees(tilt(there) - tilt(straight)) == pytest.approx(degrees, abs=3)


def test_small_faces_have_no_eyes():
    small = np.asarray(Image.fromarray(PORTRAIT).resize((120, 120)))
    found = make("haar", eyes=True)(over(background(0), small, 200, 200))
    assert [face.eyes for face in found] == [None] and found[0].box[2] < 60


# Following


def test_faces_are_followed_to_where_a_whole_look_finds_them():
    look = Counting(Haar((5,)))
    follow = Following(look, search=15)
    whole = make("haar", video=True)
    same = []
    for scene in islice(scenes(50, seed=1), 20, None):
        found, expected = follow(scene.pixels), whole(scene.pixels)
        same.append(
            len(found) == len(expected)
            and all(max(overlap(face.box, one.box) for one in found) > 0.5 for face in expected)
        )
    assert np.mean(same) > 0.9
    assert look.whole <= 6 and look.nearby > 20


def test_a_lost_face_another_scene_and_another_size_are_looked_for_at_once():
    look = Counting(make("haar", video=True, eyes=True))
    follow = Following(look, search=100)
    room = background(0)
    here, there = over(room, PORTRAIT, 10, 10), over(room, PORTRAIT, 350, 200)
    (first,) = follow(here)
    (again,) = follow(here)
    assert (look.whole, look.nearby) == (1, 1) and overlap(first.box, again.box) > 0.8
    assert np.abs(np.array(first.eyes) - again.eyes).max() < 6
    (moved,) = follow(there)
    assert (
        look.whole == 2 and overlap(moved.box, (first.box[0] + 340, first.box[1] + 190, *first.box[2:])) > 0.8
    )
    assert follow(np.zeros_like(room)) == [] and look.whole == 3, "lost"
    assert len(follow(255 - there)) < 2 and look.whole == 4, "another scene"
    assert len(follow(PORTRAIT)) == 1 and look.whole == 5, "another size"
    follow.reset()
    assert len(follow(PORTRAIT)) == 1 and look.whole == 6


def test_no_face_is_told_only_of_frames_that_were_looked_at_and_the_rhythm_of_whole_looks_is_kept():
    look = Counting(make("none"))
    look.detector = lambda pixels: []
    follow, frame = Following(look, search=15), np.full((48, 64, 3), 7, np.uint8)
    assert [follow(frame) for _ in range(40)] == [[]] * 40 and look.whole == 40
    look = Counting(make("none"))
    each = Following(look, search=1)
    for _ in range(5):
        each(frame)
    assert (look.whole, look.nearby) == (5, 0)
    steady = Following(look := Counting(make("none")), search=4)
    for _ in range(9):
        steady(frame)
    assert (look.whole, look.nearby) == (3, 6)


def test_a_face_that_goes_is_missed_at_once_and_looked_for_in_every_frame():
    look = Counting(make("none"))
    found = [Face((0, 0, 20, 20), 9.0)]
    look.detector = lambda pixels: found
    look.near = lambda pixels, face: next(iter(found), None)
    follow, frame = Following(look, search=30), np.zeros((48, 64, 3), np.uint8)
    assert [len(follow(frame)) for _ in range(10)] == [1] * 10 and look.whole == 1
    found = []
    looks = []
    for _ in range(8):
        assert follow(frame) == []
        looks.append(look.whole)
    assert looks == list(range(2, 10))
    found = [Face((0, 0, 20, 20), 9.0)]
    assert [len(follow(frame)) for _ in range(4)] == [1] * 4 and look.whole == 10


def test_two_that_became_one_are_looked_for_again():
    look = Counting(make("none"))
    two, one = [Face((0, 0, 9, 9), 9.0), Face((10, 0, 9, 9), 9.0)], [Face((5, 0, 9, 9), 9.0)]
    boxes = iter([two, one, one])
    look.detector = lambda pixels: next(boxes)
    look.near = lambda pixels, face: one[0]
    follow, frame = Following(look), np.zeros((48, 64, 3), np.uint8)
    assert [len(follow(frame)) for _ in range(5)] == [2, 1, 1, 1, 1] and look.whole == 3


# YuNet, by a small net of the same outputs which takes white squares for faces


@pytest.fixture(scope="module")
def squares_net(tmp_path_factory) -> str:
    """Inputs and outputs as face_detection_yunet_2023mar.onnx; a face is a white square of 32 pixels on the grid of 32,
    with eyes 8 pixels from its middle, the person's right one (left in the picture) 4 lower."""
    nodes, weights = [], []

    def weight(name: str, values) -> str:
        weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def out(name: str, stride: int, channels: int, gain: float, bias: list[float]) -> None:
        kernel = np.zeros((channels, 3, 1, 1), np.float32)
        kernel[:, :] = gain / 3 / 255
        pooled, mapped, last = f"pool_{name}", f"map_{name}", f"last_{name}"
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [pooled], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        parts = [pooled, weight(f"w_{name}", kernel), weight(f"b_{name}", np.array(bias, np.float32))]
        nodes.append(helper.make_node("Conv", parts, [mapped], kernel_shape=[1, 1]))
        nodes.append(helper.make_node("Transpose", [mapped], [last], perm=[0, 2, 3, 1]))
        shape = weight(f"s_{name}", np.array([1, -1, channels], np.int64))
        nodes.append(helper.make_node("Reshape", [last, shape], [name]))

    outputs = []
    for kind, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            bias = {
                "cls": [0.0],
                "obj": [0.0],
                "bbox": [0.5, 0.5, 0.0, 0.0],
                "kps": [0.25, 0.625, 0.75, 0.5, *[0.5] * 6],
            }
            gain = 1.0 if stride == 32 and kind in ("cls", "obj") else 0.0
            out(f"{kind}_{stride}", stride, channels, gain, bias[kind])
            cells = (320 // stride) ** 2
            outputs.append(
                helper.make_tensor_value_info(f"{kind}_{stride}", TensorProto.FLOAT, [1, cells, channels])
            )
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 320, 320])
    graph = helper.make_graph(nodes, "squares", [picture], outputs, weights)
    path = tmp_path_factory.mktemp("yunet") / "yunet.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return str(path)


@pytest.mark.parametrize("scale", [1, 2])
def test_yunet_gives_boxes_and_eyes_in_pixels_of_the_picture(squares_net, scale):
    scene = np.zeros((320, 640, 3), np.uint8)
    scene[64:96, 128:160] = 255
    scene[256:288, 480:512] = 230
    scene = scene.repeat(scale, 0).repeat(scale, 1)
    sure, less = make(f"yunet:{squares_net}", eyes=True)(scene)
    assert sure.box == (128 * scale, 64 * scale, 32 * scale, 32 * scale) and sure.score == pytest.approx(
        1, abs=1e-3
    )
    assert np.allclose(sure.eyes, np.array(((136, 84), (152, 80))) * scale)
    assert less.box[:2] == (480 * scale, 256 * scale) and 0.85 < less.score < 0.95
    assert make(f"yunet:{squares_net}")(scene)[0].eyes is None
    assert make(f"yunet:{squares_net}")(np.zeros((100, 90, 3), np.uint8)) == []


# What cannot be used


@pytest.mark.parametrize("spec", ["hog", "", "yunet", "yunet:", "haar:x.xml", "None"])
def test_an_unknown_detector_is_refused_with_the_choices(spec):
    with pytest.raises(LiveError, match=r"detector='.*'; choices: haar, none, yunet:FILE"):
        make(spec)


def test_a_missing_file_and_one_that_is_no_net_are_told_apart(tmp_path):
    with pytest.raises(
        LiveError, match=r"detector=yunet:gone.onnx: there is no such file; get face_detection_yunet"
    ):
        make("yunet:gone.onnx")
    (tmp_path / "text.onnx").write_text("not a net")
    with pytest.raises(
        LiveError, match=r"text.onnx is no YuNet that OpenCV 4.* reads; get face_detection_yunet"
    ):
        make(f"yunet:{tmp_path}/text.onnx")


def test_without_opencv_the_extra_is_named(monkeypatch):
    crop.cascade.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(LiveError, match=r"detector=haar needs OpenCV: pip install 'fer_lab\[live\]'"):
        make("haar")
    assert make("none")(np.zeros((3, 4, 3), np.uint8))
    crop.cascade.cache_clear()
