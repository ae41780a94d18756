"""Cross entropy for hard and soft labels, with class weights and label smoothing."""

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
