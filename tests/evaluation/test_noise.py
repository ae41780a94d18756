"""Suspects of planted flips and of a case worked out by hand."""

import numpy as np
import pytest

from fer_lab.evaluation.noise import confident_joint, noise_share, suspects, thresholds

# Two classes; thresholds are 0.6 and 0.7.
LABELS = np.array([0, 0, 0, 1, 1])
FOUND = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])


def test_by_hand() -> None:
    assert thresholds(LABELS, FOUND) == pytest.approx([0.6, 0.7])
    assert confident_joint(LABELS, FOUND).tolist() == [[2, 1], [0, 1]]  # item 3 passes neither threshold
    found = suspects(LABELS, FOUND)
    assert found.rows.tolist() == [2]
    assert (found.given.tolist(), found.suggested.tolist()) == ([0], [1])
    assert found.margins == pytest.approx([-0.8])
    assert found.share == pytest.approx((1 / 3) * 3 / 5)  # a third of the three labelled 0


def test_planted_flips_are_found_first() -> None:
    generator = np.random.default_rng(3)
    true = generator.integers(0, 4, 2000)
    flipped = generator.random(2000) < 0.08
    labels = np.where(flipped, (true + 1) % 4, true)
    strength = generator.uniform(4, 7, 2000)
    logits = generator.standard_normal((2000, 4)) + np.eye(4)[true] * strength[:, None]
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    doubted = suspects(labels, found)
    first = doubted.rows[: flipped.sum()]
    assert flipped[first].mean() > 0.85
    assert np.isin(np.flatnonzero(flipped), doubted.rows).mean() > 0.85
    assert (np.diff(doubted.margins) >= 0).all()
    assert doubted.share == pytest.approx(flipped.mean(), abs=0.03)
    agreed = doubted.suggested[: flipped.sum()][flipped[first]] == true[first][flipped[first]]
    assert agreed.mean() > 0.95


def test_a_class_that_nobody_has_is_never_suggested() -> None:
    found = np.array([[0.1, 0.1, 0.8], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1]])
    labels = np.array([0, 1, 0])
    assert thresholds(labels, found)[2] == np.inf
    assert 2 not in suspects(labels, found).suggested
    assert noise_share(labels, found) == 0
