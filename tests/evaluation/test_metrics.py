"""Every figure against scikit-learn or a case worked by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import Tensor

from fer_lab.data.faces import EXPRESSIONS
from fer_lab.evaluation.metrics import confusion, confusion_metrics, emotion_metrics, per_class, quick_metrics

SEVEN = EXPRESSIONS[:7]
QUICK = ("accuracy", "balanced_accuracy", "f1_macro", "nll")


def predictions(count: int = 400, absent: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unbalanced labels and logits that are right about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, generator=generator).square().mul(7).long()
    if absent is not None:
        labels[labels == absent] = (absent + 1) % 7
    logits = torch.randn(count, 7, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


def expected(logits: Tensor, labels: Tensor) -> dict[str, float]:
    p = logits.double().softmax(1).numpy()
    y, guess, every = labels.numpy(), p.argmax(1), np.arange(7)
    present = [k for k in every if (y == k).any()]
    return {
        "accuracy": oracle.accuracy_score(y, guess),
        "balanced_accuracy": np.mean([(guess[y == k] == k).mean() for k in present]),
        "f1_macro": oracle.f1_score(y, guess, average="macro"),
        "f1_weighted": oracle.f1_score(y, guess, average="weighted"),
        "kappa": oracle.cohen_kappa_score(y, guess),
        "mcc": oracle.matthews_corrcoef(y, guess),
        "auroc": np.mean([oracle.roc_auc_score(y == k, p[:, k]) for k in present]),
        "nll": oracle.log_loss(y, p, labels=every),
        "brier": oracle.brier_score_loss(y, p, labels=every, scale_by_half=False),
    }


@pytest.mark.parametrize("absent", [None, 5])
def test_agrees_with_scikit_learn(absent: int | None) -> None:
    logits, labels = predictions(absent=absent)
    found = emotion_metrics(logits, labels, SEVEN)
    assert found.pop("ece") > 0
    assert found == pytest.approx(expected(logits, labels), abs=2e-6)


def test_macro_figures_of_all_classes_are_the_library_s_own() -> None:
    logits, labels = predictions()
    found, p = emotion_metrics(logits, labels, SEVEN), logits.double().softmax(1).numpy()
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(labels, p, multi_class="ovr"), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(labels, p.argmax(1)))


@pytest.mark.parametrize("absent", [None, 2])
def test_quick_metrics_are_the_full_ones(absent: int | None) -> None:
    logits, labels = predictions(absent=absent, seed=3)
    full = emotion_metrics(logits, labels, SEVEN)
    assert quick_metrics(logits, labels) == pytest.approx({name: full[name] for name in QUICK}, abs=1e-6)


def test_batched_confusion_metrics_are_the_full_ones() -> None:
    pairs = [predictions(absent=absent, seed=absent) for absent in (0, 4, 6)]
    counts = torch.stack([confusion(logits, labels, SEVEN) for logits, labels in pairs])
    for name, values in confusion_metrics(counts).items():
        full = [emotion_metrics(logits, labels, SEVEN)[name] for logits, labels in pairs]
        assert values.tolist() == pytest.approx(full, abs=1e-6), name


def test_log_probabilities_pass_as_logits() -> None:
    logits, labels = predictions()
    averaged = (logits.double().softmax(1) + logits.roll(1, 0).double().softmax(1)) / 2
    found = emotion_metrics(averaged.log(), labels, SEVEN)
    assert found["nll"] == pytest.approx(oracle.log_loss(labels, averaged.numpy(), labels=range(7)), abs=1e-5)


def test_a_certain_mistake_has_a_finite_nll() -> None:
    certain = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()
    found = emotion_metrics(certain, torch.tensor([1, 0]), ("fear", "anger"))
    tiny = -math.log(torch.finfo(torch.float32).tiny)
    assert found["nll"] == pytest.approx((tiny + math.log(2)) / 2)


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: confidences .9 .9 (one right), .6 (right), .5 (wrong), 1 and .99 (both right, one bin).
    confidences = torch.tensor([0.9, 0.9, 0.6, 0.5, 1.0, 0.99])
    right = torch.tensor([True, False, True, False, True, True])
    p = torch.stack([confidences, 1 - confidences], 1)
    p[3] = torch.tensor([0.5001, 0.4999])
    by_hand = (2 * abs(0.5 - 0.9) + abs(1 - 0.6) + abs(0 - 0.5001) + 2 * abs(1 - 0.995)) / 6
    found = emotion_metrics(p.log(), (~right).long(), ("fear", "anger"))
    assert found["ece"] == pytest.approx(by_hand, abs=1e-6)


def test_brier_of_two_classes_by_hand() -> None:
    p = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    found = emotion_metrics(p.log(), torch.tensor([0, 0]), ("fear", "anger"))
    assert found["brier"] == pytest.approx((0.04 + 0.04 + 0.49 + 0.49) / 2)


def test_confusion_rows_are_true_and_columns_predicted() -> None:
    guess, labels = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 0, 2, 1])
    counts = confusion(torch.eye(3)[guess], labels, ("neutral", "fear", "anger"))
    assert (
        counts.tolist()
        == oracle.confusion_matrix(labels, guess).tolist()
        == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    )


def test_per_class_agrees_with_scikit_learn() -> None:
    logits, labels = predictions(absent=6)
    logits[:, 3] = -20.0  # surprise is never predicted
    columns = oracle.precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(7), zero_division=np.nan
    )
    table = per_class(logits, labels, SEVEN)
    assert list(table) == list(SEVEN)
    for name, values in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        np.testing.assert_allclose([table[one][name] for one in SEVEN], values, rtol=1e-12)
    assert math.isnan(table["surprise"]["precision"]) and math.isnan(table["anger"]["recall"])


def test_a_single_class_leaves_ranking_and_agreement_undefined() -> None:
    logits, labels = torch.eye(7)[[2, 2, 2, 2]] * 5, torch.tensor([2, 2, 2, 2])
    found = emotion_metrics(logits, labels, SEVEN)
    assert found["accuracy"] == found["balanced_accuracy"] == found["f1_macro"] == 1
    assert math.isnan(found["auroc"]) and math.isnan(found["kappa"])
    assert quick_metrics(logits, labels) == pytest.approx({name: found[name] for name in QUICK})


def test_half_precision_is_read_as_it_is() -> None:
    logits, labels = predictions()
    half = logits.bfloat16()
    assert quick_metrics(half, labels) == quick_metrics(half.float(), labels)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 7), torch.zeros(0, dtype=torch.long), "empty split"),
        (torch.zeros(2, 7), torch.tensor([0, 7]), r"labels run from 0 to 7; expected 0\.\.6"),
        (torch.zeros(2, 7), torch.tensor([-1, 3]), "labels run from -1 to 3"),
        (torch.zeros(2, 7), torch.zeros(2, 7), "expected .* class indices"),
        (torch.zeros(2, 6), torch.tensor([0, 1]), "6 columns but there are 7 classes: neutral, .*anger"),
        (torch.tensor([[math.nan] * 7, [0.0] * 7]), torch.tensor([0, 1]), "1 of 2 rows of logits are nan"),
    ],
)
def test_refuses_what_has_no_figures(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        emotion_metrics(logits, labels, SEVEN)


def test_quick_metrics_of_a_diverged_net_say_nan() -> None:
    assert math.isnan(quick_metrics(torch.full((3, 7), math.nan), torch.tensor([0, 1, 2]))["nll"])
