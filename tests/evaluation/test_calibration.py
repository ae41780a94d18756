"""Temperatures against planted ones and scipy's minimum."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from fer_lab.data.faces import DataError
from fer_lab.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    figures,
    fit_temperature,
    read_temperature,
    save_temperature,
    scaled,
)

GENERATOR = np.random.default_rng(5)


def answers(count: int, temperature: float, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from a net's true probabilities, and what it says when its logits are `temperature` times too large."""
    logits = 2 * GENERATOR.standard_normal((count, classes))
    true = softmax(logits, axis=1)
    labels = (GENERATOR.random((count, 1)) > true.cumsum(1)).sum(1).clip(max=classes - 1)
    return labels, softmax(temperature * logits, axis=1)


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_found(planted: float) -> None:
    labels, found = answers(20_000, planted)
    fitted = fit_temperature(labels, found)
    assert fitted.value == pytest.approx(planted, rel=0.05)
    assert fitted.after["ece"] < 0.02
    assert not fitted.is_at_bound


@pytest.mark.parametrize("seed", range(5))
def test_it_is_scipys_minimum_and_never_worse_than_none(seed: int) -> None:
    generator = np.random.default_rng(seed)
    found = softmax(3 * generator.standard_normal((60, 7)), axis=1)
    labels = np.where(generator.random(60) < 0.5, found.argmax(1), generator.integers(0, 7, 60))

    def nll(logarithm: float) -> float:
        return -log_softmax(np.log(found) / np.exp(logarithm), axis=1)[np.arange(60), labels].mean()

    fitted = fit_temperature(labels, found)
    best = minimize_scalar(
        nll, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-9}
    )
    assert fitted.value == pytest.approx(np.exp(best.x), rel=1e-4)
    assert fitted.after["nll"] == pytest.approx(best.fun, abs=1e-9)
    assert fitted.after["nll"] <= fitted.before["nll"]
    assert fitted.before["nll"] == pytest.approx(nll(0.0))


def test_scaling_moves_no_prediction_and_is_a_softmax_of_divided_logits() -> None:
    logits = GENERATOR.standard_normal((50, 7))
    found = scaled(softmax(logits, axis=1), 1.7)
    assert found == pytest.approx(softmax(logits / 1.7, axis=1))
    assert (found.argmax(1) == logits.argmax(1)).all()


def test_faces_that_are_all_told_right_or_none_leave_a_bound() -> None:
    found = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert fit_temperature([0, 1], found).value == COLDEST
    hopeless = fit_temperature([1, 0], found)
    assert hopeless.value == HOTTEST and hopeless.is_at_bound


def test_a_probability_written_as_zero_costs_half_its_last_digit() -> None:
    assert figures([0], [[0.0, 1.0]])["nll"] == pytest.approx(-np.log(5e-7), rel=1e-6)
    assert np.isfinite(fit_temperature([0, 1, 1], [[0.0, 1.0], [0.1, 0.9], [0.2, 0.8]]).value)


def test_it_is_kept_beside_the_weights(tmp_path) -> None:
    assert read_temperature(tmp_path) is None
    fitted = fit_temperature(*answers(200, 2.0))
    save_temperature(tmp_path, fitted)
    assert read_temperature(tmp_path) == fitted
    assert fitted.value > 1
    (tmp_path / "temperature.json").write_text('{"value": 2}')
    with pytest.raises(DataError, match="is not what a report writes"):
        read_temperature(tmp_path)


def test_no_faces_is_an_error() -> None:
    with pytest.raises(ValueError, match="no faces to fit"):
        fit_temperature([], np.zeros((0, 7)))
