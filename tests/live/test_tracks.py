"""Faces keep their numbers, and what is told of them is averaged over their own past alone."""

from __future__ import annotations

import numpy as np
import pytest

from fer_lab.live.faces import Face, Told
from fer_lab.live.track import PATIENCE, Tracker

CERTAIN = np.eye(3, dtype=np.float32)


def told(
    x: int, y: int = 0, side: int = 100, says: int = 0, affect: tuple[float, float] | None = None
) -> Told:
    mood = None if affect is None else np.array(affect, np.float32)
    return Told(0, Face((x, y, side, side), 9.0), CERTAIN[says], mood)


def numbers(found: list[Told]) -> list[int]:
    return [one.face_id for one in found]


def test_two_faces_that_walk_keep_their_numbers_in_whatever_order_they_are_found():
    track = Tracker()
    for step in range(20):
        one, other = told(10 * step), told(600 - 10 * step, 40)
        if step % 2:
            assert numbers(track([other, one])) == [1, 0]
        else:
            assert numbers(track([one, other])) == [0, 1]


def test_a_face_that_jumps_a_little_is_the_same_and_far_away_is_another():
    track = Tracker()
    assert numbers(track([told(0)])) == [0]
    assert numbers(track([told(55)])) == [0], "boxes overlap by less than a third, but are near"
    assert numbers(track([told(400)])) == [1]
    assert numbers(track([told(400, side=300)])) == [2], "as near, but three times as large"


def test_the_nearest_of_two_takes_the_number():
    track = Tracker()
    track([told(0), told(110)])
    assert numbers(track([told(105), told(40)])) == [1, 0]
    track = Tracker()
    track([told(0)])
    assert numbers(track([told(30), told(5)])) == [1, 0], "a number is given once a frame"


def test_a_face_that_is_missed_for_a_while_is_the_same_and_a_number_is_never_given_twice():
    track = Tracker()
    track([told(0)])
    for _ in range(PATIENCE):
        assert track([]) == []
    assert numbers(track([told(0)])) == [0]
    for _ in range(PATIENCE + 1):
        track([])
    assert numbers(track([told(0)])) == [1]
    track.reset()
    assert numbers(track([told(0)])) == [0], "another source, counted from 0"


def test_what_is_told_is_the_moving_average_of_each_faces_own_past():
    track = Tracker(smooth=0.6)
    says = np.random.default_rng(0).integers(0, 3, 12)
    moods = np.random.default_rng(1).uniform(-1, 1, (12, 2))
    expected, mood = None, None
    for step in range(12):
        found = track([told(0, says=says[step], affect=tuple(moods[step])), told(500, says=2)])
        now = CERTAIN[says[step]]
        expected = now if expected is None else 0.6 * expected + 0.4 * now
        mood = moods[step] if mood is None else 0.6 * mood + 0.4 * moods[step]
        assert np.allclose(found[0].probabilities, expected, atol=1e-6)
        assert np.allclose(found[0].affect, mood, atol=1e-6)
        assert np.array_equal(found[1].probabilities, CERTAIN[2]) and found[1].affect is None
        assert found[0].probabilities.dtype == np.float32 and found[0].probabilities.sum() == pytest.approx(1)


def test_without_smoothing_nothing_is_changed_and_nets_without_classes_are_no_trouble():
    track = Tracker()
    track([told(0, says=1)])
    assert np.array_equal(track([told(0, says=2)])[0].probabilities, CERTAIN[2])
    smooth = Tracker(smooth=0.5)
    empty = Told(0, Face((0, 0, 50, 50)), np.empty(0, np.float32), np.array([0.5, 0], np.float32))
    smooth([empty])
    (found,) = smooth([empty._replace(affect=np.array([1, 0], np.float32))])
    assert found.probabilities.shape == (0,) and np.allclose(found.affect, [0.75, 0])
