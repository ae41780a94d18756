"""Whether a net's confidence can be believed, and the one number that mends most of it.

Temperature scaling (Guo et al. 2017): every logit divided by the same T, fitted on validation faces by nll. It moves
no prediction to another class. T above 1 means that the net was too sure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fer_lab.data.faces import DataError

FILE = "temperature.json"
SMALLEST = 5e-7
"""Stands for a probability of 0: half of the last digit that predictions were once written with."""
COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature: on faces that are all told right the best one would be 0."""


class Temperature(NamedTuple):
    """`value` divides the logarithms of probabilities averaged over the test-time views (logits, where there is one
    view); so many `faces` fitted it, whose nll (nats) and ece (0..1) it changed from `before` to `after`."""

    value: float
    faces: int
    before: dict[str, float]
    after: dict[str, float]

    @property
    def is_at_bound(self) -> bool:
        return self.value in (COLDEST, HOTTEST)


def fit_temperature(labels: ArrayLike, probabilities: ArrayLike) -> Temperature:
    """The temperature with the least nll of `labels` (N,) under `probabilities` (N, K).

    In 1/T the nll is convex, so the one zero of its slope is found by halving. Where that is no better than T = 1, by
    rounding, it is 1.
    """
    labels, logits = np.asarray(labels), _logits(probabilities)
    if not len(labels):
        raise ValueError("no faces to fit a temperature on; a split has to have a validation part")
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(labels, logits, middle) > 0 else (middle, high)
    value = float(np.clip(round(2 / (low + high), 6), COLDEST, HOTTEST))
    before, after = figures(labels, probabilities), figures(labels, scaled(probabilities, value))
    if after["nll"] >= before["nll"]:
        value, after = 1.0, before
    return Temperature(value, len(labels), before, after)


def scaled(probabilities: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """`probabilities` (N, K) at another temperature."""
    return _softmax(_logits(probabilities) / temperature)


def figures(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """nll, brier and ece as `fer_lab.evaluation.metrics` defines them."""
    import torch

    from fer_lab.evaluation.metrics import emotion_metrics

    logits = torch.from_numpy(_logits(probabilities))
    classes = [str(number) for number in range(logits.shape[1])]
    scores = emotion_metrics(logits, torch.as_tensor(np.asarray(labels, dtype=np.int64)), classes)
    return {name: scores[name] for name in ("nll", "brier", "ece")}


def save_temperature(folder: Path, temperature: Temperature) -> Path:
    """Beside the weights it belongs to."""
    path = folder / FILE
    path.write_text(json.dumps({"fitted_on": "validation", **temperature._asdict()}, indent=1))
    return path


def read_temperature(folder: Path) -> Temperature | None:
    """What a report of the run in `folder` stored; None where nobody made one. Raises DataError of a broken file."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text())
        return Temperature(**{name: kept[name] for name in Temperature._fields})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not what a report writes ({error!r}); python -m fer_lab.report run={folder.name} writes it again"
        ) from error


def _logits(probabilities: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(probabilities, dtype=np.float64)
    return np.log(np.where(found > 0, found, SMALLEST))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _slope(labels: NDArray[np.int64], logits: NDArray[np.float64], inverse: float) -> float:
    """Of the nll in 1/T: the expected logit less that of the true class, on average."""
    expected = (_softmax(inverse * logits) * logits).sum(1)
    return float((expected - logits[np.arange(len(labels)), labels]).mean())
