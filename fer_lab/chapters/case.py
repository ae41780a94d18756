"""What the chapters of a report are written from: the run's files and, where they can be had, its faces and its net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from fer_lab.finished import Finished, Part, siblings
from fer_lab.pages import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fer_lab.data.datamodule import FaceData
    from fer_lab.learning.module import FerModule


@dataclass(frozen=True)
class Case:
    """`asked` is the report's own config; `config` is the run's with the report's words in place of its own, and so says
    where the faces are today: how the figures came about stands in `run.config`. `data` and `module` are None where
    `missing` says why."""

    run: Finished
    asked: DictConfig
    config: DictConfig
    folder: Path
    data: FaceData | None
    module: FerModule | None
    missing: str
    siblings: Sequence[Finished]

    @property
    def part(self) -> Part:
        return self.run.main

    @property
    def data_name(self) -> str:
        if self.data is not None:
            return self.data.index.name
        return next((str(part["name"]) for part in self.run.datasets.values()), str(self.config.name))

    def faces(self, part: Part, count: int | None = None) -> str:
        """Who was looked at and how, for captions: "3,589 test faces of fer2013, each with its mirror image"."""
        views = VIEWS.get(str(self.run.config.views), "")
        kind = "pooled out-of-fold" if self.run.folds else part.usage
        return f"{count or len(part):,} {kind} faces of {self.data_name}{f', each{views}' if views else ''}"

    def rows(self, part: Part) -> NDArray[np.int64]:
        """The part's faces in the cache."""
        assert self.data is not None
        places = {name: row for row, name in enumerate(self.data.index.names)}
        return np.array([places[name] for name in part.names], dtype=np.int64)

    def people(self, part: Part) -> list[str] | None:
        """Who is on each face; None where the data set does not say, or all are one."""
        from fer_lab.evaluation.uncertainty import people_on

        return None if self.data is None else people_on(self.data.index, self.rows(part))

    def picture(self, figure: Figure, name: str, words: str) -> Picture:
        from fer_lab import figures

        return Picture(figures.save(figure, self.folder / f"{name}.png"), words)


VIEWS = {
    "none": "",
    "flip": " with its mirror image",
    "five": " in five crops",
    "ten": " in ten crops",
}


def open_case(run: Finished, cfg: DictConfig, folder: Path) -> Case:
    """Rebuilds what can be: without the data there is a report still, with fewer chapters."""
    from fer_lab.cli import UsageError
    from fer_lab.data.faces import DataError
    from fer_lab.evaluate import overridden, rebuild

    config = overridden(run.config.copy(), cfg)
    data = module = None
    missing = ""
    try:
        if run.has_net:
            from fer_lab.train import set_threads

            set_threads(cfg.threads)
            module, data = rebuild(run.folder, config)
            module.eval()
        else:
            from fer_lab.build import build_data

            if run.folds:
                config.split.fold = 0  # any of them: it is the faces that are wanted
            data, missing = build_data(config), "it is a cross-validation, whose folds have a net each"
        unknown = set(run.main.names) - set(data.index.names)
        if unknown:
            raise DataError(
                f"{len(unknown)} of the faces that were judged are not in {config.data.root} today"
            )
    except (DataError, UsageError) as error:
        data, module, missing = None, None, str(error).splitlines()[0]
    return Case(run, cfg, config, folder, data, module, missing, siblings(run, run.folder.parent))


def percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f}%"


def bounds(interval: Sequence[float] | None, digits: int = 1, scale: float = 100) -> str:
    """[64.1, 67.2] of an interval in 0..1; empty where there is none."""
    if interval is None or any(bound != bound for bound in interval):
        return ""
    return "[" + ", ".join(f"{scale * bound:.{digits}f}" for bound in interval) + "]"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
