"""What a run is asked to predict: how many numbers its net gives, what they mean, and their loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fer_lab.data.faces import DataError, Faces
from fer_lab.learning.losses import class_weights, concordance_loss, cross_entropy, squared_error

AFFECT_LOSSES = {"ccc": concordance_loss, "mse": squared_error}


class Task(nn.Module, ABC):
    """Outputs (…, O) of a net, as expressions (`logits`), as valence and arousal (`affect`), or as both."""

    needs_affect: ClassVar[bool] = False
    """Whether it tells valence and arousal, and so has to be told them."""

    def __init__(self, classes: Sequence[str], label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise DataError(f"task.label_smoothing={label_smoothing}; expected a share in 0..1")
        self.classes, self.label_smoothing = tuple(classes), label_smoothing

    @classmethod
    @abstractmethod
    def outputs(cls, class_count: int) -> int:
        """How many numbers the net gives for a face of `class_count` expressions."""

    def fit_to(self, counts: Sequence[int]) -> None:
        """Takes what the loss needs from the training part's class counts."""

    @abstractmethod
    def loss(self, outputs: Tensor, faces: Faces) -> Tensor:
        """Of outputs (B, O) against the labels and the affect of `faces`."""

    def logits(self, outputs: Tensor) -> Tensor | None:
        """(…, K), or None where the task tells no expressions apart."""
        return None

    def affect(self, outputs: Tensor) -> Tensor | None:
        """Valence and arousal (…, 2) in -1..1, or None where the task does not tell them."""
        return None

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """Number of right expressions in a batch; the larger share counts where labels were mixed."""
        logits = self.logits(outputs)
        return None if logits is None else (logits.argmax(1) == hard(labels)).sum()

    def probabilities(self, outputs: Tensor) -> Tensor:
        logits = self.logits(outputs)
        if logits is None:
            raise DataError(f"task {type(self).__name__} tells no expressions apart; choices: emotion, joint")
        return torch.softmax(logits.float(), dim=-1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """What users see: the probabilities, then valence and arousal, as far as the task has them."""
        parts = [] if self.logits(outputs) is None else [self.probabilities(outputs)]
        affect = self.affect(outputs)
        return torch.cat(parts if affect is None else [*parts, affect], dim=-1)


class Emotion(Task):
    """One of K expressions, by cross-entropy.

    `weights` is null, "balanced" (inverse frequency in the training part) or K numbers in the order
    of the classes; `label_smoothing` is a share in 0..1.
    """

    def __init__(
        self,
        classes: Sequence[str],
        label_smoothing: float = 0.0,
        weights: str | Sequence[float] | None = None,
    ) -> None:
        super().__init__(classes, label_smoothing)
        self.weights = weights
        self.register_buffer("class_weights", None, persistent=False)

    @classmethod
    def outputs(cls, class_count: int) -> int:
        return class_count

    def fit_to(self, counts: Sequence[int]) -> None:
        """Sets the class weights from the training part's class counts."""
        try:
            self.class_weights = class_weights(self.weights, counts)
        except (ValueError, TypeError) as error:
            raise DataError(f"task.weights: {error}") from error

    def loss(self, outputs: Tensor, faces: Faces) -> Tensor:
        return cross_entropy(outputs, faces.labels, self.class_weights, self.label_smoothing)

    def logits(self, outputs: Tensor) -> Tensor:
        return outputs


class ValenceArousal(Task):
    """Valence and arousal through tanh, by `affect_loss`: ccc (1 - concordance over the batch) or mse."""

    needs_affect: ClassVar[bool] = True

    def __init__(self, affect_loss: str = "ccc") -> None:
        super().__init__(classes=())
        if affect_loss not in AFFECT_LOSSES:
            raise DataError(f"task.affect_loss={affect_loss}; choices: {', '.join(AFFECT_LOSSES)}")
        self.affect_loss = AFFECT_LOSSES[affect_loss]

    @classmethod
    def outputs(cls, class_count: int) -> int:
        return 2

    def loss(self, outputs: Tensor, faces: Faces) -> Tensor:
        assert faces.affect is not None  # build_data refuses such data
        return self.affect_loss(self.affect(outputs), faces.affect)

    def affect(self, outputs: Tensor) -> Tensor:
        return torch.tanh(outputs.float())


class Joint(Task):
    """K expressions, and then valence and arousal, out of one net (R4).

    The loss is (1 - affect_weight) times that of Emotion and affect_weight times that of ValenceArousal.
    """

    needs_affect: ClassVar[bool] = True

    def __init__(
        self,
        classes: Sequence[str],
        label_smoothing: float = 0.0,
        weights: str | Sequence[float] | None = None,
        affect_loss: str = "ccc",
        affect_weight: float = 0.5,
    ) -> None:
        super().__init__(classes, label_smoothing)
        if not 0 <= affect_weight <= 1:
            raise DataError(f"task.affect_weight={affect_weight}; expected a share in 0..1")
        self.emotion = Emotion(classes, label_smoothing, weights)
        self.valence_arousal = ValenceArousal(affect_loss)
        self.affect_weight = affect_weight

    @classmethod
    def outputs(cls, class_count: int) -> int:
        return class_count + 2

    def fit_to(self, counts: Sequence[int]) -> None:
        self.emotion.fit_to(counts)

    def loss(self, outputs: Tensor, faces: Faces) -> Tensor:
        emotion = self.emotion.loss(self.logits(outputs), faces)
        affect = self.valence_arousal.loss(outputs[..., -2:], faces)
        return (1 - self.affect_weight) * emotion + self.affect_weight * affect

    def logits(self, outputs: Tensor) -> Tensor:
        return outputs[..., :-2]

    def affect(self, outputs: Tensor) -> Tensor:
        return self.valence_arousal.affect(outputs[..., -2:])


def hard(labels: Tensor) -> Tensor:
    """Class indices (B,), of shares (B, K) the largest."""
    return labels if labels.ndim == 1 else labels.argmax(1)
