"""Class balance by resampling the training rows of each epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import DataError, expression


class Balance:
    """Brings the named classes to the mean size of the others; drawn anew each epoch.

    `undersample` shrinks the named classes, `oversample` repeats items of them, and the word "all" brings
    every class to the smallest (largest) one. R2 balances FER2013 with undersample=[happiness] and
    oversample=[disgust].
    """

    def __init__(
        self,
        undersample: str | Sequence[str] = (),
        oversample: str | Sequence[str] = (),
        classes: Sequence[str] = (),
    ) -> None:
        self.shrink, self.grow = (self.indices(names, classes) for names in (undersample, oversample))
        if both := [classes[label] for label in sorted(self.shrink & self.grow)]:
            raise DataError(f"balance puts {', '.join(both)} under undersample and oversample; choose one")
        self.goal = min if undersample == "all" else max if oversample == "all" else None

    @staticmethod
    def indices(names: str | Sequence[str], classes: Sequence[str]) -> set[int]:
        if names == "all":
            return set(range(len(classes)))
        wanted = [expression(name) for name in ([names] if isinstance(names, str) else names)]
        missing = [name for name in wanted if name not in classes]
        if missing:
            raise DataError(f"balance names {', '.join(missing)}; the data set has {', '.join(classes)}")
        return {list(classes).index(name) for name in wanted}

    def sizes(self, labels: NDArray[np.int64]) -> dict[int, int]:
        """Items of each class in an epoch."""
        counts = {int(label): int((labels == label).sum()) for label in np.unique(labels)}
        named = self.shrink | self.grow
        others = [count for label, count in counts.items() if label not in named] or list(counts.values())
        goal = self.goal(counts.values()) if self.goal else round(float(np.mean(others)))
        return {
            label: min(count, goal)
            if label in self.shrink
            else max(count, goal)
            if label in self.grow
            else count
            for label, count in counts.items()
        }

    def size(self, labels: NDArray[np.int64]) -> int:
        return sum(self.sizes(labels).values())

    def __call__(self, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Positions into `labels` of one epoch; every item comes before any is repeated."""
        generator = np.random.default_rng(seed)
        kept = []
        for label, size in self.sizes(labels).items():
            members = generator.permutation(np.flatnonzero(labels == label))
            kept.append(np.resize(members, size))
        return np.concatenate(kept)
