"""The real FER2013, where it is at hand: what the release holds is what is read."""

from collections import Counter

import numpy as np

from fer_lab.data.cache import open_cache
from fer_lab.data.fer2013 import Fer2013


def test_the_real_fer2013_is_read_whole_but_for_its_black_pictures(fer2013, tmp_path):
    cache = open_cache(Fer2013(str(fer2013)), 48, 1, tmp_path, bad="skip")
    assert Counter(cache.index.usages) == {"train": 28709 - 11, "validation": 3589 - 1, "test": 3589}
    assert [reason for _, reason in cache.skipped] == ["blank"] * 12
    test = cache.index.subset(np.flatnonzero(np.array(cache.index.usages) == "test"))
    assert test.counts() == {  # PrivateTest as published
        "neutral": 626, "happiness": 879, "sadness": 594, "surprise": 416, "fear": 528, "disgust": 55, "anger": 491,
    }  # fmt: skip
