"""The chapters of a run's report, in the order in which a reviewer asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig

from fer_lab.chapters import card, leaks, protocol, scores, trust
from fer_lab.chapters.case import Case, open_case
from fer_lab.finished import Finished
from fer_lab.pages import Page, Section

CHAPTERS: tuple[Callable[[Case], Section | None], ...] = (
    protocol.protocol,
    leaks.leaks,
    scores.scores,
    protocol.folds,
    protocol.seeds,
    scores.per_class,
    scores.confusion,
    scores.affect,
    trust.calibration,
    trust.robustness,
    trust.labels,
    scores.mistakes,
    scores.curves,
    card.card,
    card.again,
)


def bind(run: Finished, cfg: DictConfig, folder: Path) -> Page:
    """The page of `run`, its figures written to `folder`."""
    case = open_case(run, cfg, folder)
    return Page(
        title=f"Run {run.name}",
        headline=scores.headline(case),
        sections=[section for chapter in CHAPTERS if (section := chapter(case))],
        figures=list(scores.first_figures(case)),
        foot=f"Written {datetime.now():%Y-%m-%d %H:%M} by fer_lab {version('fer_lab')} from the run's own files; nothing is loaded from elsewhere.",
        badges=list(badges(case)),
    )


def badges(case: Case) -> Iterator[str]:
    if case.run.tags.get("fer.mixes_subjects") == "True":
        yield "Person-dependent: the same people train and test."
    if case.part.usage == "validation":
        yield "No test part: these figures are of the faces that chose the epoch."
    if case.data is None:
        yield f"Written without the faces ({case.missing}): robustness and pictures of faces are left out."
