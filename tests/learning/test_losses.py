"""Oracles: scikit-learn's class weights and log loss, and the definitions in numpy."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from fer_lab.learning.losses import class_weights, cross_entropy

LABELS = np.array([0, 0, 0, 0, 1, 2, 2, 1, 0])
LOGITS = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
LOG_PROBABILITIES = torch.log_softmax(LOGITS.double(), 1).numpy()


def test_hard_labels_equal_log_loss_with_and_without_weights():
    labels, probabilities = torch.from_numpy(LABELS), torch.softmax(LOGITS, 1).numpy()
    assert float(cross_entropy(LOGITS, labels)) == pytest.approx(log_loss(LABELS, probabilities), rel=1e-5)
    weights = torch.tensor([0.5, 2.0, 3.0])
    expected = log_loss(LABELS, probabilities, sample_weight=weights.numpy()[LABELS])
    assert float(cross_entropy(LOGITS, labels, weights)) == pytest.approx(expected, rel=1e-5)


def test_smoothing_follows_its_definition():
    target = np.eye(3)[LABELS] * 0.9 + 0.1 / 3  # Szegedy et al. 2016
    expected = -(target * LOG_PROBABILITIES).sum(1).mean()
    labels = torch.from_numpy(LABELS)
    assert float(cross_entropy(LOGITS, labels, smoothing=0.1)) == pytest.approx(expected, rel=1e-5)
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    assert float(cross_entropy(LOGITS, one_hot, smoothing=0.1)) == pytest.approx(expected, rel=1e-5)


def test_soft_labels_with_weights_follow_their_definition():
    soft = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    weights = np.array([0.5, 2.0, 3.0])
    expected = -(soft * weights * LOG_PROBABILITIES).sum(1).mean()
    found = cross_entropy(LOGITS, torch.from_numpy(soft), torch.from_numpy(weights).float())
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(class_weights("balanced", np.bincount(LABELS)), expected, rtol=1e-6)


def test_an_absent_class_weighs_one_and_does_not_change_the_others():
    found = class_weights("balanced", [5, 0, 2, 2])
    np.testing.assert_allclose(found, [9 / (3 * 5), 1, 9 / (3 * 2), 9 / (3 * 2)], rtol=1e-6)


def test_given_weights_and_none():
    assert class_weights(None, [1, 2]) is None and class_weights("none", [1, 2]) is None
    assert class_weights([1, 2.5], [1, 2]).tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("inverse", "'inverse' are not none, balanced or a list of 2"),
        ([1.0], r"\[1.0\] should be 2 numbers"),
        ([], r"\[\] should be 2 numbers"),
        ([1.0, -1.0], "numbers above 0"),
    ],
)
def test_other_weights_are_refused(kind, text):
    with pytest.raises(ValueError, match=text):
        class_weights(kind, [1, 2])
