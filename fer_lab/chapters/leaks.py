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
        if case.config.data.get("exclude") == "audit"
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
    source = str(case.config.data.source._target_).split(".")[-2]
    root = f" data.root={case.config.data.root}" if case.config.data.get("root") else ""
    return f"python -m fer_lab.audit data={source}{root}"


def audit_of(case: Case) -> Audit | None:
    from fer_lab.evaluation.audits import folder_of, read_audit

    return None if case.data is None else read_audit(folder_of(case.data.index, case.config.cache_dir))


def copied(case: Case, audit: Audit, part: Part) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the part's faces have a copy in train, and in any other part; of a cross-validation, anywhere else."""
    from fer_lab.evaluation.audits import Copies

    assert case.data is not None
    rows, split = case.rows(part), case.data.split
    if case.run.folds:
        found = audit.rows(case.data.index)[rows] >= 0
        return found, found
    copies = Copies.of(audit, case.data.index, split)
    others = [getattr(split, usage) for usage in ("train", "validation", "test") if usage != part.usage]
    return copies.have_copy_in(rows, split.train), copies.have_copy_in(rows, np.concatenate(others))


def table(case: Case, audit: Audit) -> Table:
    """The accuracy of each part on all of its faces, on those without a copy and on those with one."""
    rows = []
    for part in reversed(list(case.run.parts.values())):
        if part.probabilities is None:
            continue
        in_train, anywhere = copied(case, audit, part)
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
        "intervals. A net that does much better on copies may remember them.",
    )


def accuracy(case: Case, part: Part, kept: NDArray[np.bool_]) -> str:
    from fer_lab.evaluation.uncertainty import bootstrap_confusion

    if not kept.any():
        return "–"
    people = case.people(part)
    groups = None if people is None else [one for one, keep in zip(people, kept, strict=True) if keep]
    labels, predicted = part.labels[kept], part.predicted[kept]
    interval = bootstrap_confusion(labels, predicted, len(part.classes), groups)["accuracy"]
    return f"{percent(float((labels == predicted).mean()))} {bounds(interval)}".strip()
