"""Worse faces against Pillow, scipy and boxes worked out by hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from fer_lab.evaluation.robustness import (
    EYES,
    GREY,
    MOUTH,
    PERTURBATIONS,
    bar,
    blur,
    box_of,
    brightness,
    curve,
    jpeg,
    resolution,
)


def faces(count: int = 3, channels: int = 1, side: int = 48) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("kind", PERTURBATIONS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_strength_0_is_the_face_itself_and_others_change_it_in_kind_alone(kind, channels) -> None:
    images = faces(channels=channels)
    kept = images.clone()
    for strength in kind.strengths:
        changed = kind.change(images, strength)
        assert changed.shape == images.shape and changed.dtype == torch.uint8
        assert torch.equal(changed, images) == (strength == 0)
    assert torch.equal(images, kept)
    assert kind.words(0, 48) == "as it is"


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels) -> None:
    images = faces(channels=channels)
    for strength in (50, 90):
        for picture, found in zip(images, jpeg(images, strength), strict=True):
            file = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy().squeeze()).save(
                file, "JPEG", quality=100 - strength
            )
            assert np.array_equal(np.asarray(Image.open(file)), found.permute(1, 2, 0).numpy().squeeze())


def test_bars_lie_where_they_are_said_to() -> None:
    assert box_of(EYES, 20, 100) == (12, 26, 88, 46)
    assert box_of(MOUTH, 40, 100) == (22, 59, 78, 99)
    assert box_of((0.0, 0.95, 1.0), 20, 100) == (0, 85, 100, 100)  # cut off at the edge
    image = faces(side=100)
    covered = bar(EYES)(image, 20)
    changed = torch.zeros(100, 100, dtype=torch.bool)
    changed[26:46, 12:88] = True
    assert (covered[:, :, changed] == GREY).all()
    assert torch.equal(covered[:, :, ~changed], image[:, :, ~changed])


def test_blur_is_scipys_gaussian() -> None:
    images = faces(side=32)
    expected = np.stack(
        [gaussian_filter(one.double().numpy(), 0.04 * 32, mode="mirror", truncate=4) for one in images[:, 0]]
    )
    assert np.abs(blur(images, 4)[:, 0].double().numpy() - expected).max() <= 0.51


def test_brightness_is_in_stops() -> None:
    image = torch.tensor([[[[10, 100], [200, 255]]]], dtype=torch.uint8)
    assert brightness(image, 1).tolist() == [[[[20, 200], [255, 255]]]]
    assert brightness(image, -1).tolist() == [[[[5, 50], [100, 128]]]]


def test_low_resolution_keeps_the_mean_and_loses_what_is_small() -> None:
    checks = (torch.arange(48)[:, None] + torch.arange(48)) % 2 * 200
    found = resolution(checks.to(torch.uint8)[None, None], 2)
    assert (found.float() - 100).abs().max() <= 2
    assert PERTURBATIONS[-1].words(1, 48) == "24 px"


def test_a_curve_is_of_the_faces_that_were_changed() -> None:
    """A net that calls dark faces 1 is right of dark faces until light makes them bright."""
    images = torch.full((40, 1, 8, 8), 60, dtype=torch.uint8)
    labels = np.ones(40, dtype=np.int64)

    def predict(pixels: torch.Tensor) -> np.ndarray:
        dark = (pixels.float().mean((1, 2, 3)) < 100).numpy()
        return np.stack([~dark, dark], axis=1).astype(float)

    kind = next(one for one in PERTURBATIONS if one.name == "brightness")
    points = curve(predict, images, labels, kind, predict(images))
    assert [point.accuracy for point in points] == [1, 1, 1, 1, 0]
    assert all(point.interval.low <= point.accuracy <= point.interval.high for point in points)
