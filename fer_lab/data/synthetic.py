"""The default data set: drawn faces, made when asked for, with people that never cross the usages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.draw import affect, draw
from fer_lab.data.faces import EXPRESSIONS, USAGES, DataError, Item, digest
from fer_lab.data.portrait import DRAWER_VERSION


class Synthetic:
    """`train`, `validation` and `test` faces of `size` pixels, `per_person` of each drawn person.

    Classes follow each other in turn, so every usage is balanced. `channels` 1 draws grey, 3 RGB.
    """

    name = "synthetic"

    def __init__(
        self,
        train: int = 2000,
        validation: int = 400,
        test: int = 400,
        size: int = 48,
        channels: int = 1,
        classes: int = 7,
        per_person: int = 20,
        seed: int = 0,
    ) -> None:
        if not 2 <= classes <= len(EXPRESSIONS):
            raise DataError(f"classes={classes} of synthetic faces; expected 2 to {len(EXPRESSIONS)}")
        self.counts = (train, validation, test)
        self.size, self.channels, self.per_person, self.seed = size, channels, per_person, seed
        self.classes = EXPRESSIONS[:classes]

    def items(self) -> list[Item]:
        people = 0
        listed: list[Item] = []
        for usage, count in zip(USAGES, self.counts, strict=True):
            for number in range(count):
                subject = f"person{people + number // self.per_person:05d}"
                name = f"{usage}/{subject}/{number:06d}"
                label = number % len(self.classes)
                mood = affect(self.seed, self._position(usage, number), self.classes[label])
                listed.append(Item(name, label, subject, usage, affect=mood))
            people += -(-count // self.per_person)
        return listed

    def stamp(self) -> str:
        settings = (self.counts, self.size, self.channels, self.classes, self.per_person, self.seed)
        return digest(f"synthetic with affect {DRAWER_VERSION} {settings} numpy {np.__version__}")

    def content(self, item: Item) -> bytes:
        return f"{DRAWER_VERSION} {self.seed} {self.size} {self.channels} {item}".encode()

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        usage, person, number = item.name.split("/")
        expression = self.classes[item.label]
        position = self._position(usage, int(number))
        return draw(self.seed, int(person[6:]), position, expression, self.size, self.channels).pixels

    @staticmethod
    def _position(usage: str, number: int) -> int:
        return USAGES.index(usage) * 10**9 + number
