"""How good a set of predictions is: every figure the field reports, from logits and labels.

All functions take `logits` (N, K) and `labels` (N,) of class indices, on any device. Log-probabilities are
logits too: pass `probabilities.log()` for predictions averaged over test-time views. A figure that a split
does not define (the kappa of a single class, say) is nan, never a made-up 0. An empty split is a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 15  # of equal width in 0..1, for the calibration error (Guo et al. 2017)


def quick_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1 and nll in plain torch, equal to `emotion_metrics` to rounding.

    For every validation epoch: microseconds, no import of torchmetrics. Logits that are nan give nll nan.
    """
    log_probabilities, labels = _checked(logits, labels)
    scores = confusion_metrics(_counts(log_probabilities.argmax(1), labels, logits.shape[1]))
    names = ("accuracy", "balanced_accuracy", "f1_macro")
    return {name: float(scores[name]) for name in names} | {"nll": _nll(log_probabilities, labels)}


def emotion_metrics(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Every figure of one split.

    accuracy, balanced_accuracy (UAR: mean recall of the classes present), f1_macro (over classes that are
    present or predicted, as scikit-learn has it), f1_weighted, kappa (Cohen), mcc, auroc (one against the
    rest, mean over the classes present), all with 1 as best; nll in nats, brier (0..2, summed over classes)
    and ece (0..1, 15 bins), all with 0 as best.
    """
    import torchmetrics.functional.classification as tm

    log_probabilities, labels = _checked(logits, labels, classes)
    if bool(log_probabilities.isnan().any()):
        broken = int(log_probabilities.isnan().any(1).sum())
        raise ValueError(
            f"{broken} of {len(labels)} rows of logits are nan: the net has diverged; no figures"
        )
    probabilities, count = log_probabilities.exp(), len(classes)
    present = labels.unique()
    recall = tm.multiclass_recall(probabilities, labels, count, average=None)
    scores: dict[str, Tensor | float] = {
        "accuracy": tm.multiclass_accuracy(probabilities, labels, count, average="micro"),
        "balanced_accuracy": recall[present].mean(),
        "f1_macro": tm.multiclass_f1_score(probabilities, labels, count, average="macro"),
        "f1_weighted": tm.multiclass_f1_score(probabilities, labels, count, average="weighted"),
        "kappa": tm.multiclass_cohen_kappa(probabilities, labels, count),
        "mcc": tm.multiclass_matthews_corrcoef(probabilities, labels, count),
        "auroc": _auroc(probabilities, labels, present),
        "nll": _nll(log_probabilities, labels),
        "brier": (probabilities - torch.nn.functional.one_hot(labels, count)).square().sum(1).mean(),
        # torchmetrics gives a confidence of exactly 1 a bin of its own: keep it in the last one.
        "ece": tm.multiclass_calibration_error(
            probabilities.clamp(max=1 - 2**-24), labels, count, n_bins=BINS, norm="l1"
        ),
    }
    return {name: float(score) for name, score in scores.items()}


def per_class(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each class name: precision, recall, f1 (0..1) and support (labelled items).

    nan where undefined: the precision of a class never predicted, the recall of one that is absent.
    """
    counts = confusion(logits, labels, classes).double()
    hits, support, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    columns = {
        "precision": hits / predicted,
        "recall": hits / support,
        "f1": 2 * hits / (support + predicted),
        "support": support,
    }
    return {
        name: {column: float(values[row]) for column, values in columns.items()}
        for row, name in enumerate(classes)
    }


def confusion(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Counts (K, K), int64 on the CPU: rows are the true classes, columns the predicted ones."""
    log_probabilities, labels = _checked(logits, labels, classes)
    return _counts(log_probabilities.argmax(1), labels, len(classes))


def confusion_metrics(counts: Tensor) -> dict[str, Tensor]:
    """The figures that follow from the confusion alone, for (…, K, K) counts: a (…) tensor each, float64.

    accuracy, balanced_accuracy, f1_macro, f1_weighted, kappa and mcc, defined as in `emotion_metrics`.
    """

    def spread(of: Tensor) -> Tensor:
        """1 - the chance that two items share their class (Gorodkin 2004)."""
        return 1 - (of / total[..., None]).square().sum(-1)

    counts = counts.double()
    total = counts.sum((-2, -1))
    hits, support, predicted = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)
    f1 = 2 * hits / (support + predicted)  # nan for a class neither present nor predicted
    accuracy, chance = hits.sum(-1) / total, (support * predicted).sum(-1) / total**2
    return {
        "accuracy": accuracy,
        "balanced_accuracy": (hits / support).nanmean(-1),
        "f1_macro": f1.nanmean(-1),
        "f1_weighted": (f1.nan_to_num() * support).sum(-1) / total,
        "kappa": (accuracy - chance) / (1 - chance),
        "mcc": (accuracy - chance) / (spread(support) * spread(predicted)).sqrt(),
    }


def _checked(logits: Tensor, labels: Tensor, classes: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, K) float64 and labels (N,) int64 on the CPU, or a ValueError that says what is off."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"logits {tuple(logits.shape)} with labels {tuple(labels.shape)} of {labels.dtype}: "
            "expected (N, K) and class indices (N,)"
        )
    if len(labels) == 0:
        raise ValueError("no items: metrics of an empty split are undefined; check the split's sizes")
    width = logits.shape[1]
    if classes is not None and len(classes) != width:
        raise ValueError(
            f"logits have {width} columns but there are {len(classes)} classes: {', '.join(classes)}"
        )
    labels = labels.detach().cpu().long()
    if int(labels.min()) < 0 or int(labels.max()) >= width:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected 0..{width - 1}"
        )
    return logits.detach().cpu().double().log_softmax(1), labels


def _counts(predicted: Tensor, labels: Tensor, count: int) -> Tensor:
    return torch.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)


def _nll(log_probabilities: Tensor, labels: Tensor) -> float:
    """Mean of -log p(true class); a p of 0 counts as float32's smallest, so that one item cannot say inf."""
    floor = torch.tensor(torch.finfo(torch.float32).tiny).double().log()
    return float(-log_probabilities.gather(1, labels[:, None]).clamp(min=floor).mean())


def _auroc(probabilities: Tensor, labels: Tensor, present: Tensor) -> float:
    from torchmetrics.functional.classification import binary_auroc

    if len(present) < 2:
        return float("nan")
    return float(
        torch.stack(
            [binary_auroc(probabilities[:, k], (labels == k).long()) for k in present.tolist()]
        ).mean()
    )
