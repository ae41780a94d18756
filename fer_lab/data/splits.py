"""Splits as objects: which rows of a data set train, choose and judge a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fer_lab.data.faces import USAGES, DataError, Index, digest

Positions = NDArray[np.int64]
Fold = int | str
"""The number of a fold; "all" for what trains every one of them."""


@dataclass(frozen=True)
class Split:
    """Rows of the index that train, choose (validation) and judge (test); `test` may be empty.

    `mixes_subjects` is true when a person stands on both sides: scores then measure identity as well.
    """

    train: Positions
    validation: Positions
    test: Positions
    mixes_subjects: bool = False

    def manifest(self, index: Index) -> dict[str, list[str]]:
        """The item names of each part, for the run's record."""
        return {usage: [index.names[row] for row in getattr(self, usage)] for usage in USAGES}

    def digest(self, index: Index) -> str:
        return digest(*(f"{usage}:{name}" for usage, names in self.manifest(index).items() for name in names))


class Splitter(Protocol):
    def __call__(self, index: Index) -> Split: ...


def split_within(splitter: Splitter, index: Index, limit: int | None) -> Split:
    """The split of the whole index, or of a stratified subset of about `limit` rows, as rows of the whole.

    Of an official split only what trains is thinned, with the validation part that is carved out of it: its own
    validation and test faces are what published figures are of.
    """
    if limit is None or limit >= len(index):
        return splitter(index)
    kept = np.zeros(len(index), dtype=bool)
    if isinstance(splitter, Official):
        kept = np.array([usage != USAGES[0] for usage in index.usages], dtype=bool)
    thinned = np.flatnonzero(~kept)
    kept[thinned[stratified_subset(index.subset(thinned), limit)]] = True
    rows = np.flatnonzero(kept)
    part = splitter(index.subset(rows))
    return Split(rows[part.train], rows[part.validation], rows[part.test], part.mixes_subjects)


class Official:
    """The data set's own split. Where it has no validation part, a stratified share of train becomes it."""

    def __init__(self, validation: float = 0.1, seed: int = 42) -> None:
        if not 0 < validation < 1:
            raise DataError(f"split.validation={validation} must be a share in 0..1")
        self.validation = validation
        self.seed = seed

    def __call__(self, index: Index) -> Split:
        if not index.has_usages:
            raise DataError(
                f"{index.name} has no official split; choose split=holdout, kfold or leave_one_subject_out"
            )
        usages = np.array(index.usages, dtype=object)
        train, validation, test = (np.flatnonzero(usages == usage) for usage in USAGES)
        if not len(validation):
            validation, train = draw(index, train, self.validation, self.seed, by_subject=index.has_subjects)
        return part(index, train, validation, test, "official", mix_subjects=True)


class Holdout:
    """A stratified share of every class, rounded up, is held out: 90:10 with seed 42 gives JAFFE 189/24.

    On a data set with subjects whole subjects are held out, unless `mix_subjects` asks for the
    conventional split by image, in which the same people train and test.
    """

    def __init__(
        self, validation: float = 0.1, test: float = 0.0, seed: int = 42, mix_subjects: bool = False
    ) -> None:
        if not 0 < validation < 1 or not 0 <= test < 1 or validation + test >= 1:
            raise DataError(
                f"split.validation={validation} and split.test={test} must be shares in 0..1 that leave some to train"
            )
        self.validation, self.test, self.seed, self.mix_subjects = validation, test, seed, mix_subjects

    def __call__(self, index: Index) -> Split:
        by_subject = index.has_subjects and not self.mix_subjects
        rest = np.arange(len(index))
        test = rest[:0]
        if self.test:
            test, rest = draw(index, rest, self.test, self.seed + 1, by_subject)
        share = self.validation / (1 - self.test)
        validation, train = draw(index, rest, share, self.seed, by_subject)
        return part(index, train, validation, test, "holdout", self.mix_subjects)


class KFold:
    """Fold `fold` of `folds` tests, the next one validates, the others train; stratified, and grouped by subject.

    With `train_on_all` the validating fold trains, too, for a learner that needs nobody to choose its best epoch: only
    the test figures then say how good it is.
    """

    def __init__(
        self,
        folds: int = 5,
        fold: Fold = 0,
        seed: int = 42,
        mix_subjects: bool = False,
        train_on_all: bool = False,
    ) -> None:
        if folds < 3:
            raise DataError(
                f"split.folds={folds}: at least 3 are needed (one tests, one validates, one trains)"
            )
        self.folds, self.fold, self.seed, self.mix_subjects = folds, fold, seed, mix_subjects
        self.train_on_all = train_on_all

    def fold_count(self, index: Index) -> int:
        return self.folds

    def __call__(self, index: Index) -> Split:
        from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

        fold = within(self.fold, self.folds, "folds")
        grouped = index.has_subjects and not self.mix_subjects
        splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(
            self.folds, shuffle=True, random_state=self.seed
        )
        groups = np.array(index.subjects) if grouped else None
        try:
            parts = [held for _, held in splitter.split(np.zeros(len(index)), index.labels, groups)]
        except ValueError as error:
            raise DataError(f"split.folds={self.folds} does not fit {index.name}: {error}") from None
        return rotate(index, parts, fold, "kfold", self.mix_subjects, self.train_on_all)


class LeaveOneSubjectOut:
    """Subject number `fold` (in name order) tests, the next one validates, the others train; with `train_on_all` the
    validating one, too, as in KFold."""

    def __init__(self, fold: Fold = 0, train_on_all: bool = False) -> None:
        self.fold, self.train_on_all = fold, train_on_all

    def fold_count(self, index: Index) -> int:
        return len(self.subjects(index))

    def subjects(self, index: Index) -> list[str]:
        if not index.has_subjects:
            raise DataError(f"{index.name} names no subjects; choose split=official, holdout or kfold")
        names = sorted({str(subject) for subject in index.subjects})
        if len(names) < 3:
            raise DataError(f"{index.name} has {len(names)} subjects; leave_one_subject_out needs at least 3")
        return names

    def __call__(self, index: Index) -> Split:
        names = self.subjects(index)
        fold = within(self.fold, len(names), "subjects")
        parts = [np.flatnonzero(np.array(index.subjects) == name) for name in names]
        return rotate(index, parts, fold, "leave_one_subject_out", False, self.train_on_all)


def within(fold: Fold, count: int, what: str) -> int:
    if fold == "all":
        raise DataError(
            f"split.fold=all trains {count} nets ({count} {what}), which python -m fer_lab.train does; "
            f"a sweep, a probe or a benchmark takes one of them: split.fold=0..{count - 1}"
        )
    if not isinstance(fold, int) or not 0 <= fold < count:
        raise DataError(f"split.fold={fold}; expected 0..{count - 1} ({count} {what}), or all")
    return fold


def rotate(
    index: Index, parts: Sequence[Positions], fold: int, name: str, mix_subjects: bool, train_on_all: bool
) -> Split:
    """Part `fold` tests, the one after it validates, the rest trains; `train_on_all`: all but the first train."""
    following = (fold + 1) % len(parts)
    idle = (fold,) if train_on_all else (fold, following)
    train = np.concatenate([held for number, held in enumerate(parts) if number not in idle])
    return part(index, np.sort(train), parts[following], parts[fold], name, mix_subjects, train_on_all)


def draw(
    index: Index, rows: Positions, share: float, seed: int, by_subject: bool
) -> tuple[Positions, Positions]:
    """(held, rest): a share of whole subjects, or of every class rounded up, drawn with `seed`."""
    generator = np.random.default_rng(seed)
    if by_subject:
        subjects = np.array(index.subjects)[rows]
        names = generator.permutation(np.unique(subjects))
        held = np.isin(subjects, names[: max(1, round(share * len(names)))])
    else:
        held = np.zeros(len(rows), dtype=bool)
        for label in np.unique(index.labels[rows]):
            members = generator.permutation(np.flatnonzero(index.labels[rows] == label))
            held[members[: int(np.ceil(share * len(members) - 1e-9))]] = True
    return rows[held], rows[~held]


def part(
    index: Index,
    train: Positions,
    validation: Positions,
    test: Positions,
    name: str,
    mix_subjects: bool,
    train_on_all: bool = False,
) -> Split:
    """The Split, checked: parts not empty, and people on one side only unless that was asked for by name."""
    if not len(train) or not len(validation):
        raise DataError(
            f"split={name} leaves {len(train)} items of {index.name} to train and {len(validation)} to validate; "
            "use a larger data.limit, other shares or another split"
        )
    shared: set[str] = set()
    if index.has_subjects:
        people = [{str(index.subjects[row]) for row in rows} for rows in (train, validation, test)]
        shared = (people[0] & people[2]) | (people[1] & people[2])
        shared |= set() if train_on_all else people[0] & people[1]
    if shared and not mix_subjects:
        raise DataError(
            f"split={name} puts {len(shared)} people of {index.name} on both sides ({', '.join(sorted(shared)[:5])} …): "
            "choose split=leave_one_subject_out, or split.mix_subjects=true to report a person-dependent figure"
        )
    return Split(train, validation, test, mixes_subjects=bool(shared))


def stratified_subset(index: Index, limit: int) -> Positions:
    """About `limit` rows that keep the class shares and, where there is one, the official split's shares."""
    strata = np.array([f"{usage}/{label}" for usage, label in zip(index.usages, index.labels, strict=True)])
    generator = np.random.default_rng(0)
    kept = []
    for stratum in np.unique(strata):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        kept.append(members[: max(1, round(limit * len(members) / len(index)))])
    return np.sort(np.concatenate(kept))
