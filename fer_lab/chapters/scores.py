"""The figures themselves: with intervals, by class, by confusion, for valence and arousal, and the worst mistakes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fer_lab.chapters.case import Case, bounds, percent
from fer_lab.finished import Part
from fer_lab.pages import Picture, Section, Table, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "f1_macro": "F1, macro",
    "f1_weighted": "F1, weighted",
    "kappa": "kappa (Cohen)",
    "mcc": "Matthews correlation",
    "auroc": "AUROC, one against the rest",
    "nll": "nll, nats",
    "brier": "Brier, 0..2",
    "ece": "calibration error (15 bins)",
}
"""How the page words them; other scores of a run follow under their own names."""
AFFECT = ("ccc", "pcc", "rmse", "sagr")


def scores(case: Case) -> Section:
    parts = list(case.run.parts.values())
    names = [name for name in SCORES if any(name in part.scores for part in parts)]
    names += [name for part in parts for name in part.scores if name not in names]
    rows = [(worded(name), *(scored(part, name) for part in parts)) for name in dict.fromkeys(names)]
    header = ("score", *(f"{part.usage} ({len(part):,} faces)" for part in parts))
    if len(parts) > 1:
        rows = [(name, *reversed(cells)) for name, *cells in rows]
        header = (header[0], *reversed(header[1:]))
    note = "Validation faces chose the epoch: their figures flatter. " if len(parts) > 1 else ""
    return Section(
        "Scores with intervals",
        [
            Table(
                header,
                rows,
                f"{note}In brackets 95% intervals, {how(case)}; they speak of other faces, not of other seeds.",
            )
        ],
    )


def worded(name: str) -> str:
    """`ccc_valence` as "CCC, valence"."""
    first, _, of = name.partition("_")
    return SCORES.get(name) or (
        f"{first.upper()}{f', {of}' if of else ', mean of both'}" if first in AFFECT else name
    )


def how(case: Case) -> str:
    people = case.people(case.part)
    what = f"the {len(set(people))} people" if people else "the faces"
    return f"drawing {what} again 2,000 times (for the AUROC 300 times)"


def scored(part: Part, name: str) -> str:
    if name not in part.scores:
        return "–"
    return f"{part.scores[name]:.4f} {bounds(part.intervals.get(name), 3, 1)}".strip()


def per_class(case: Case) -> Section | None:
    part = case.part
    if part.probabilities is None or not part.per_class:
        return None
    from fer_lab import figures

    rows = [
        (
            name,
            f"{row['support']:,.0f}",
            fraction(row["precision"]),
            f"{fraction(row['recall'])} {recall_bounds(case, row)}".strip(),
            fraction(row["f1"]),
        )
        for name, row in part.per_class.items()
    ]
    table = {name: {key: float(value) for key, value in row.items()} for name, row in part.per_class.items()}
    note = "" if case.people(part) else " Intervals of the recall are Wilson's, 95%."
    return Section(
        "Each expression",
        [
            kept_or_drawn(
                case, "per_class", lambda: figures.per_class(table), f"Precision, recall and F1; {case.faces(part)}."
            ),
            Table(("expression", "faces", "precision", "recall", "F1"), rows, f"{case.faces(part)}.{note}"),
        ],
    )  # fmt: skip


def fraction(value: float) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"


def recall_bounds(case: Case, row: Mapping[str, float]) -> str:
    """Of faces that are drawn independently; of people's faces Wilson's formula would be too narrow."""
    from fer_lab.evaluation.binomial import wilson

    if not row["support"] or case.people(case.part):
        return ""
    return bounds(wilson(row["recall"], int(row["support"])), 3, 1)


def confusion(case: Case) -> Section | None:
    part = case.part
    if part.probabilities is None:
        return None
    from fer_lab import figures

    count = len(part.classes)
    counts = np.bincount(part.labels * count + part.predicted, minlength=count**2).reshape(count, count)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    worst = [np.unravel_index(place, share.shape) for place in np.argsort(-share, axis=None)[:6]]
    rows = [
        (part.classes[true], part.classes[found], f"{counts[true, found]:,}", percent(share[true, found]))
        for true, found in worst
        if counts[true, found]
    ]
    words = f"Rows are true, columns predicted; each cell has its share of the row and its count. {case.faces(part)}."
    return Section(
        "Confusion",
        [
            kept_or_drawn(
                case, "confusion_matrix", lambda: figures.confusion_matrix(counts, part.classes), words
            ),
            Table(
                ("true", "taken for", "faces", "of the true ones"), rows, "The commonest confusions.", words=2
            ),
        ],
    )


def affect(case: Case) -> Section | None:
    part = case.part
    if part.affect is None or part.true_affect is None:
        return None
    from fer_lab.evaluation.affect import circumplex

    true, predicted = part.true_affect, part.affect
    known = int(np.isfinite(part.true_affect).all(1).sum())
    words = f"Valence and arousal, true and predicted; {case.faces(part, known)} that have both."
    picture = kept_or_drawn(case, "affect", lambda: circumplex(predicted, true), words)
    return Section("Valence and arousal", [picture, Text("Their scores, over the whole part, stand above.")])


def mistakes(case: Case) -> Section | None:
    part = case.part
    if part.probabilities is None:
        return None
    from fer_lab import figures

    words = (
        f"The mistakes that gave the true expression the least probability, worst first; {case.faces(part)}. "
        "Many of them are also among the label suspects."
    )
    if case.data is None and not (case.run.folder / "figures" / f"{part.usage}_mistakes.png").exists():
        return Section("Worst mistakes", [Text(f"Their faces cannot be shown: {case.missing}.")])

    def drawn() -> Figure:
        assert case.data is not None and part.probabilities is not None
        pictures = case.data.cache.images[case.rows(part)]
        return figures.mistakes(pictures, part.labels, part.predicted, part.probabilities, part.classes)

    return Section("Worst mistakes", [kept_or_drawn(case, "mistakes", drawn, words)])


def curves(case: Case) -> Section | None:
    if not (case.run.folder / "figures/curves.png").exists():
        return None
    path = shutil.copy(case.run.folder / "figures/curves.png", case.folder / "curves.png")
    words = f"Loss and accuracy over the epochs on {case.data_name}; the epoch kept is marked."
    return Section("Training", [Picture(case.folder / path, words)])


def kept_or_drawn(case: Case, name: str, draw: Callable[[], Figure], words: str) -> Picture:
    """The figure that judging the run left behind, or the same drawn now."""
    kept = case.run.folder / "figures" / f"{case.part.usage}_{name}.png"
    if not kept.exists():
        return case.picture(draw(), name, words)
    return Picture(case.folder / shutil.copy(kept, case.folder / f"{name}.png"), words)


def headline(case: Case) -> str:
    part, scores = case.part, case.part.scores
    if "accuracy" in scores:
        interval = bounds(part.intervals.get("accuracy"))
        return (
            f"{percent(scores['accuracy'])}{f' {interval}' if interval else ''} of {len(part):,} "
            f"{'out-of-fold' if case.run.folds else part.usage} faces of {case.data_name} told right"
        )
    name = next(iter(scores), "")
    return (
        f"{worded(name)} {scored(part, name)} on {len(part):,} {part.usage} faces of {case.data_name}"
        if name
        else case.run.name
    )


def first_figures(case: Case) -> Iterator[tuple[str, str, str]]:
    """The numbers at the head of the page."""
    scores, intervals = case.part.scores, case.part.intervals
    for name, words in (
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced accuracy"),
        ("f1_macro", "F1, macro"),
    ):
        if name in scores:
            yield words, percent(scores[name]), bounds(intervals.get(name))
    for name in ("ccc_valence", "ccc_arousal"):
        if name in scores:
            yield name.replace("ccc_", "CCC "), f"{scores[name]:.3f}", bounds(intervals.get(name), 3, 1)
    if "ece" in scores:
        yield "calibration error", percent(scores["ece"]), bounds(intervals.get("ece"))
    if "parameters" in case.run.fit:
        yield "parameters", f"{case.run.fit['parameters'] / 1e6:.2f} M", ""
    if case.part.inference_ms:
        yield (
            "one face",
            f"{case.part.inference_ms:.1f} ms",
            case.run.tags.get("machine.gpu") or case.run.tags.get("machine.cpu", ""),
        )
