"""What a run is asked to predict: its loss, its targets and the scores of a validation epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fer_lab.data.faces import DataError
from fer_lab.learning.losses import class_weights, cross_entropy


class Emotion(nn.Module):
    """One of K expressions, by cross-entropy.

    `class_weights` is null, "balanced" (inverse frequency in the training part) or K numbers in the order
    of the classes; `label_smoothing` is a share in 0..1.
    """

    def __init__(
        self,
        classes: Sequence[str],
        label_smoothing: float = 0.0,
        weights: str | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise DataError(f"task.label_smoothing={label_smoothing}; expected a share in 0..1")
        self.classes, self.label_smoothing, self.weights = tuple(classes), label_smoothing, weights
        self.register_buffer("class_weights", None, persistent=False)

    def fit_to(self, counts: Sequence[int]) -> None:
        """Sets the class weights from the training part's class counts."""
        try:
            self.class_weights = class_weights(self.weights, counts)
        except (ValueError, TypeError) as error:
            raise DataError(f"task.weights: {error}") from error

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, weights=self.class_weights, smoothing=self.label_smoothing)

    def correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Number of right answers in a batch; the larger share counts where labels were mixed."""
        hard = labels if labels.ndim == 1 else labels.argmax(1)
        return (logits.argmax(1) == hard).sum()

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.float(), dim=-1)
