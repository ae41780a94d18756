"""What a net looks at and what its layers see: Grad-CAM, occlusion, filters and feature maps.

Grad-CAM (Selvaraju et al. 2017) and occlusion (Zeiler & Fergus 2014) are captum's. `forward` takes faces (B, C, H, W) as
floats in 0..1 to logits (B, K); faces are those that the net saw last, whatever of it is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fer_lab.evaluation.uncertainty import Interval, bootstrap

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Forward = Callable[[Tensor], Tensor]
MARKED = 0.2
"""Share of a face that counts as marked by a map."""


@dataclass(frozen=True)
class Step:
    """A layer or block in the order in which the net runs it; `shape` is that of its output for one face, `inside` the
    kinds of layers that a block holds and how many of each."""

    name: str
    kind: str
    module: nn.Module
    shape: tuple[int, ...]
    parameters: int
    inside: str = ""

    @property
    def is_map(self) -> bool:
        """Whether its output still has places: (channels, height, width) of more than one pixel."""
        return len(self.shape) == 3 and self.shape[1] * self.shape[2] > 1

    @property
    def convolves(self) -> bool:
        return any(isinstance(one, nn.Conv2d) for one in self.module.modules())


class Sanity(NamedTuple):
    """How much the told class's probability falls when what a map marks is hidden, and when as much is hidden
    elsewhere; `interval` is the 95% bootstrap interval of the difference over so many `faces`."""

    marked: float
    elsewhere: float
    interval: Interval
    faces: int

    @property
    def sentence(self) -> str:
        verdict = (
            "the maps mark what the net uses"
            if self.interval.low > 0
            else "NOT shown that the maps mark what the net uses: do not trust them"
        )
        return (
            f"hiding the {MARKED:.0%} that Grad-CAM marks lowers the probability by {self.marked:.3f}, hiding a region of "
            f"the same shape elsewhere by {self.elsewhere:.3f}; difference {self.marked - self.elsewhere:.3f} "
            f"[{self.interval.low:.3f}, {self.interval.high:.3f}] over {self.faces} faces: {verdict}"
        )


def steps(net: nn.Module, faces: Tensor) -> list[Step]:
    """Layers and blocks that `faces` (B, C, H, W) run through, in order. Sequential parts are opened, blocks are not."""
    found: list[Step] = []
    handles = [
        module.register_forward_hook(_note(found, name, module)) for name, module in opened(net) if name
    ]
    with torch.inference_mode(), _removed(handles):
        net(faces[:1])
    return found


def opened(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The root and every Sequential give way to their children; names are dotted."""
    if name and not isinstance(module, nn.Sequential):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from opened(child, f"{name}.{child_name}" if name else child_name)


def _note(found: list[Step], name: str, module: nn.Module) -> Callable[..., None]:
    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            count = sum(parameter.numel() for parameter in module.parameters())
            kind, shape = type(module).__name__, tuple(output.shape[1:])
            found.append(Step(name, kind, module, shape, count, _inside(module)))

    return note


def _inside(module: nn.Module) -> str:
    leaves = [type(one).__name__ for one in module.modules() if one is not module and not [*one.children()]]
    return ", ".join(f"{leaves.count(kind)} {kind}" for kind in dict.fromkeys(leaves) if kind != "Identity")


@contextmanager
def _removed(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_map(found: Sequence[Step]) -> Step:
    """The last convolution, or block with one, whose output has places. Raises ValueError where there is none."""
    convolutional = [step for step in found if step.is_map and step.convolves]
    if not convolutional:
        names = ", ".join(step.kind for step in found)
        raise ValueError(f"no convolution of this net gives a map of more than one pixel ({names})")
    return convolutional[-1]


def without_surprises(net: nn.Module) -> nn.Module:
    """For maps: in evaluation mode, and no activation overwrites what stands before it."""
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return net.eval()


def grad_cam(forward: Forward, layer: nn.Module, faces: Tensor, targets: Tensor) -> Tensor:
    """(B, H, W) in 0..1: where the layer's channels, weighted by their mean gradient, speak for the class `targets`."""
    from captum.attr import LayerAttribution, LayerGradCam

    # a frozen net has gradients only if its input wants them
    seen = faces.detach().clone().requires_grad_(True)
    coarse = LayerGradCam(forward, layer).attribute(seen, target=targets, relu_attributions=True)
    fine = LayerAttribution.interpolate(coarse.detach(), tuple(faces.shape[-2:]), "bilinear")
    return _to_one(fine[:, 0])


def occlusion(forward: Forward, faces: Tensor, targets: Tensor, window: int | None = None) -> Tensor:
    """(B, H, W): how much the probability of `targets` falls, on average over the windows that hide a place; negative
    where hiding it helps. A window is a sixth of the side by default, goes on by half of itself, and is filled with
    the face's own mean."""
    from captum.attr import Occlusion

    side = window or max(2, min(faces.shape[-2:]) // 6)
    step, channels = max(1, side // 2), faces.shape[1]
    grey = faces.mean((1, 2, 3), keepdim=True).expand_as(faces)
    with torch.no_grad():
        found = Occlusion(lambda x: forward(x).softmax(1)).attribute(
            faces,
            sliding_window_shapes=(channels, side, side),
            strides=(channels, step, step),
            baselines=grey,
            target=targets,
        )
    return found.detach()[:, 0]


def sanity(forward: Forward, layer: nn.Module, faces: Tensor, others: int = 8, seed: int = 0) -> Sanity:
    """Hides the MARKED part of each face's Grad-CAM, and the same shape moved to `others` random places."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        told = forward(faces).softmax(1)
    targets = told.argmax(1)
    before = told.gather(1, targets[:, None])[:, 0]
    masks = largest(grad_cam(forward, layer, faces, targets), MARKED)

    def fall(hidden: Tensor) -> Tensor:
        with torch.no_grad():
            after = forward(hide(faces, hidden)).softmax(1)
        return (before - after.gather(1, targets[:, None])[:, 0]).cpu()

    marked = fall(masks)
    moved = torch.stack([fall(_elsewhere(masks, generator)) for _ in range(others)]).mean(0)
    gain = (marked - moved).double().numpy()
    interval = bootstrap(lambda drawn: float(gain[drawn].mean()), len(gain))
    return Sanity(float(marked.mean()), float(moved.mean()), interval, len(gain))


def largest(maps: Tensor, share: float) -> Tensor:
    """(B, H, W) booleans: the `share` of each map's places that are highest."""
    flat = maps.flatten(1)
    count = max(1, round(share * flat.shape[1]))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    return chosen.scatter_(1, flat.topk(count, dim=1).indices, True).view_as(maps)


def _elsewhere(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Each mask moved around the face by random steps, over the edge and in again."""
    height, width = masks.shape[1:]
    moves = [
        (
            int(torch.randint(height, (), generator=generator)),
            int(torch.randint(width, (), generator=generator)),
        )
        for _ in masks
    ]
    return torch.stack([mask.roll(move, (0, 1)) for mask, move in zip(masks, moves, strict=True)])


def hide(faces: Tensor, masks: Tensor) -> Tensor:
    """The faces with what the masks (B, H, W) cover replaced by each face's mean."""
    return torch.where(masks[:, None], faces.mean((1, 2, 3), keepdim=True), faces)


def first_filters(net: nn.Module) -> np.ndarray:
    """(O, I, k, k) weights of the first convolution. Raises ValueError for a net without one."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach().float().cpu().numpy()
    raise ValueError(f"{type(net).__name__} has no convolution, so there are no filters to show")


def feature_maps(
    net: nn.Module, face: Tensor, found: Sequence[Step], layers: int, channels: int
) -> list[tuple[Step, np.ndarray]]:
    """For up to `layers` convolutions with places, spread evenly, the `channels` strongest maps of `face` (1, C, H, W)."""
    wanted = [step for step in found if step.is_map and step.convolves]
    places = np.unique(np.linspace(0, len(wanted) - 1, min(layers, len(wanted))).round().astype(int))
    kept: list[tuple[Step, np.ndarray]] = []

    def keep(step: Step) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            maps = output[0].float()
            strongest = maps.abs().mean((1, 2)).topk(min(channels, len(maps))).indices
            kept.append((step, maps[strongest].cpu().numpy()))

        return hook

    handles = [wanted[place].module.register_forward_hook(keep(wanted[place])) for place in places]
    with torch.inference_mode(), _removed(handles):
        net(face)
    return kept


def _to_one(maps: Tensor) -> Tensor:
    """Each map divided by its largest value; one that is zero all over stays so."""
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
