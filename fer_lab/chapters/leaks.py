"""Copies of the judged faces among those that trained or chose, as the audit of the data set found them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fer_lab.chapters.case import Case, bounds, percent
from fer_lab.finished import Part
from fer_lab.pages import Code, Section, Table, Text, Warn

if TYPE_CHECKING:
    from fer_lab.evaluation.audits import Audit


def leaks(case: Case) -> Section:
    audit = audit_of(case)
    if audit is None:
        return Section("Leaks", [Warn(UNKNOWN), Code([how_to(case)]), Text(THEN)])
    counts = {
        "pictures that have a copy": sum(len(group.names) for group in audit.groups),
        "groups of copies labelled differently": sum(group.disagrees for group in audit.groups),
        "unreadable pictures": sum(map(len, audit.unreadable.values())),
        "blank ones": len(audit.blank),
    }
    words = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    excluded = (
        " It was trained without them (`data.exclude=audit`)."
        if case.run.config.data.get("exclude") == "audit"
        else ""
    )
    return Section(
        "Leaks",
        [
            table(case, audit),
            Text(
                f"The audit of {audit.name} (`{audit.digest[:16]}`) counts {words} in the whole data set.{excluded}"
            ),
        ],
    )


UNKNOWN = "Nobody has looked for copies of test faces among the training faces yet."
THEN = "The audit is kept with the decoded faces; this page, written again, then says what it found."


def how_to(case: Case) -> str:
    from fer_lab.clean import audit_command

    return audit_command(case.config)


def audit_of(case: Case) -> Audit | None:
    from fer_lab import clean

    return None if case.data is None else clean.audit_of(case.config, case.data.index)


def copied(case: Case, audit: Audit, part: Part) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which of the part's faces have a copy in train, and in any other part; of a cross-validation, in those of the fold
    that judged them. None where a fold's run is gone."""
    from fer_lab.evaluation.audits import Copies

    assert case.data is not None
    rows, split, index = case.rows(part), case.data.split, case.data.index
    if case.run.folds:
        from fer_lab.folds import copied_faces, fold_splits

        splits = fold_splits(case.run.folder, case.run.folds["folds"], index)
        if splits is None:
            return None
        in_train, anywhere = (copied_faces(audit, index, rows, splits, usage) for usage in ("train", ""))
        return in_train, anywhere
    copies = Copies.of(audit, index, split)
    others = [getattr(split, usage) for usage in ("train", "validation", "test") if usage != part.usage]
    return copies.have_copy_in(rows, split.train), copies.have_copy_in(rows, np.concatenate(others))


def table(case: Case, audit: Audit) -> Table:
    """The accuracy of each part on all of its faces, on those without a copy and on those with one."""
    rows = []
    for part in reversed(list(case.run.parts.values())):
        if part.probabilities is None:
            continue
        found = copied(case, audit, part)
        if found is None:
            rows.append((part.usage, f"{len(part):,}", *["–"] * 5))
            continue
        in_train, anywhere = found
        everything = np.ones(len(part), dtype=bool)
        cells = [accuracy(case, part, kept) for kept in (everything, ~anywhere, anywhere)]
        rows.append((part.usage, f"{len(part):,}", f"{in_train.sum():,}", f"{anywhere.sum():,}", *cells))
    return Table(
        (
            "part",
            "faces",
            "copy in train",
            "copy in another part",
            "accuracy",
            "without those",
            "on those alone",
        ),
        rows,
        "Copies are the same picture, or one that differs by re-encoding, size, mirroring or equalisation. In brackets 95% "
        "intervals. A net that does much better on copies may remember them."
        + (
            " Of a cross-validation, the parts are those of the fold that judged the face."
            if case.run.folds
            else ""
        ),
    )


def accuracy(case: Case, part: Part, kept: NDArray[np.bool_]) -> str:
    from fer_lab.evaluation.uncertainty import bootstrap_confusion, people_on

    if not kept.any():
        return "–"
    assert case.data is not None
    people = people_on(case.data.index, case.rows(part)[kept])
    labels, predicted = part.labels[kept], part.predicted[kept]
    interval = bootstrap_confusion(labels, predicted, len(part.classes), people)["accuracy"]
    return f"{percent(float((labels == predicted).mean()))} {bounds(interval)}".strip()
