"""Cross entropy for hard and soft labels; concordance and squared error for valence and arousal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross entropy of logits (B, K) against class indices (B,) or probabilities (B, K).

    With `weights` (K,) the mean over hard labels is torch's weighted mean; over probabilities it divides by B,
    which is the same on average for balanced weights.
    """
    if labels.is_floating_point():
        labels = labels.to(logits.dtype)
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)


def concordance_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """1 - concordance correlation over the batch, mean of valence and arousal; (B, 2) each, nan where undefined.

    Concordance is 2 cov(x, y) / (var x + var y + (mean x - mean y)^2) with moments divided by n (Lin 1989,
    Biometrics 45:255). A dimension with fewer than two defined values in the batch is worth a zero that has gradients.
    """
    known = ~true.isnan()
    count = known.sum(0)  # (2,)
    share = known / count.clamp_min(1)
    x, y = predicted.float(), true.float().nan_to_num()
    mean_x, mean_y = (share * x).sum(0), (share * y).sum(0)
    off_x, off_y = x - mean_x, y - mean_y
    covariance = (share * off_x * off_y).sum(0)
    spread = (share * (off_x.square() + off_y.square())).sum(0) + (mean_x - mean_y).square()
    concordance = 2 * covariance / (spread + 1e-8)  # both constant and equal: 0 / 0
    return torch.where(count > 1, 1 - concordance, 0.0 * covariance).mean()


def squared_error(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean over the defined values of (B, 2); a zero that has gradients where none is."""
    known = ~true.isnan()
    error = (predicted.float() - true.float().nan_to_num()).square() * known
    return error.sum() / known.sum().clamp_min(1)


def class_weights(kind: str | Sequence[float] | None, counts: Sequence[int]) -> Tensor | None:
    """Weights (K,) of the classes: none, "balanced" (n / (K * count), as scikit-learn's) or the numbers given.

    `counts` are the training samples of each class; K counts the classes that occur, the others weigh 1.
    Raises ValueError for another kind, another length or numbers that are not positive.
    """
    if kind is None or kind == "none":
        return None
    if kind == "balanced":
        numbers = torch.tensor(counts, dtype=torch.float64)
        weights = numbers.sum() / ((numbers > 0).sum() * numbers)
        return torch.where(numbers > 0, weights, 1.0).float()
    if isinstance(kind, str):
        raise ValueError(f"class weights {kind!r} are not none, balanced or a list of {len(counts)} numbers")
    if len(kind) != len(counts) or min(kind) <= 0:
        raise ValueError(
            f"class weights {list(kind)} should be {len(counts)} numbers above 0, one for each class"
        )
    return torch.tensor(list(kind), dtype=torch.float32)
