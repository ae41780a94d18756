"""What an audit says of a data set in numbers: its groups as a manifest, the leaks of a split, the release's counts."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fer_lab.data.faces import USAGES, Index, Item, Source
from fer_lab.data.splits import Split
from fer_lab.evaluation.audits import Audit, Copies, Group
from fer_lab.evaluation.leaks import Pairs, groups_of

STEPS = (0.66, 0.7, 0.74, 0.78, 0.82, 0.86, 0.9, 0.95, 0.98, 1.0)
"""Thresholds at which the page counts copies."""


def listed(source: Source) -> tuple[list[Item], list[str]]:
    """The items of a data set, and what its loader has to say of their counts."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        items = source.items()
    return items, [str(one.message) for one in said]


def release_of(source: Source) -> dict[str, int]:
    """Faces of each usage in the official release, where the data set says so.

    It does by an attribute `official`: {usage, or None of a release without parts: faces, or faces of each class}.
    """
    official: Mapping[str | None, Any] = getattr(source, "official", {})
    return {
        str(usage): sum(count.values()) if isinstance(count, Mapping) else count
        for usage, count in official.items()
    }


def by_class(items: Sequence[Item], source: Source) -> dict[str, dict[str, tuple[int, int | None]]]:
    """Of each usage the pictures here of each class, and those in the release, None where it is not known."""
    official: Mapping[str | None, Any] = getattr(source, "official", {})
    here = Counter((item.usage, item.label) for item in items)
    usages = [usage for usage in (*USAGES, None) if usage in official or any(usage == one for one, _ in here)]
    found: dict[str, dict[str, tuple[int, int | None]]] = {}
    for usage in usages:
        known = official.get(usage)
        known = known if isinstance(known, Mapping) else {}
        found[str(usage)] = {
            name: (here[usage, label], known.get(name)) for label, name in enumerate(source.classes)
        }
    return found


def manifest_of(index: Index, pairs: Pairs, threshold: float, skipped: Sequence[tuple[str, str]]) -> Audit:
    """The groups in the order of their first face."""
    numbers = groups_of(pairs, len(index), threshold)
    kept = pairs.scores >= threshold
    loosest = np.ones(len(index))
    np.minimum.at(loosest, numbers[pairs.first[kept]], pairs.scores[kept])
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.bincount(numbers)[numbers] > 1).tolist():
        members.setdefault(int(numbers[row]), []).append(row)
    groups = [
        Group(
            tuple(index.names[row] for row in rows),
            tuple(index.classes[index.labels[row]] for row in rows),
            round(float(loosest[number]), 4),
        )
        for number, rows in members.items()
    ]
    unreadable: dict[str, list[str]] = {}
    for name, reason in skipped:
        unreadable.setdefault(reason, []).append(name)
    blank = unreadable.pop("blank", [])
    return Audit(index.name, index.digest, threshold, tuple(groups), unreadable, blank)


def findings(audit: Audit, copies: Copies, items: Sequence[Item], index: Index) -> dict[str, Any]:
    """What the manifest says beyond the groups: the leaks of this split by part, people on two sides, and counts."""
    split = copies.split
    leaks = {usage: getattr(split, usage)[copies.leaked(usage)] for usage in USAGES}
    return {
        "split": split.digest(index),
        "leaks": {usage: [index.names[row] for row in rows] for usage, rows in leaks.items()},
        "subjects": shared_subjects(index, split),
        "counts": {
            "pictures": len(items),
            "listed": Counter(str(item.usage) for item in items),
            "usable": len(index),
            "unreadable": sum(map(len, audit.unreadable.values())),
            "blank": len(audit.blank),
            "groups": len(audit.groups),
            "faces in groups": sum(len(one.names) for one in audit.groups),
            "groups of conflicting labels": sum(one.disagrees for one in audit.groups),
            "people": len(set(index.subjects) - {None}),
            "parts": parts_counted(copies),
        },
    }


def parts_counted(copies: Copies) -> dict[str, dict[str, Any]]:
    """Of each part of the split: its faces, those with a copy anywhere, in each other part, and what is left."""
    cleaned, split = copies.cleaned(), copies.split
    counts = {}
    for usage in USAGES:
        rows = getattr(split, usage)
        others = {other: getattr(split, other) for other in USAGES if other != usage}
        counts[usage] = {
            "faces": len(rows),
            "in groups": int((copies.groups[rows] >= 0).sum()),
            "copy in": {
                other: int(copies.have_copy_in(rows, theirs).sum()) for other, theirs in others.items()
            },
            "leaked": int(copies.leaked(usage).sum()),
            "kept by data.exclude=audit": len(getattr(cleaned, usage)),
        }
    return counts


def shared_subjects(index: Index, split: Split) -> dict[str, list[str]]:
    """People in more than one part, with the parts."""
    parts: dict[str, list[str]] = {}
    for usage in USAGES:
        for subject in sorted({index.subjects[row] for row in getattr(split, usage)} - {None}, key=str):
            parts.setdefault(str(subject), []).append(usage)
    return {subject: met for subject, met in parts.items() if len(met) > 1}


def step(threshold: float, pairs: Pairs, index: Index, split: Split) -> dict[str, Any]:
    """What another threshold would have found."""
    numbers = groups_of(pairs, len(index), threshold)
    sizes = np.bincount(numbers)
    labels = np.unique(np.stack([numbers, index.labels]), axis=1)[0]
    copies = Copies(np.where(sizes[numbers] > 1, numbers, -1), index.labels, split)
    return {
        "threshold": threshold,
        "groups": int((sizes > 1).sum()),
        "faces": int(sizes[sizes > 1].sum()),
        "conflicts": int((np.bincount(labels) > 1).sum()),
        "trained": {
            usage: share(int(copies.have_copy_in(rows, split.train).sum()), len(rows))
            for usage in USAGES[1:]
            if len(rows := getattr(split, usage))
        },
    }


def share(count: int, total: int) -> str:
    return f"{count:,} ({count / max(total, 1):.1%})"


def headline(counts: Mapping[str, Any]) -> str:
    """The first thing to know, in words."""
    parts = counts["parts"]
    judged = next((usage for usage in ("test", "validation") if parts[usage]["faces"]), None)
    if judged is None:
        return "nothing of this split is judged"
    part = parts[judged]
    if not part["leaked"]:
        return f"no face of {judged} has a copy in another part"
    return f"{share(part['leaked'], part['faces'])} of the {part['faces']:,} {judged} faces have a copy in another part"
