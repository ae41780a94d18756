"""What an audit found in a data set, kept beside its decoded faces, and what it means for a split.

    cache_dir/audits/NAME-DIGEST/manifest.json    the groups of copies and the unusable files, with a digest of their own
    cache_dir/audits/NAME-DIGEST/index.html       the same for people

The groups belong to the data; which of their faces are leaks depends on the split, so each run counts its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import USAGES, DataError, Index, digest
from fer_lab.data.splits import Positions, Split

VERSION = 1
"""Raise it when the same pictures give other groups: audits of before are then made again."""


@dataclass(frozen=True)
class Group:
    """Copies of one picture, by name, with their labels; `score` is of the loosest link that holds them together."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    score: float

    @property
    def disagrees(self) -> bool:
        return len(set(self.labels)) > 1


@dataclass(frozen=True)
class Audit:
    """`data` is the digest of the decoded data set; `unreadable` are names by reason, `blank` of one colour."""

    name: str
    data: str
    threshold: float
    groups: tuple[Group, ...]
    unreadable: Mapping[str, Sequence[str]]
    blank: Sequence[str]

    @cached_property
    def digest(self) -> str:
        return digest(json.dumps(self.content(), sort_keys=True))

    def content(self) -> dict[str, Any]:
        """What the digest is of: all that does not depend on a split."""
        return {
            "version": VERSION,
            "name": self.name,
            "data": self.data,
            "threshold": self.threshold,
            "groups": [
                {"names": list(one.names), "labels": list(one.labels), "score": one.score}
                for one in self.groups
            ],
            "conflicts": [list(one.names) for one in self.groups if one.disagrees],
            "unreadable": {reason: list(names) for reason, names in self.unreadable.items()},
            "blank": list(self.blank),
        }

    def rows(self, index: Index) -> NDArray[np.int64]:
        """(N,) the number of each face's group, -1 of those without a copy; the index may lack some, as one of another
        size may that could not read them."""
        places = {name: row for row, name in enumerate(index.names)}
        found = np.full(len(index), -1)
        for number, group in enumerate(self.groups):
            found[[places[name] for name in group.names if name in places]] = number
        return found


@dataclass(frozen=True)
class Copies:
    """The groups of an audit as one split deals them out."""

    groups: NDArray[np.int64]  # (N,) of each row of the index, -1 without a copy
    labels: NDArray[np.int64]
    split: Split

    @classmethod
    def of(cls, audit: Audit, index: Index, split: Split) -> Copies:
        return cls(audit.rows(index), index.labels, split)

    def have_copy_in(self, rows: Positions, others: Positions) -> NDArray[np.bool_]:
        """Which of `rows` have a copy among `others`."""
        known = np.unique(self.groups[others])
        return np.isin(self.groups[rows], known[known >= 0])

    def leaked(self, usage: str) -> NDArray[np.bool_]:
        """Which faces of a part have a copy in another part."""
        others = [getattr(self.split, other) for other in USAGES if other != usage]
        return self.have_copy_in(getattr(self.split, usage), np.concatenate(others))

    def conflicting(self) -> NDArray[np.bool_]:
        """Which faces of train have a copy in train that is labelled otherwise."""
        rows = self.split.train
        pairs = np.unique(np.stack([self.groups[rows], self.labels[rows]]), axis=1)
        numbers, labels = np.unique(pairs[0], return_counts=True)
        return np.isin(self.groups[rows], numbers[(labels > 1) & (numbers >= 0)])

    def cleaned(self) -> Split:
        """The split whose train holds no copy of a face that chooses or judges, and none that contradict each other.

        Test stays whole; validation loses its copies of test faces. Where validation trains as well (train_on_all),
        only test judges.
        """
        split = self.split
        validation = split.validation[~self.have_copy_in(split.validation, split.test)]
        apart = not np.isin(split.validation, split.train).any()
        judges = np.concatenate([split.validation, split.test]) if apart else split.test
        train = split.train[~(self.have_copy_in(split.train, judges) | self.conflicting())]
        return replace(split, train=train, validation=validation)


def folder_of(index: Index, cache_dir: str | Path) -> Path:
    return Path(cache_dir).expanduser() / "audits" / f"{index.name}-{index.digest[:16]}"


def write_audit(audit: Audit, found: Mapping[str, Any], folder: Path) -> Path:
    """manifest.json in `folder`, whole or not at all; `found` is what depends on the split: leaks, counts, ….."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "manifest.json.part"
    part.write_text(json.dumps({"digest": audit.digest, **audit.content(), **found}, indent=1), "utf-8")
    return part.replace(folder / "manifest.json")


def read_audit(folder: Path) -> Audit | None:
    """The audit in `folder`; None where there is none, or one of an earlier version. Raises DataError of a changed one."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text("utf-8"))
        if facts["version"] != VERSION:
            return None
        groups = tuple(
            Group(tuple(one["names"]), tuple(one["labels"]), one["score"]) for one in facts["groups"]
        )
        audit = Audit(
            facts["name"], facts["data"], facts["threshold"], groups, facts["unreadable"], facts["blank"]
        )
        intact = audit.digest == facts["digest"]
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise DataError(f"{path} is not as the audit wrote it; remove it and audit again")
    return audit
