"""Oracle: numpy."""

import numpy as np
import pytest
import torch

from fer_lab.models.preprocess import Preprocess

IMAGES = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
STANDARD = (IMAGES - IMAGES.mean((1, 2, 3), keepdims=True)) / IMAGES.std((1, 2, 3), ddof=1, keepdims=True)


@pytest.mark.parametrize("clip", [False, True])
def test_each_picture_by_its_own_light_and_clipped_only_where_asked_for(clip):
    """R4's clipping loses all that is darker than the mean of a picture: about half of it."""
    found = Preprocess(3, [0.0] * 3, [1.0] * 3, per_image=True, clip=clip)(torch.from_numpy(IMAGES)).numpy()
    expected = STANDARD.clip(0, 1) if clip else STANDARD
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ((found == 0).mean() > 0.4) == clip


def test_clipping_has_its_own_signature_and_needs_standard_pictures():
    plain, clipped = (Preprocess(1, [0.0], [1.0], per_image=True, clip=clip) for clip in (False, True))
    assert plain.signature != clipped.signature
    assert plain.signature == repr((1, True, [0.0], [1.0])), "features that were kept are found again"
    with pytest.raises(ValueError, match="clip=true cuts what per_image=true gives"):
        Preprocess(1, [0.5], [0.25], clip=True)
