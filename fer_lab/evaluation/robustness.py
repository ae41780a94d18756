"""How a net does on faces that are worse than those of the data set: one way of being worse at a time.

Every change takes uint8 faces (N, C, H, W) and a strength, at 0 nothing, and gives uint8 faces: what a camera, a file
or a hand would have done before the net's own preprocessing (Hendrycks & Dietterich 2019, for faces). Places and
lengths are shares of the side of the picture, so that a strength means the same at any size.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fer_lab.evaluation.uncertainty import Interval, bootstrap_confusion

EYES, MOUTH = (0.12, 0.36, 0.88), (0.22, 0.79, 0.78)
"""Left, middle line and right of what a bar covers, in face coordinates (shares of the picture's side, from the top
left). They hold for faces cropped as in FER2013, whose mean face has its eyes on that line and its mouth on the other;
crops with a margin, or tilted, are covered elsewhere."""
GREY = 128

Change = Callable[[Tensor, float], Tensor]
Predict = Callable[[Tensor], NDArray[np.float64]]


class Perturbation(NamedTuple):
    """`strengths` hold 0, a face as it is; `unit` says what they are, `label` how one of them is written."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    change: Change
    label: str

    def words(self, strength: float, side: int) -> str:
        """Such as "24 px", on faces of so many pixels."""
        if strength == 0:
            return "as it is"
        return self.label.format(s=strength, side=round(side / 2**strength), quality=round(100 - strength))


class Point(NamedTuple):
    """The accuracy at a strength, with its 95% interval."""

    strength: float
    accuracy: float
    interval: Interval


def blur(images: Tensor, strength: float) -> Tensor:
    """Gaussian, its sigma `strength` percent of the side."""
    if strength == 0:
        return images
    sigma = strength / 100 * images.shape[-1]
    reach = min(max(1, round(4 * sigma)), images.shape[-1] - 1)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = weights / weights.sum()
    planes = images.float().flatten(0, 1)[:, None]  # (N * C, 1, H, W)
    planes = functional.pad(planes, (reach, reach, reach, reach), mode="reflect")
    planes = functional.conv2d(
        functional.conv2d(planes, weights[None, None, :, None]), weights[None, None, None]
    )
    return _bytes(planes[:, 0].unflatten(0, images.shape[:2]))


def brightness(images: Tensor, strength: float) -> Tensor:
    """Exposure: every pixel times 2 to the `strength` (photographers' stops), cut off at white."""
    return images if strength == 0 else _bytes(images.float() * 2**strength)


def jpeg(images: Tensor, strength: float) -> Tensor:
    """Written as JPEG of quality 100 - `strength` by Pillow and read again."""
    if strength == 0:
        return images
    from PIL import Image

    found = []
    for picture in images.cpu().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(
            file, "JPEG", quality=round(100 - strength)
        )
        found.append(np.asarray(Image.open(file)).reshape(picture.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous().to(images.device)


def bar(place: tuple[float, float, float]) -> Change:
    """A grey bar over EYES or MOUTH, `strength` percent of the side high."""

    def cover(images: Tensor, strength: float) -> Tensor:
        if strength == 0:
            return images
        left, top, right, bottom = box_of(place, strength, images.shape[-1])
        covered = images.clone()
        covered[:, :, top:bottom, left:right] = GREY
        return covered

    return cover


def box_of(place: tuple[float, float, float], strength: float, side: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels, the last two excluded."""
    left, middle, right = place
    half = strength / 200
    edges = (left, middle - half, right, middle + half)
    return tuple(min(side, max(0, round(edge * side))) for edge in edges)  # type: ignore[return-value]


def resolution(images: Tensor, strength: float) -> Tensor:
    """Seen from afar: the side halved `strength` times by averaging, then enlarged again."""
    if strength == 0:
        return images
    size = images.shape[-2:]
    small = [max(1, round(side / 2**strength)) for side in size]
    shrunk = functional.interpolate(images.float(), small, mode="bilinear", antialias=True)
    return _bytes(functional.interpolate(shrunk, size, mode="bilinear"))


PERTURBATIONS = (
    Perturbation("blur", "sigma, % of the side", (0, 1, 2, 4, 6), blur, "σ {s:g}%"),
    Perturbation("brightness", "exposure, stops", (-3, -1.5, 0, 0.5, 1), brightness, "{s:+g}"),
    Perturbation("JPEG", "100 - quality", (0, 50, 75, 90, 95), jpeg, "q{quality}"),
    Perturbation(
        "eyes covered", "height of the bar, % of the side", (0, 10, 20, 30, 40), bar(EYES), "{s:g}%"
    ),
    Perturbation(
        "mouth covered", "height of the bar, % of the side", (0, 10, 20, 30, 40), bar(MOUTH), "{s:g}%"
    ),
    Perturbation("low resolution", "halvings of the side", (0, 0.5, 1, 1.5, 2), resolution, "{side} px"),
)


def curve(
    predict: Predict,
    images: Tensor,
    labels: NDArray[np.int64],
    perturbation: Perturbation,
    clean: NDArray[np.float64],
    groups: Sequence[str] | None = None,
) -> list[Point]:
    """Accuracy at each strength. `predict` gives probabilities (N, K) of uint8 faces (N, C, H, W) and `clean` are those
    of `images` as they are; `groups` are the people in them, where they are known."""
    points = []
    for strength in perturbation.strengths:
        found = clean if strength == 0 else predict(perturbation.change(images, strength))
        chosen = found.argmax(1)
        interval = bootstrap_confusion(labels, chosen, found.shape[1], groups)["accuracy"]
        points.append(Point(strength, float((chosen == labels).mean()), interval))
    return points


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
