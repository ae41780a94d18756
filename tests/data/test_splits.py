"""Splits: sizes known from the field, people on one side only, refusals that say what to do."""

from collections import Counter

import numpy as np
import pytest

from fer_lab.data.faces import DataError, Index, Item
from fer_lab.data.splits import Holdout, KFold, LeaveOneSubjectOut, Official, split_within, stratified_subset

JAFFE_CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
JAFFE_COUNTS = (30, 31, 31, 30, 32, 29, 30)
PEOPLE = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")


def jaffe(subjects: bool = True) -> Index:
    labels = np.repeat(np.arange(7), JAFFE_COUNTS)
    items = [
        Item(f"{row}", int(label), PEOPLE[row % 10] if subjects else None) for row, label in enumerate(labels)
    ]
    return Index.of("jaffe", JAFFE_CLASSES, items)


def official() -> Index:
    usages = ["train"] * 60 + ["validation"] * 20 + ["test"] * 20
    return Index.of(
        "set", ("a", "b"), [Item(str(row), row % 2, None, usage) for row, usage in enumerate(usages)]
    )


def test_holdout_by_image_gives_r0s_189_and_24_stratified():
    split = Holdout(validation=0.1, seed=42, mix_subjects=True)(jaffe())
    assert (len(split.train), len(split.validation), len(split.test)) == (189, 24, 0)
    assert split.mixes_subjects
    assert Counter(jaffe().labels[split.validation]) == {0: 3, 1: 4, 2: 4, 3: 3, 4: 4, 5: 3, 6: 3}


def test_holdout_keeps_people_apart_unless_mixing_is_named():
    index = jaffe()
    split = Holdout(validation=0.2, test=0.1)(index)
    people = [{index.subjects[row] for row in rows} for rows in (split.train, split.validation, split.test)]
    assert [len(names) for names in people] == [7, 2, 1]
    assert not split.mixes_subjects
    assert not people[0] & people[1] | people[1] & people[2] | people[0] & people[2]


@pytest.mark.parametrize("splitter", [KFold, LeaveOneSubjectOut])
def test_every_face_is_tested_once_over_the_folds_and_never_with_its_own_person_in_training(splitter):
    index = jaffe()
    tested = []
    for fold in range(5 if splitter is KFold else 10):
        split = splitter(fold=fold)
        parts = split(index)
        tested += parts.test.tolist()
        people = {index.subjects[row] for row in parts.test}
        assert not people & {index.subjects[row] for row in np.r_[parts.train, parts.validation]}
        assert sorted(np.r_[parts.train, parts.validation, parts.test]) == list(range(213))
    assert sorted(tested) == list(range(213))


def test_kfold_without_subjects_is_stratified():
    index = jaffe(subjects=False)
    split = KFold(folds=5, fold=3)(index)
    shares = np.bincount(index.labels[split.test], minlength=7) / np.array(JAFFE_COUNTS)
    assert np.allclose(shares, 0.2, atol=0.04)


def test_the_official_split_is_taken_as_it_is_and_gets_a_validation_part_where_it_has_none():
    split = Official()(official())
    assert [len(part) for part in (split.train, split.validation, split.test)] == [60, 20, 20]
    index = official()
    bare = Index.of("set", ("a", "b"), [
        Item(name, int(label), None, "train" if usage == "validation" else usage)
        for name, label, usage in zip(index.names, index.labels, index.usages, strict=True)
    ])  # fmt: skip
    split = Official(validation=0.25)(bare)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [60, 20, 20]
    assert np.bincount(bare.labels[split.validation]).tolist() == [10, 10]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Official()(jaffe()), "no official split; choose split=holdout"),
        (lambda: LeaveOneSubjectOut()(jaffe(subjects=False)), "names no subjects; choose split=official"),
        (lambda: LeaveOneSubjectOut(fold=10)(jaffe()), r"split.fold=10; expected 0\.\.9 \(10 subjects\)"),
        (lambda: KFold(folds=2), "split.folds=2: at least 3"),
        (lambda: Holdout(validation=1.5), "split.validation=1.5"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_next_step(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_the_same_seed_draws_the_same_split_and_another_seed_another():
    first, again, other = (Holdout(seed=seed, mix_subjects=True)(jaffe()) for seed in (1, 1, 2))
    assert first.digest(jaffe()) == again.digest(jaffe()) != other.digest(jaffe())


def test_a_subset_keeps_the_shares_of_classes_and_usages():
    index = official()
    rows = stratified_subset(index, 50)
    part = index.subset(rows)
    assert Counter(part.usages) == {"train": 30, "validation": 10, "test": 10}
    assert part.counts() == {"a": 25, "b": 25}


def unlike(validation: int) -> Index:
    """Like AffectNet: 200 faces to train, 40 that judge, and as many as asked for to validate."""
    usages = ["train"] * 200 + ["validation"] * validation + ["test"] * 40
    items = [Item(str(row), row % 2, None, usage) for row, usage in enumerate(usages)]
    return Index.of("set", ("a", "b"), items)


@pytest.mark.parametrize(
    ("validation", "sizes"), [(0, (90, 10, 40)), (30, (100, 30, 40))], ids=["carved", "its own"]
)
def test_a_limit_thins_what_trains_and_leaves_official_faces_whole(validation, sizes):
    index = unlike(validation)
    split = split_within(Official(validation=0.1), index, 100)
    assert (len(split.train), len(split.validation), len(split.test)) == sizes
    assert split.test.tolist() == list(range(len(index) - 40, len(index)))
    assert {index.usages[row] for row in split.train} == {"train"}
    assert np.bincount(index.labels[split.train]).tolist() == [sizes[0] // 2] * 2
    assert len(split_within(Official(), index, 220).train) == len(split_within(Official(), index, None).train)


def test_a_limit_thins_every_part_of_a_drawn_split():
    split = split_within(Holdout(validation=0.2, test=0.2), unlike(0), 100)
    assert len(split.train) + len(split.validation) + len(split.test) == 100
