"""Random views of a batch of faces: one interpolation for all geometry, every sample its own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fer_lab.data.faces import TEST_VIEWS, DataError, Faces

PADDINGS = ("border", "reflection", "zeros")
UNIT_SETTINGS = (
    *("flip", "rotation_probability", "shift_probability", "zoom_probability"),
    *("erasing", "erasing_fill", "brightness", "contrast"),
)


class Draws(NamedTuple):
    """The random numbers of B samples, one row each; they hold for any image side."""

    flip: Tensor  # (B,) bool, left-right
    angle: Tensor  # (B,) degrees, counter-clockwise
    zoom: Tensor  # (B,) above 1 enlarges the face
    shift: Tensor  # (B, 2) right and down, fractions of the side
    corner: Tensor  # (B, 2) left and top of the crop, 0..1 of the room there is
    erase: Tensor  # (B, 4) area (0: nothing erased), aspect (height / width), left and top as in corner
    light: Tensor  # (B, 2) factors of brightness and contrast

    def rows(self, index: Tensor) -> Draws:
        """The draws of the samples at `index`, a tensor of positions on the draws' device."""
        return Draws(*(column[index] for column in self))

    def to(self, device: torch.device) -> Draws:
        return Draws(*(column.to(device, non_blocking=True) for column in self))


class Augment:
    """Random flip, rotation, shift, zoom, crop, brightness, contrast and erasing; and mixup.

    Probabilities are in 0..1; `rotation` is in degrees and `shift` in fractions of the side, both +-;
    `zoom` a range of scales; `crop` the side of the result (random position); `erasing_area` a range of fractions
    of the picture, `erasing_fill` the grey put there; `brightness` and `contrast` the +- of factors around 1;
    `mixup` the alpha of its Beta distribution. `views` asks for a fixed set of k draws for each image in place
    of new ones in every epoch. `resolutions` ((0, 32), (0.4, 48)) trains on small pictures first: each side holds
    from that fraction of the epochs on, the net must take any. `padding` says what lies beyond the border. The defaults change nothing.
    Raises DataError that names every setting out of range.
    """

    def __init__(
        self,
        *,
        flip: float = 0.0,
        rotation: float = 0.0,
        rotation_probability: float = 1.0,
        shift: float = 0.0,
        shift_probability: float = 1.0,
        zoom: Sequence[float] = (1.0, 1.0),
        zoom_probability: float = 1.0,
        crop: int | None = None,
        erasing: float = 0.0,
        erasing_area: Sequence[float] = (0.02, 0.33),
        erasing_fill: float = 0.5,
        brightness: float = 0.0,
        contrast: float = 0.0,
        mixup: float = 0.0,
        views: int | None = None,
        resolutions: Sequence[tuple[float, int]] = (),
        padding: str = "border",
    ) -> None:
        self.flip, self.erasing, self.erasing_fill = flip, erasing, erasing_fill
        self.rotation, self.rotation_probability = rotation, rotation_probability
        self.shift, self.shift_probability = shift, shift_probability
        self.zoom, self.zoom_probability = (float(zoom[0]), float(zoom[-1])), zoom_probability
        self.erasing_area = (float(erasing_area[0]), float(erasing_area[-1]))
        self.brightness, self.contrast, self.mixup = brightness, contrast, mixup
        self.crop, self.views, self.padding = crop, views, padding
        self.resolutions = [(float(start), int(side)) for start, side in resolutions]
        self._check()

    def _check(self) -> None:
        fine = {name: (0 <= getattr(self, name) <= 1, "a number in 0..1") for name in UNIT_SETTINGS}
        fine["rotation"] = (0 <= self.rotation <= 180, "degrees in 0..180")
        fine["shift"] = (0 <= self.shift < 1, "a fraction of the side, below 1")
        fine["zoom"] = (0 < self.zoom[0] <= self.zoom[1], "0 < low <= high")
        fine["erasing_area"] = (0 < self.erasing_area[0] <= self.erasing_area[1] <= 1, "0 < low <= high <= 1")
        fine["mixup"] = (self.mixup >= 0, "0 or more")
        fine["crop"] = (self.crop is None or self.crop >= 1, "a side in pixels or null")
        fine["views"] = (
            self.views is None or (self.views >= 1 and not self.mixup),
            "1 or more (without mixup) or null",
        )
        starts = [start for start, _ in self.resolutions]
        rising = not starts or (starts[0] == 0 and starts == sorted(starts) and starts[-1] < 1)
        fine["resolutions"] = (rising, "(fraction of the epochs, side) pairs, fractions rising from 0")
        fine["padding"] = (self.padding in PADDINGS, " or ".join(PADDINGS))
        wrong = [
            f"{name}={getattr(self, name)} (expected {what})"
            for name, (is_fine, what) in fine.items()
            if not is_fine
        ]
        if wrong:
            raise DataError(f"augment: {'; '.join(wrong)}")

    @property
    def warps(self) -> bool:
        """Whether any sample needs interpolation."""
        return self.rotation > 0 or self.shift > 0 or self.zoom != (1.0, 1.0)

    @property
    def is_identity(self) -> bool:
        """Whether a training image is always seen as it is (mixup, which mixes two of them, counts as random)."""
        random = self.flip, self.erasing, self.brightness, self.contrast, self.mixup
        return not (self.warps or self.crop or self.resolutions or any(random))

    def resolution(self, progress: float) -> int | None:
        """The side trained on after the fraction `progress` of the epochs; None: the picture's (or crop's) own."""
        return next((side for start, side in reversed(self.resolutions) if start <= progress), None)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Random numbers for `count` samples from a CPU generator; a sample takes the same ones whatever the settings."""
        unit = torch.rand(count, 17, generator=generator)
        low, high = self.erasing_area
        area = torch.where(unit[:, 9] < self.erasing, low + (high - low) * unit[:, 10], 0.0)
        aspect = torch.exp(math.log(3.3) * (2 * unit[:, 11] - 1))  # torchvision's 0.3..3.3, log-uniform
        zoom = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * unit[:, 4]
        return Draws(
            flip=unit[:, 0] < self.flip,
            angle=self.rotation * (2 * unit[:, 2] - 1) * (unit[:, 1] < self.rotation_probability),
            zoom=torch.where(unit[:, 3] < self.zoom_probability, zoom, 1.0),
            shift=self.shift * (2 * unit[:, 6:8] - 1) * (unit[:, 5:6] < self.shift_probability),
            corner=unit[:, 12:14],
            erase=torch.stack([area, aspect, unit[:, 8], unit[:, 14]], dim=1),
            light=1 + torch.tensor([self.brightness, self.contrast]) * (2 * unit[:, 15:17] - 1),
        )

    def apply(self, images: Tensor, draws: Draws, resolution: int | None = None) -> Tensor:
        """The drawn view of each image: (B, C, S, S), uint8 or float in 0..1 -> float32 (B, C, s, s) in 0..1.

        `resolution` is the s to sample; left out, the crop's side or the image's.
        """
        side = self._side(images)
        draws = draws.to(images.device)
        if self.warps or resolution not in (None, side):
            faces = warp(unit_range(images), draws, side, self.padding, resolution)
        else:
            faces = unit_range(crop_and_flip(images, draws, side))
        if self.brightness or self.contrast:
            faces = relight(faces, draws.light)
        return erase(faces, draws.erase, self.erasing_fill) if self.erasing else faces

    def mix(self, faces: Faces, classes: int, generator: torch.Generator) -> Faces:
        """Mixup (Zhang et al. 2018): each image blended with another of its batch, one weight a batch.

        Labels are indices (B,) or probabilities (B, K) and come back as probabilities (B, K); affect is blended
        likewise, and undefined where either is. With mixup 0 the batch comes back as it is.
        """
        if not self.mixup:
            return faces
        labels = faces.labels
        if labels.ndim == 1:
            labels = functional.one_hot(labels, classes).float()
        # torch's Beta takes no generator, so a seed drawn from ours goes to numpy's
        seed = int(torch.randint(2**62, (), generator=generator))
        weight = float(np.random.default_rng(seed).beta(self.mixup, self.mixup))
        partner = torch.randperm(len(labels), generator=generator).to(labels.device)

        def blend(values: Tensor) -> Tensor:
            return torch.lerp(values[partner], values, weight)

        affect = None if faces.affect is None else blend(faces.affect)
        return faces._replace(images=blend(faces.images), labels=blend(labels), affect=affect)

    def test_views(self, images: Tensor, kind: str = "none") -> Tensor:
        """The views whose predictions are averaged at test time: float32 (V, B, C, s, s).

        `none` is the image (its centre crop when `crop` is set), `flip` adds its mirror image; `five` are the
        corner crops and the centre, `ten` those and their mirror images, in torchvision's order, of side `crop`
        or, where there is none, 11/12 of the image's.
        """
        if kind not in TEST_VIEWS:
            raise DataError(f"views={kind}: no such test views; choices: {', '.join(TEST_VIEWS)}")
        many = kind in ("five", "ten")
        side = self._side(images)
        side = round(side * 11 / 12) if many and self.crop is None else side
        room = images.shape[-1] - side
        corners = [(round(room / 2), round(room / 2))]
        if many:
            corners = [(0, 0), (0, room), (room, 0), (room, room), *corners]
        whole = [images, images.flip(-1)] if kind in ("flip", "ten") else [images]
        return unit_range(
            torch.stack([faces[..., y : y + side, x : x + side] for faces in whole for y, x in corners])
        )

    def _side(self, images: Tensor) -> int:
        height, width = images.shape[-2:]
        side = self.crop or width
        if height != width or side > width:
            raise DataError(
                f"augment.crop={self.crop} does not fit square in images of {height}x{width} pixels"
            )
        return side


def unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1; floats stay as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def crop_corner(draws: Draws, room: int) -> Tensor:
    """Whole pixels (B, 2) to the left of and above each crop, uniform over the `room` + 1 places."""
    return (draws.corner * (room + 1)).long().clamp_(max=room)


def crop_and_flip(images: Tensor, draws: Draws, side: int) -> Tensor:
    """Flip and crop by copying pixels, in the images' own type."""
    room = images.shape[-1] - side
    if room:
        left, top = crop_corner(draws, room).unbind(1)
        sample = torch.arange(len(images), device=images.device)
        left = torch.where(draws.flip, room - left, left)
        images = images.unfold(2, side, 1).unfold(3, side, 1)[sample, :, top, left]  # (B, C, s, s)
    return torch.where(draws.flip[:, None, None, None], images.flip(-1), images)


def warp(images: Tensor, draws: Draws, side: int, padding: str, resolution: int | None = None) -> Tensor:
    """Flip, then turn and zoom about the centre, then shift, then crop to `side`, in one bilinear interpolation
    that samples the crop at `resolution` (default: side) points a row.

    Going backwards from a pixel p of the result, in pixels from the centre: q = F R(-angle) (p + crop - shift) / zoom.
    grid_sample (align_corners=False) counts in half sides of the input, so q is divided by these.
    """
    whole = images.shape[-1]
    offset = (2 * crop_corner(draws, whole - side) - (whole - side)) / whole - 2 * draws.shift  # (B, 2)
    count = resolution or side
    line = (torch.arange(count, device=images.device) * 2 + 1 - count) * (side / (whole * count))
    x = line + offset[:, :1]  # (B, s)
    y = line + offset[:, 1:]
    angle = torch.deg2rad(draws.angle)[:, None]
    cosine, sine = torch.cos(angle) / draws.zoom[:, None], torch.sin(angle) / draws.zoom[:, None]
    mirror = torch.where(draws.flip, -1.0, 1.0)[:, None]
    grid = images.new_empty(len(images), count, count, 2)
    torch.sub((mirror * cosine * x)[:, None, :], (mirror * sine * y)[:, :, None], out=grid[..., 0])
    torch.add((sine * x)[:, None, :], (cosine * y)[:, :, None], out=grid[..., 1])
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def relight(images: Tensor, light: Tensor) -> Tensor:
    """Brightness, then contrast around the image's mean, as one multiply-add, cut to 0..1."""
    brightness, contrast = light[:, :1, None, None], light[:, 1:, None, None]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return torch.addcmul((1 - contrast) * brightness * mean, images, brightness * contrast).clamp_(0, 1)


def erase(images: Tensor, boxes: Tensor, fill: float) -> Tensor:
    """Random erasing (Zhong et al. 2020) in place; a box longer than the image is cut, not drawn again."""
    side = images.shape[-1]
    area, aspect, *corner = boxes.unbind(1)
    sizes = (area / aspect, area * aspect)  # squared width and height, in sides
    line = torch.arange(side, device=images.device)
    inside = []
    for size, place in zip(sizes, corner, strict=True):
        length = (size.sqrt() * side).round().clamp_(max=side)
        start = (place * (side - length + 1)).floor().clamp_(min=0)
        inside.append((line >= start[:, None]) & (line < (start + length)[:, None]))  # (B, s)
    columns, rows = inside
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], fill)
