"""Intervals against scipy's bootstrap, Wilson's formula and subjects that answer alike."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fer_lab.evaluation.metrics import confusion_metrics, emotion_metrics
from fer_lab.evaluation.uncertainty import bootstrap, bootstrap_confusion, bootstrap_probabilities

COUNT = 600
GENERATOR = np.random.default_rng(7)
LABELS = GENERATOR.integers(0, 7, COUNT)
PREDICTED = np.where(GENERATOR.random(COUNT) < 0.6, LABELS, GENERATOR.integers(0, 7, COUNT))
RIGHT = (LABELS == PREDICTED).astype(float)


def figure(name: str, rows: np.ndarray) -> float:
    counts = np.zeros((7, 7))
    np.add.at(counts, (LABELS[rows], PREDICTED[rows]), 1)
    return float(confusion_metrics(torch.from_numpy(counts))[name])


def test_accuracy_agrees_with_scipy_and_wilson() -> None:
    theirs = stats.bootstrap(
        (RIGHT,), np.mean, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    wilson = stats.binomtest(int(RIGHT.sum()), COUNT).proportion_ci(method="wilson")
    for found in (
        bootstrap(lambda rows: RIGHT[rows].mean(), COUNT, resamples=4000),
        bootstrap_confusion(LABELS, PREDICTED, 7, resamples=4000)["accuracy"],
    ):
        assert found == pytest.approx(tuple(theirs), abs=0.004)
        assert found == pytest.approx((wilson.low, wilson.high), abs=0.006)


@pytest.mark.parametrize("groups", [None, [f"person {row % 40}" for row in range(COUNT)]])
@pytest.mark.parametrize("name", ["balanced_accuracy", "f1_macro", "kappa"])
def test_drawing_matrices_is_drawing_items(name: str, groups: list[str] | None) -> None:
    quick = bootstrap_confusion(LABELS, PREDICTED, 7, groups, resamples=4000)[name]
    slow = bootstrap(lambda rows: figure(name, rows), COUNT, groups, resamples=1000)
    assert quick == pytest.approx(slow, abs=0.012)
    assert quick.low < figure(name, np.arange(COUNT)) < quick.high


def test_level_sets_the_width() -> None:
    wide, narrow = (bootstrap(lambda rows: RIGHT[rows].mean(), COUNT, level=level) for level in (0.95, 0.5))
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(stats.norm.ppf(0.975) / stats.norm.ppf(0.75), rel=0.1)


def test_subjects_who_answer_alike_widen_the_interval() -> None:
    # 20 people of 30 images, each person all right or all wrong: 20 independent answers, not 600.
    people = np.repeat(np.arange(20), 30)
    labels = np.zeros(600, dtype=int)
    predicted = (people % 2).astype(int)
    names = [f"person {one}" for one in people]
    images = bootstrap_confusion(labels, predicted, 2)["accuracy"]
    subjects = bootstrap_confusion(labels, predicted, 2, groups=names)["accuracy"]
    assert (images.high - images.low) == pytest.approx(3.92 * math.sqrt(0.25 / 600), rel=0.1)
    assert (subjects.high - subjects.low) == pytest.approx(3.92 * math.sqrt(0.25 / 20), rel=0.15)


def test_groups_of_unequal_size_stay_whole() -> None:
    groups, drawn = ["a", "b", "b", "b", "c", "c"], []

    def note(rows: np.ndarray) -> float:
        drawn.append(np.bincount(rows, minlength=6))
        return 0.0

    bootstrap(note, 6, groups, resamples=50)
    counts = np.array(drawn)
    assert (counts[:, [1, 1, 4]] == counts[:, [2, 3, 5]]).all()
    assert (counts[:, [0, 1, 4]].sum(1) == 3).all()  # three people each time
    assert len(np.unique(counts.sum(1))) > 1


def test_the_seed_alone_decides() -> None:
    once, again = (bootstrap_confusion(LABELS, PREDICTED, 7, seed=5) for _ in range(2))
    assert once == again != bootstrap_confusion(LABELS, PREDICTED, 7, seed=6)


def test_undefined_is_nan() -> None:
    one = bootstrap_confusion([0, 1], [0, 0], 2, groups=["a", "a"])["accuracy"]
    assert math.isnan(one.low) and math.isnan(one.high)
    single = bootstrap_confusion([1, 1, 1], [1, 1, 1], 3)
    assert math.isnan(single["kappa"].low) and single["accuracy"] == (1, 1)


def test_refuses_no_items_and_nameless_groups() -> None:
    with pytest.raises(ValueError, match="empty split"):
        bootstrap_confusion([], [], 7)
    with pytest.raises(ValueError, match=r"3 groups, 1 of them None, for 3 items.*groups=None"):
        bootstrap(lambda rows: 0.0, 3, groups=["a", None, "b"])


def test_intervals_of_probabilities_hold_the_figures_they_are_of():
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=600)
    logits = torch.from_numpy(generator.normal(size=(600, 4)) + 1.5 * np.eye(4)[labels])
    found = bootstrap_probabilities(labels, logits.softmax(1).numpy())
    scores = emotion_metrics(logits, torch.from_numpy(labels), ["a", "b", "c", "d"])
    found |= bootstrap_confusion(labels, logits.argmax(1).numpy(), 4)
    for name in ("nll", "brier", "ece", "auroc", "mcc"):
        low, high = found[name]
        assert low < scores[name] < high and high - low < 0.3
    error = (-logits.log_softmax(1)[range(600), labels]).std() / 600**0.5  # the normal interval of a mean
    assert found["nll"].high - found["nll"].low == pytest.approx(float(2 * 1.96 * error), rel=0.1)
    counts = torch.zeros(4, 4).index_put_(
        (torch.from_numpy(labels), logits.argmax(1)), torch.tensor(1.0), accumulate=True
    )
    assert float(confusion_metrics(counts)["mcc"]) == pytest.approx(scores["mcc"], abs=1e-6)


def test_the_interval_of_the_calibration_error_holds_it_where_the_net_is_calibrated() -> None:
    """Its resamples lie above it; the interval is of what other faces would show, not of them."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(10):
        probabilities = generator.dirichlet(np.full(7, 0.3), 500)
        labels = (probabilities.cumsum(1) > generator.random((500, 1))).argmax(1)  # as sure as it is right
        error = emotion_metrics(
            torch.from_numpy(probabilities).log(), torch.from_numpy(labels), list("abcdefg")
        )["ece"]
        found.append((error, *bootstrap_probabilities(labels, probabilities)["ece"]))
    errors, lows, highs = np.array(found).T
    assert (lows <= errors).all() and (errors <= highs).all() and (lows >= 0).all()
    within = (lows <= errors.mean()) & (errors.mean() <= highs)
    assert within.sum() >= 8
