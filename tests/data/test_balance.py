"""Resampling, on class sizes that can be counted by hand."""

import numpy as np
import pytest

from fer_lab.data.balance import Balance
from fer_lab.data.faces import DataError

CLASSES = ("neutral", "happiness", "disgust")
LABELS = np.repeat([0, 1, 2], [40, 80, 4])


def sizes(**settings):
    balance = Balance(classes=CLASSES, **settings)
    kept = balance(LABELS, seed=0)
    assert len(kept) == balance.size(LABELS)
    return np.bincount(LABELS[kept], minlength=3).tolist()


def test_each_rule_gives_the_sizes_it_promises():
    assert sizes() == [40, 80, 4]
    assert sizes(undersample="all") == [4, 4, 4]
    assert sizes(oversample="all") == [80, 80, 80]
    assert sizes(undersample=["happy"], oversample=["disgust"]) == [40, 40, 40]


def test_no_face_is_dropped_before_another_is_repeated():
    kept = Balance(classes=CLASSES, oversample="all")(LABELS, seed=3)
    assert set(kept) == set(range(len(LABELS)))
    assert np.bincount(kept)[-4:].tolist() == [20, 20, 20, 20]


def test_undersampling_draws_other_faces_in_another_epoch():
    balance = Balance(classes=CLASSES, undersample=["happiness"])
    assert set(balance(LABELS, 0)) != set(balance(LABELS, 1))


def test_wrong_names_are_refused_with_the_choices():
    with pytest.raises(DataError, match="names contempt; the data set has neutral, happiness, disgust"):
        Balance(classes=CLASSES, undersample=["contempt"])
    with pytest.raises(DataError, match="puts happiness under undersample and oversample"):
        Balance(classes=CLASSES, undersample=["happy"], oversample=["happiness"])
