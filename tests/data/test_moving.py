"""The drawn video: repeatable, with people who come, show what they are said to show, and leave."""

from __future__ import annotations

import sys
from itertools import islice

import av
import numpy as np
import pytest

from fer_lab.data.crop import largest_face
from fer_lab.data.draw import main
from fer_lab.data.faces import EXPRESSIONS, DataError
from fer_lab.data.images import grey
from fer_lab.data.moving import HEIGHT, WIDTH, background, scenes, sprite, visits, write_video


def test_the_same_seed_draws_the_same_pixels_and_another_others():
    first, again, other = (list(scenes(3, seed)) for seed in (4, 4, 5))
    assert all(np.array_equal(one.pixels, two.pixels) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0].pixels, other[0].pixels)
    assert first[0].pixels.shape == (HEIGHT, WIDTH, 3) and first[0].pixels.dtype == np.uint8


def test_nobody_stays_and_no_more_are_there_together_than_asked_for():
    for together in (1, 2, 3):
        some = list(islice(visits(0, together), 40))
        present = [sum(one.begin <= frame < one.end for one in some) for frame in range(some[-1].begin)]
        assert max(present) <= together and (together > 1 or min(present) == 0)
        assert [one.begin for one in some] == sorted(one.begin for one in some)
    assert {one.expression for one in some} == set(EXPRESSIONS[1:7]), (
        "neutral is how every face begins and ends"
    )


def test_a_head_covers_the_room_and_leaves_the_corners_as_they_are():
    head = np.asarray(sprite(0, "happiness", 5)).astype(int)
    through = head[..., 3]
    assert through[2, 2] >= 253 and through[128, 128] == 0
    assert np.abs(head[..., :3]).max() > 100 and (head[..., :3].max(axis=2) + through).max() <= 256


@pytest.mark.parametrize("seed", [0, 1])
def test_the_cascade_finds_a_face_where_the_head_is(seed):
    scene = next(islice(scenes(60, seed, together=1), 50, None))
    (visitor,) = scene.visitors
    left, top, width, height = visitor.box
    found = largest_face(grey(scene.pixels))
    assert found is not None
    x, y, side, _ = found
    assert abs(x + side / 2 - left - width / 2) < 0.2 * width
    assert abs(y + side / 2 - top - height / 2) < 0.3 * height
    assert 0.7 * width < side < 1.5 * width
    assert visitor.intensity == 1.0 and visitor.expression in EXPRESSIONS


def test_nothing_is_found_in_the_empty_room():
    assert all(largest_face(np.asarray(grey(background(seed)))) is None for seed in (0, 1))


def test_the_command_writes_a_video_that_plays_and_says_what_is_next(tmp_path, capsys):
    path = tmp_path / "new/room.mp4"
    assert main(["video", str(path), "7"]) == 0
    assert (
        f"7 drawn frames in {path}. Next:\n  python -m fer_lab.predict run=ID source={path}"
        in capsys.readouterr().out
    )
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 30 and len(frames) == 7
    drawn = next(islice(scenes(7), 6, None)).pixels
    assert np.abs(frames[6].astype(int) - drawn).mean() < 4  # what the codec loses
    assert main(["video", str(path), "7"]) == 2
    assert "room.mp4 exists; name a new file" in capsys.readouterr().err


def test_wrong_settings_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="frames=0; expected 1 or more"):
        write_video(tmp_path / "a.mp4", 0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"needs PyAV: pip install 'fer_lab\[live\]'"):
        write_video(tmp_path / "a.mp4", 3)
    assert not (tmp_path / "a.mp4").exists()
