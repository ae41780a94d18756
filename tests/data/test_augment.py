"""Oracles: torchvision's functional transforms, numpy slicing and the moments of the distributions."""

import copy
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import InterpolationMode

from fer_lab.data.augment import Augment, crop_and_flip, crop_corner, warp
from fer_lab.data.faces import DataError, Faces

STANDARD = {"flip": 0.5, "rotation": 10, "shift": 0.1, "zoom": (0.9, 1.1), "crop": 40, "erasing": 0.5}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def faces(count=6, channels=1, side=48, seed=0):
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator(seed))


def batch(images, labels, affect=None):
    return Faces(images, labels, torch.arange(len(labels)), affect=affect)


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation": 30},
        {"shift": 0.2},
        {"zoom": (1.3, 1.5)},
        {"zoom": (0.6, 0.8)},
        {"flip": 1.0, "rotation": 20},
        {"flip": 0.5, "rotation": 20, "shift": 0.2, "zoom": (0.7, 1.4)},
        {"flip": 0.5, "rotation": 20, "shift": 0.2, "zoom": (0.7, 1.4), "crop": 37},
    ],
    ids=str,
)
def test_the_one_interpolation_equals_torchvisions_affine(settings):
    images = faces(channels=3)
    augment = Augment(**settings, padding="zeros")
    draws = augment.draw(len(images), generator())
    side = augment.crop or 48
    for row, result in enumerate(augment.apply(images, draws)):
        image = images[row].float() / 255
        expected = tv.affine(
            tv.hflip(image) if draws.flip[row] else image,
            angle=-float(draws.angle[row]),  # tv.affine turns clockwise, tv.rotate and we the other way
            translate=[float(fraction) * 48 for fraction in draws.shift[row]],
            scale=float(draws.zoom[row]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        left, top = (int(corner) for corner in crop_corner(draws, 48 - side)[row])
        expected = expected[:, top : top + side, left : left + side]
        torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


def test_rotation_goes_the_way_of_torchvisions_rotate():
    images = faces(1)
    augment = Augment(rotation=30, padding="zeros")
    draws = augment.draw(1, generator())
    expected = tv.rotate(images[0] / 255, float(draws.angle[0]), InterpolationMode.BILINEAR)
    torch.testing.assert_close(augment.apply(images, draws)[0], expected, atol=2e-4, rtol=0)


def test_shift_and_zoom_move_a_spot_where_they_say():
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 19:22, 19:22] = 1
    neutral = Augment().draw(1, generator())
    moved = warp(spot, neutral._replace(shift=torch.tensor([[5 / 41, -10 / 41]])), 41, "border")
    torch.testing.assert_close(moved[..., 9:12, 24:27], torch.ones(1, 1, 3, 3), atol=1e-4, rtol=0)
    enlarged = warp(spot, neutral._replace(zoom=torch.tensor([3.0])), 41, "border")
    assert float(enlarged.sum()) == pytest.approx(9 * float(spot.sum()), rel=0.05)


@pytest.mark.parametrize("side", [48, 47, 40])
def test_copying_pixels_equals_slicing_and_interpolating(side):
    images = faces(64, channels=2)
    draws = Augment(flip=0.5, crop=side).draw(64, generator())
    copied = crop_and_flip(images, draws, side)
    for row, (left, top) in enumerate(crop_corner(draws, 48 - side).tolist()):
        image = images[row].numpy()[:, :, :: -1 if draws.flip[row] else 1]
        np.testing.assert_array_equal(copied[row].numpy(), image[:, top : top + side, left : left + side])
    interpolated = warp(images.float(), draws, side, "border")
    torch.testing.assert_close(interpolated, copied.float(), atol=5e-3, rtol=0)  # of 255


def test_crops_reach_every_place_equally_often():
    corners = crop_corner(Augment(crop=40).draw(9000, generator()), 8)
    for axis in (0, 1):
        counts = torch.bincount(corners[:, axis], minlength=9)
        assert len(counts) == 9
        assert (counts - 1000).abs().max() < 5 * math.sqrt(9000 * 1 / 9 * 8 / 9)


def test_draws_have_the_asked_distributions():
    augment = Augment(
        flip=0.3, rotation=10, rotation_probability=0.5, shift=0.2, shift_probability=0.25, zoom=(0.8, 1.1),
        erasing=0.4, brightness=0.2, contrast=0.1,
    )  # fmt: skip
    draws = augment.draw(20_000, generator())
    near = pytest.approx
    assert float(draws.flip.float().mean()) == near(0.3, abs=0.015)
    assert float((draws.angle != 0).float().mean()) == near(0.5, abs=0.02)
    assert (float(draws.angle.min()), float(draws.angle.max())) == near((-10, 10), abs=0.05)
    assert float((draws.shift != 0).all(1).float().mean()) == near(0.25, abs=0.02)
    assert float(draws.shift.abs().max()) == near(0.2, abs=0.001)
    assert (float(draws.zoom.min()), float(draws.zoom.max())) == near((0.8, 1.1), abs=0.001)
    assert float((draws.erase[:, 0] > 0).float().mean()) == near(0.4, abs=0.02)
    low, high = draws.light.min(0).values.tolist(), draws.light.max(0).values.tolist()
    assert [*low, *high] == near([0.8, 0.9, 1.2, 1.1], abs=0.001)
    moved = torch.stack([draws.angle, draws.zoom, draws.shift[:, 0], draws.shift[:, 1], *draws.light.T])
    moved = moved[:, (draws.angle != 0) & (draws.shift != 0).all(1)]
    assert (torch.corrcoef(moved) - torch.eye(6)).abs().max() < 0.1  # no two share a random number


def test_every_sample_has_its_own_draw_and_rows_pick_them():
    images = faces(1).expand(8, 1, 48, 48)
    augment = Augment(**STANDARD, brightness=0.2, contrast=0.2)
    draws = augment.draw(8, generator())
    views = augment.apply(images, draws)
    assert len({view.numpy().tobytes() for view in views}) == 8
    index = torch.tensor([5, 0, 5])
    torch.testing.assert_close(augment.apply(images[index], draws.rows(index)), views[index], atol=0, rtol=0)


def test_the_same_seed_gives_the_same_views_and_a_fixed_view_does_not_depend_on_other_settings():
    images, augment = faces(), Augment(**STANDARD)
    first, second, other = (augment.apply(images, augment.draw(6, generator(seed))) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(Augment(rotation=10).draw(6, generator()).angle, augment.draw(6, generator()).angle)


@pytest.mark.parametrize(
    "settings", [{}, {"flip": 0.5}, STANDARD, {**STANDARD, "brightness": 0.5, "contrast": 0.5}], ids=str
)
@pytest.mark.parametrize("as_float", [False, True])
def test_result_is_float_in_the_unit_range_and_the_input_is_left_alone(settings, as_float):
    images = faces() / 255 if as_float else faces()
    before = copy.deepcopy(images)
    augment = Augment(**settings)
    result = augment.apply(images, augment.draw(len(images), generator()))
    assert result.dtype == torch.float32 and float(result.min()) >= 0 and float(result.max()) <= 1 + 1e-6
    assert torch.equal(images, before)
    if not settings:
        torch.testing.assert_close(result, faces() / 255)


def test_brightness_and_contrast_equal_torchvisions():
    images = faces() // 4 + 90  # so that nothing is cut at 0 or 1
    augment = Augment(brightness=0.2, contrast=0.2)
    draws = augment.draw(len(images), generator())
    for row, result in enumerate(augment.apply(images, draws)):
        brightness, contrast = draws.light[row].tolist()
        expected = tv.adjust_contrast(tv.adjust_brightness(images[row] / 255, brightness), contrast)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_erasing_fills_one_box_of_the_asked_area_and_nothing_else():
    images = faces(2000, side=32) // 2 + 5
    augment = Augment(erasing=0.5, erasing_area=(0.1, 0.2), erasing_fill=0.0)
    draws = augment.draw(2000, generator())
    result = augment.apply(images, draws)
    erased = (result == 0)[:, 0]
    assert torch.equal(result[:, 0][~erased], (images / 255)[:, 0][~erased])
    rows, columns = erased.any(2), erased.any(1)
    assert torch.equal(erased, rows[:, :, None] & columns[:, None, :])
    heights, widths = rows.sum(1), columns.sum(1)
    for line in (rows, columns):  # without gaps
        assert ((line[:, 1:] & ~line[:, :-1]).sum(1) + line[:, 0] <= 1).all()
    hit = heights > 0
    assert float(hit.float().mean()) == pytest.approx(0.5, abs=0.05)
    # the box is rounded to whole pixels on each side
    wanted, slack = draws.erase[hit, 0] * 32 * 32, 0.5 * (heights + widths + 1)[hit]
    assert ((heights * widths)[hit] - wanted).abs().le(slack).all()
    ratio, aspect = (heights / widths)[hit], draws.erase[hit, 1]
    assert (ratio / aspect).log().abs().max() < 0.35  # 6.5 pixels instead of 6 or 7 on each side, at most
    assert (float(aspect.min()), float(aspect.max())) == pytest.approx((1 / 3.3, 3.3), rel=0.02)
    assert erased.any(0).all(), "some pixel is never erased"


def test_erasing_takes_as_much_as_torchvisions_on_average():
    from torchvision.transforms import RandomErasing

    torch.manual_seed(0)
    theirs = RandomErasing(p=1.0, scale=(0.02, 0.33), value=0)
    share = np.mean([float((theirs(torch.ones(1, 40, 40)) == 0).float().mean()) for _ in range(1500)])
    augment = Augment(erasing=1.0, erasing_fill=0.0)
    ours = augment.apply(torch.ones(1500, 1, 40, 40), augment.draw(1500, generator()))
    assert float((ours == 0).float().mean()) == pytest.approx(share, abs=0.012)


def test_mixup_mixes_labels_as_it_mixes_images():
    labels = torch.arange(7).repeat(4)
    images = (labels / 6)[:, None, None, None].expand(28, 1, 4, 4)
    affect = torch.stack([labels / 6, 1 - labels / 3], dim=1)
    faces = Augment(mixup=1.0).mix(batch(images, labels, affect), 7, generator())
    mixed, soft, mood = faces.images, faces.labels, faces.affect
    torch.testing.assert_close(soft.sum(1), torch.ones(28))
    value = (soft * torch.arange(7) / 6).sum(1)
    torch.testing.assert_close(mixed, value[:, None, None, None].expand_as(mixed))
    torch.testing.assert_close(mood, torch.stack([value, 1 - 2 * value], dim=1))
    assert soft.gt(0).sum(1).max() == 2
    shares = torch.nn.functional.one_hot(labels, 7).float()
    assert torch.equal(mixed, Augment(mixup=1.0).mix(batch(images, shares), 7, generator()).images)


def test_mixup_with_an_undefined_affect_is_undefined():
    labels, affect = torch.arange(64), torch.zeros(64, 2)
    affect[:8] = float("nan")
    mixed = Augment(mixup=1.0).mix(batch(torch.zeros(64, 1, 2, 2), labels, affect), 64, generator())
    touched = mixed.labels[:, :8].gt(0).any(1)
    assert 8 < int(touched.sum()) <= 16
    assert torch.equal(mixed.affect.isnan(), touched[:, None].expand(64, 2))


def test_mixup_weights_follow_the_beta_distribution_and_zero_leaves_all_alone():
    labels, images, source = torch.tensor([0, 1]), torch.zeros(2, 1, 2, 2), generator()
    weights = []
    while len(weights) < 1500:
        soft = Augment(mixup=0.4).mix(batch(images, labels), 2, source).labels
        if float(soft[0, 1]) > 0:  # a partner other than itself
            weights.append(float(soft[0, 0]))
    assert np.mean(weights) == pytest.approx(0.5, abs=0.05)
    assert np.var(weights) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)
    same = batch(images, labels)
    assert Augment().mix(same, 2, source) is same


@pytest.mark.parametrize("crop", [40, 43])
def test_test_views_equal_torchvisions_crops(crop):
    images, augment = faces(channels=3), Augment(crop=crop, flip=0.5, rotation=10)
    scaled = images / 255
    centre = tv.center_crop(scaled, [crop, crop])
    expected = {
        "none": [centre],
        "flip": [centre, tv.center_crop(tv.hflip(scaled), [crop, crop])],
        "five": tv.five_crop(scaled, [crop, crop]),
        "ten": tv.ten_crop(scaled, [crop, crop]),
    }
    for kind, views in expected.items():
        torch.testing.assert_close(augment.test_views(images, kind), torch.stack(list(views)))


def test_test_views_without_crop():
    images = faces()
    assert torch.equal(Augment(rotation=10).test_views(images)[0], images / 255)
    ten = torch.stack(list(tv.ten_crop(images / 255, [44, 44])))  # 11/12 of 48
    torch.testing.assert_close(Augment().test_views(images, "ten"), ten)
    with pytest.raises(DataError, match=r"views=six: no such test views; choices: none, flip, five, ten"):
        Augment().test_views(images, "six")


def test_a_lower_resolution_samples_the_same_view_at_fewer_points():
    images = torch.nn.functional.interpolate(faces(side=6) / 255, 48, mode="bicubic").clamp(0, 1)  # smooth
    augment = Augment(rotation=15, shift=0.1, zoom=(0.9, 1.1), flip=0.5)
    draws = augment.draw(len(images), generator())
    whole, half = augment.apply(images, draws), augment.apply(images, draws, resolution=24)
    assert half.shape[-1] == 24
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(whole, 2), atol=0.03, rtol=0)


def test_resolutions_hold_from_their_fraction_of_the_epochs_on():
    augment = Augment(resolutions=[(0, 32), (0.375, 40), (0.667, 48)])
    assert [augment.resolution(epoch / 24) for epoch in (0, 8, 9, 15, 16, 17, 23)] == [
        32,
        32,
        40,
        40,
        40,
        48,
        48,
    ]
    assert Augment().resolution(0.5) is None
    with pytest.raises(DataError, match="resolutions"):
        Augment(resolutions=[(0.5, 32)])


@pytest.mark.parametrize(
    "settings", [{"flip": 0.1}, {"rotation": 1}, {"shift": 0.1}, {"zoom": (1, 1.1)}, {"crop": 4}, {"erasing": 0.1},
                 {"brightness": 0.1}, {"contrast": 0.1}, {"mixup": 1.0}], ids=str)  # fmt: skip
def test_identity_is_the_default_alone(settings):
    assert Augment().is_identity and Augment(views=3, rotation_probability=0.5).is_identity
    assert not Augment(**settings).is_identity
    assert Augment(views=3).views == 3


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(DataError) as error:
        Augment(
            flip=1.5,
            rotation=-1,
            shift=1,
            zoom=(1.2, 0.9),
            crop=0,
            erasing_area=(0.3, 1.2),
            views=0,
            padding="wrap",
        )
    for part in (
        "flip=1.5",
        "rotation=-1",
        "shift=1",
        "zoom=(1.2, 0.9)",
        "crop=0",
        "1.2)",
        "views=0",
        "padding=wrap (expected border or",
    ):
        assert part in str(error.value)
    with pytest.raises(DataError, match=r"views=3 \(expected 1 or more \(without mixup\)"):
        Augment(views=3, mixup=1.0)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 1, 48, 40)])
def test_images_that_the_crop_does_not_fit_are_refused(shape):
    augment = Augment(crop=40)
    with pytest.raises(DataError, match=rf"crop=40 .* {shape[2]}x{shape[3]}"):
        augment.apply(torch.zeros(shape), augment.draw(2, generator()))


@pytest.mark.parametrize(
    "settings", [{"flip": 0.5, "crop": 40}, {**STANDARD, "contrast": 0.5, "mixup": 1.0}], ids=str
)
def test_all_the_work_is_done_where_the_images_are(settings):
    augment, images = Augment(**settings), faces().to("meta")  # torch refuses to mix devices
    views = augment.apply(images, augment.draw(6, generator()))
    labels = torch.zeros(6, dtype=torch.long, device="meta")
    mixed, soft, *_ = augment.mix(batch(views, labels), 7, generator())
    assert (
        views.device
        == mixed.device
        == soft.device
        == augment.test_views(images, "ten").device
        == images.device
    )
