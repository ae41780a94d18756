"""Pictures of what a net looks at: maps over faces, filters, feature maps, and the net itself as a stack of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fer_lab.evaluation.explain import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#333333", "#B8B8B8"
COLOURS = {"convolution": "#0072B2", "pooling": "#E69F00", "dense": "#009E73", "other": "#B8B8B8"}
FOLLOWERS = ("ReLU", "LeakyReLU", "BatchNorm2d", "BatchNorm1d", "Dropout", "Dropout2d", "Flatten", "Identity")
"""Kinds that are drawn with the layer before them."""


class Explained(NamedTuple):
    """A face (C, H, W) in 0..1 with its Grad-CAM (H, W) in 0..1, its occlusion map (H, W), and what to write above."""

    face: NDArray[np.float32]
    grad_cam: NDArray[np.float32]
    occlusion: NDArray[np.float32]
    words: str


def explanations(shown: Sequence[Explained]) -> Figure:
    """Each face beside its two maps; two faces in a row."""
    figure = _figure(2 * 3 * 1.55, 0.5 + 1.95 * math.ceil(len(shown) / 2))
    grid = figure.subplots(math.ceil(len(shown) / 2), 6, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for place, one in enumerate(shown):
        left, middle, right = grid[place // 2, 3 * (place % 2) : 3 * (place % 2) + 3]
        for axes in (left, middle, right):
            axes.imshow(_picture(one.face), interpolation="nearest")
        left.set_title(one.words, fontsize=8, loc="left", color=INK)
        middle.set_title("Grad-CAM", fontsize=7, loc="left", color=INK)
        right.set_title("occlusion", fontsize=7, loc="left", color=INK)
        middle.imshow(one.grad_cam, cmap="inferno", vmin=0, vmax=1, alpha=0.5)
        most = max(float(np.abs(one.occlusion).max()), 1e-6)
        right.imshow(one.occlusion, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.55)
    return figure


def filters(weights: NDArray[np.float32], columns: int = 16) -> Figure:
    """Filters (O, I, k, k): of one or three channels as they are (in colour), of others their mean. Grey is zero."""
    shown = weights if weights.shape[1] in (1, 3) else weights.mean(1, keepdims=True)
    most = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    pictures = 0.5 + 0.5 * shown / np.maximum(most, 1e-12)
    rows = math.ceil(len(pictures) / columns)
    figure = _figure(0.62 * columns, 0.62 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture in zip(grid.flat, pictures, strict=False):
        axes.imshow(_picture(picture), interpolation="nearest", vmin=0, vmax=1)
    return figure


def features(face: NDArray[np.float32], layers: Sequence[tuple[Step, NDArray[np.float32]]]) -> Figure:
    """A row for each layer: the face, then the layer's strongest maps, each stretched to its own range."""
    columns = 1 + max(len(maps) for _, maps in layers)
    figure = _figure(1.0 * columns, 1.2 * len(layers))
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, (step, maps) in zip(grid, layers, strict=True):
        row[0].imshow(_picture(face), interpolation="nearest")
        row[0].set_title(f"{step.name}\n{_shape(step)}", fontsize=7, loc="left", color=INK)
        for axes, found in zip(row[1:], maps, strict=False):
            axes.imshow(found, cmap="viridis", interpolation="nearest")
    return figure


def graph(found: Sequence[Step], name: str, image: tuple[int, ...]) -> Figure:
    """The net from top to bottom: a box for each layer with what follows it (norm, activation, dropout), as wide as its
    channels are many; right of it the shape of its output, its parameters and their share as a bar."""
    rows = _with_followers(found)
    total = sum(step.parameters for group in rows for step in group)
    figure = _figure(10.5, 0.9 + 0.34 * len(rows))
    axes = figure.subplots()
    axes.set(xlim=(0, 10.5), ylim=(len(rows) + 0.6, -1.6))
    axes.axis("off")
    for x, text in ((2.6, f"{name}, image {_sides(image)}"), (5.9, "output"), (7.5, f"{total:,} parameters")):
        axes.text(x, -1.2, text, ha="center" if x < 5 else "left", fontsize=10, fontweight="bold", color=INK)
    largest = max(group[0].shape[0] for group in rows)
    for place, group in enumerate(rows):
        _draw_step(axes, place, group, largest, max(total, 1))
    return figure


def _draw_step(axes: Axes, place: int, group: Sequence[Step], largest: int, total: int) -> None:
    step, count = group[0], sum(one.parameters for one in group)
    width = 2.4 + 2.6 * math.log2(1 + step.shape[0]) / math.log2(1 + largest)
    colour = COLOURS[_family(step)]
    axes.barh(place, width, 0.78, left=2.6 - width / 2, color=colour, alpha=0.28, edgecolor=colour)
    axes.text(2.6, place, _words(group), ha="center", va="center", fontsize=7.5, color=INK)
    if place:
        arrow = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (2.6, place - 0.39), (2.6, place - 0.61), arrowprops=arrow)
    axes.text(5.9, place, _shape(group[-1]), va="center", fontsize=8, color=INK)
    if count:
        axes.barh(place, 1.6 * count / total, 0.5, left=8.7, color=colour)
        axes.text(8.55, place, f"{count:,}", va="center", ha="right", fontsize=8, color=INK)


def _with_followers(found: Sequence[Step]) -> list[list[Step]]:
    rows: list[list[Step]] = []
    for step in found:
        if rows and step.kind in FOLLOWERS:
            rows[-1].append(step)
        else:
            rows.append([step])
    return rows


def _words(group: Sequence[Step]) -> str:
    step = group[0]
    what = f"{step.kind}{_kernel(step)}" + (f" ({step.inside})" if step.inside else "")
    more = "".join(f" + {one.kind}" for one in group[1:] if one.kind != "Identity")
    text = f"{what}{more}"
    return text if len(text) <= 74 else f"{text[:73]}…"


def _kernel(step: Step) -> str:
    size = getattr(step.module, "kernel_size", None)
    if size is None:
        return ""
    sides = size if isinstance(size, tuple) else (size, size)
    stride = getattr(step.module, "stride", 1)
    first = stride[0] if isinstance(stride, tuple) else stride
    return f" {sides[0]}×{sides[1]}" + (f", stride {first}" if first not in (1, None) else "")


def _family(step: Step) -> str:
    names = f"{step.kind} {step.inside}"
    if "Conv" in names:
        return "convolution"
    return "pooling" if "Pool" in names else "dense" if "Linear" in names else "other"


def _shape(step: Step) -> str:
    return _sides(step.shape)


def _sides(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _picture(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1 or 3, H, W) in 0..1 -> (H, W, 3)."""
    return np.clip(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)), 0, 1)


def _figure(width: float, height: float) -> Figure:
    """Bare, unknown to pyplot: freed with its last reference."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
