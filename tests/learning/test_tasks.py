"""The losses of valence and arousal against their definitions in numpy, and what each task makes of a net's outputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from fer_lab.data.faces import DataError, Faces
from fer_lab.learning.losses import concordance_loss, cross_entropy, squared_error
from fer_lab.learning.tasks import Emotion, Joint, ValenceArousal

CLASSES = ("neutral", "happiness", "sadness")
GENERATOR = torch.Generator().manual_seed(0)
PREDICTED = torch.rand(40, 2, generator=GENERATOR) * 2 - 1
TRUE = (0.6 * PREDICTED + 0.3 * torch.randn(40, 2, generator=GENERATOR) + 0.1).clamp(-1, 1)
OUTPUTS = torch.randn(6, 5, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


def concordance(x: np.ndarray, y: np.ndarray) -> float:
    """Lin 1989, with moments divided by n."""
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def faces(affect: torch.Tensor | None = None) -> Faces:
    return Faces(LABELS, LABELS, LABELS, affect=affect)


def test_the_concordance_loss_is_one_minus_lins_coefficient_of_what_is_defined():
    x, y = PREDICTED.double().numpy(), TRUE.double().numpy()
    expected = 1 - np.mean([concordance(x[:, one], y[:, one]) for one in (0, 1)])
    assert float(concordance_loss(PREDICTED, TRUE)) == pytest.approx(expected, abs=1e-6)
    assert float(concordance_loss(TRUE, TRUE)) == pytest.approx(0, abs=1e-6)
    holes = TRUE.clone()
    holes[:7, 0], holes[30:, 1] = math.nan, math.nan
    expected = 1 - np.mean([concordance(x[7:, 0], y[7:, 0]), concordance(x[:30, 1], y[:30, 1])])
    assert float(concordance_loss(PREDICTED, holes)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [concordance_loss, squared_error])
@pytest.mark.parametrize("known", [0, 1, 2, 6])
def test_gradients_are_numbers_however_few_values_are_defined(loss, known):
    true = torch.full((6, 2), math.nan)
    true[:known] = TRUE[:known]
    predicted = PREDICTED[:6].clone().requires_grad_()
    value = loss(predicted, true)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(predicted.grad).all()
    assert not predicted.grad[known:].any()  # nothing is learned from what is not known
    learns = known > (1 if loss is concordance_loss else 0)
    assert bool(predicted.grad.any()) == learns and bool(value) == learns


def test_predictions_and_truths_that_are_constant_have_gradients_that_are_numbers():
    predicted = torch.zeros(5, 2, requires_grad=True)
    for true in (torch.zeros(5, 2), torch.full((5, 2), 0.5), TRUE[:5]):
        (gradient,) = torch.autograd.grad(concordance_loss(predicted, true), predicted)
        assert torch.isfinite(gradient).all()


def test_the_squared_error_is_the_mean_over_what_is_defined():
    holes = TRUE.clone()
    holes[:7, 0] = math.nan
    expected = np.nanmean((PREDICTED.numpy() - holes.numpy()) ** 2)
    assert float(squared_error(PREDICTED, holes)) == pytest.approx(expected, rel=1e-5)


def test_descending_the_concordance_loss_makes_predictions_concord():
    weights = torch.zeros(2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([weights], 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        concordance_loss(torch.tanh(PREDICTED @ weights), TRUE).backward()
        optimizer.step()
    found = torch.tanh(PREDICTED @ weights).detach().double().numpy()
    best = [np.corrcoef(PREDICTED[:, one], TRUE[:, one])[0, 1] for one in (0, 1)]
    for one in (0, 1):
        assert concordance(found[:, one], TRUE[:, one].double().numpy()) > best[one] - 0.05


@pytest.mark.parametrize(
    ("task", "count", "told"),
    [
        (Emotion(CLASSES), 3, lambda of: functional.softmax(of, dim=-1)),
        (ValenceArousal(), 2, torch.tanh),
        (Joint(CLASSES), 5, lambda of: torch.cat([of[..., :3].softmax(-1), of[..., 3:].tanh()], -1)),
    ],
)
def test_predictions_are_probabilities_then_valence_and_arousal(task, count, told):
    assert type(task).outputs(3) == count
    outputs = OUTPUTS[:, :count]
    for shape in (outputs, torch.stack([outputs, 2 * outputs])):  # a batch, and two views of one
        torch.testing.assert_close(task.predictions(shape), told(shape))


def test_a_task_says_what_it_does_not_tell():
    emotion, affect, joint = Emotion(CLASSES), ValenceArousal(), Joint(CLASSES)
    assert emotion.affect(OUTPUTS[:, :3]) is None and affect.logits(OUTPUTS[:, :2]) is None
    assert affect.correct(OUTPUTS[:, :2], LABELS) is None
    hits = int((OUTPUTS[:, :3].argmax(1) == LABELS).sum())
    shares = functional.one_hot(LABELS, 3) * 0.7 + 0.1
    for labels in (LABELS, shares):
        assert int(joint.correct(OUTPUTS, labels)) == int(emotion.correct(OUTPUTS[:, :3], labels)) == hits
    with pytest.raises(DataError, match="ValenceArousal tells no expressions apart; choices: emotion, joint"):
        affect.probabilities(OUTPUTS[:, :2])


@pytest.mark.parametrize(("kind", "measure"), [("ccc", concordance_loss), ("mse", squared_error)])
def test_the_joint_loss_is_the_weighted_sum_of_its_two(kind, measure):
    known = faces(TRUE[:6])
    told = measure(torch.tanh(OUTPUTS[:, 3:]), TRUE[:6])
    assert torch.equal(ValenceArousal(kind).loss(OUTPUTS[:, 3:], known), told)
    for weight in (0.0, 0.3, 0.5, 1.0):
        task = Joint(CLASSES, 0.1, "balanced", affect_loss=kind, affect_weight=weight)
        task.fit_to([4, 1, 1])
        balanced = torch.tensor([0.5, 2.0, 2.0])
        expected = (1 - weight) * cross_entropy(OUTPUTS[:, :3], LABELS, balanced, 0.1) + weight * told
        torch.testing.assert_close(task.loss(OUTPUTS, known), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ValenceArousal("cc"), "task.affect_loss=cc; choices: ccc, mse"),
        (lambda: Joint(CLASSES, affect_weight=50), r"task.affect_weight=50; expected a share in 0\.\.1"),
        (
            lambda: Joint(CLASSES, label_smoothing=1.0),
            r"task.label_smoothing=1.0; expected a share in 0\.\.1",
        ),
        (lambda: Joint(CLASSES, weights="heavy").fit_to([1, 1, 1]), "task.weights: class weights 'heavy'"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()
