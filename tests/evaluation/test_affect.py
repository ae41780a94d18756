"""CCC, PCC, RMSE and SAGR against scipy, scikit-learn, torchmetrics and their formulas; intervals against scipy's bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import root_mean_squared_error
from torchmetrics.functional.regression import concordance_corrcoef

from fer_lab.evaluation.affect import affect_metrics, bootstrap_affect, circumplex, quick_affect_metrics
from fer_lab.evaluation.uncertainty import bootstrap

COUNT = 500
GENERATOR = np.random.default_rng(3)
TRUE = GENERATOR.uniform(-1, 1, (COUNT, 2))
PREDICTED = np.clip(0.7 * TRUE + GENERATOR.normal(0.1, 0.4, (COUNT, 2)), -1, 1)
NAMES = [f"{name}{of}" for name in ("ccc", "pcc", "rmse", "sagr") for of in ("", "_valence", "_arousal")]


def concordance(x: np.ndarray, y: np.ndarray) -> float:
    """Lin 1989, with moments divided by n."""
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def test_each_figure_is_what_others_compute():
    found = affect_metrics(PREDICTED, TRUE)
    assert sorted(found) == sorted(NAMES)
    for column, name in enumerate(("valence", "arousal")):
        x, y = PREDICTED[:, column], TRUE[:, column]
        assert found[f"ccc_{name}"] == pytest.approx(concordance(x, y), abs=1e-12)
        assert found[f"pcc_{name}"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert found[f"rmse_{name}"] == pytest.approx(root_mean_squared_error(y, x), abs=1e-12)
        assert found[f"sagr_{name}"] == pytest.approx(np.mean(np.sign(x) == np.sign(y)), abs=1e-12)
    for name in ("ccc", "pcc", "rmse", "sagr"):
        assert found[name] == pytest.approx((found[f"{name}_valence"] + found[f"{name}_arousal"]) / 2)
    quick = quick_affect_metrics(torch.from_numpy(PREDICTED), torch.from_numpy(TRUE))
    assert set(quick) < set(found) and all(found[name] == value for name, value in quick.items())


def test_torchmetrics_divides_by_one_less():
    x, y = torch.from_numpy(PREDICTED), torch.from_numpy(TRUE)
    found, theirs = affect_metrics(PREDICTED, TRUE), concordance_corrcoef(x, y).tolist()
    for column, name in enumerate(
        ("valence", "arousal")
    ):  # its own mean difference weighs less by (n - 1) / n
        shift = float((x[:, column].mean() - y[:, column].mean()) ** 2)
        parts = float(x[:, column].var() + y[:, column].var())
        biased = theirs[column] * (parts + shift) / (parts + shift * COUNT / (COUNT - 1))
        assert found[f"ccc_{name}"] == pytest.approx(biased, abs=1e-9)
    level = PREDICTED - PREDICTED.mean(0) + TRUE.mean(0)  # of equal means it makes no difference
    expected = concordance_corrcoef(torch.from_numpy(level), y).mean()
    assert affect_metrics(level, TRUE)["ccc"] == pytest.approx(float(expected), abs=1e-9)


def test_undefined_values_are_left_out_each_dimension_for_itself():
    holes = TRUE.copy()
    holes[:100, 0], holes[450:, 1] = math.nan, math.nan
    found = affect_metrics(PREDICTED, holes)
    valence, arousal = (
        affect_metrics(PREDICTED[100:], TRUE[100:]),
        affect_metrics(PREDICTED[:450], TRUE[:450]),
    )
    for name in NAMES:
        if name.endswith("_valence"):
            assert found[name] == pytest.approx(valence[name], abs=1e-12)
        elif name.endswith("_arousal"):
            assert found[name] == pytest.approx(arousal[name], abs=1e-12)


def test_what_the_values_do_not_define_is_nan():
    flat = affect_metrics(np.full((COUNT, 2), 0.1), TRUE)
    assert flat["ccc"] == pytest.approx(0, abs=1e-12) and math.isnan(flat["pcc"])
    nothing = affect_metrics(PREDICTED, np.full((COUNT, 2), math.nan))
    assert all(math.isnan(value) for value in nothing.values())
    assert all(math.isnan(one.low) for one in bootstrap_affect(PREDICTED[:1], TRUE[:1]).values())
    zero = affect_metrics(np.array([[0.0, 0.2], [0.5, -0.1]]), np.array([[0.0, 0.0], [0.1, -0.4]]))
    assert (zero["sagr_valence"], zero["sagr_arousal"]) == (1.0, 0.5)  # zero agrees with zero alone


@pytest.mark.parametrize(
    ("predicted", "true", "words"),
    [
        (PREDICTED[:, :1], TRUE[:, :1], r"predicted \(500, 1\) with true \(500, 1\): expected \(N, 2\)"),
        (PREDICTED[:4], TRUE, r"predicted \(4, 2\) with true \(500, 2\)"),
        (PREDICTED[:0], TRUE[:0], "N at least 1"),
        (np.full((3, 2), math.nan), TRUE[:3], "3 of 3 predictions are nan: the net has diverged"),
    ],
)
def test_what_is_no_valence_and_arousal_is_refused(predicted, true, words):
    with pytest.raises(ValueError, match=words):
        affect_metrics(predicted, true)


def test_intervals_agree_with_scipys_bootstrap():
    x, y = PREDICTED[:, 0], TRUE[:, 0]
    theirs = stats.bootstrap(
        (x, y),
        lambda x, y, axis: (
            np.array([concordance(*pair) for pair in zip(x, y, strict=True)])
            if x.ndim > 1
            else concordance(x, y)
        ),
        paired=True,
        method="percentile",
        n_resamples=2000,
        vectorized=True,
        rng=1,
    ).confidence_interval
    assert bootstrap_affect(PREDICTED, TRUE)["ccc_valence"] == pytest.approx(tuple(theirs), abs=0.01)


@pytest.mark.parametrize("groups", [None, [f"person {row % 25}" for row in range(COUNT)]])
def test_weighing_sums_is_drawing_faces_or_people(groups):
    quick = bootstrap_affect(PREDICTED, TRUE, groups)
    for name in ("ccc", "pcc_arousal", "rmse", "sagr_valence"):
        slow = bootstrap(
            lambda rows, name=name: affect_metrics(PREDICTED[rows], TRUE[rows])[name], COUNT, groups, 600
        )
        assert quick[name] == pytest.approx(slow, abs=0.02)
        assert quick[name].low < affect_metrics(PREDICTED, TRUE)[name] < quick[name].high


def test_the_picture_shows_every_face_with_a_truth():
    holes = TRUE.copy()
    holes[:100] = math.nan
    figure = circumplex(PREDICTED, holes)
    assert figure.get_suptitle().endswith("(400 faces)")
    true, predicted, valence, arousal = figure.axes
    for axes, values in (
        (true, TRUE[100:]),
        (predicted, PREDICTED[100:]),
        (valence, np.stack([TRUE[100:, 0], PREDICTED[100:, 0]], 1)),
        (arousal, np.stack([TRUE[100:, 1], PREDICTED[100:, 1]], 1)),
    ):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), values)
    many = circumplex(np.tile(PREDICTED, (6, 1)), np.tile(TRUE, (6, 1)))
    assert many.axes[0].collections[0].get_array().sum() == 6 * COUNT
