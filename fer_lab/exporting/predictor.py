"""The trained net as users need it: from pixels to predictions, with nothing in it that only training needs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fer_lab.data.augment import Augment
from fer_lab.exporting.facts import ExportError
from fer_lab.models.preprocess import Preprocess

ROUNDING = 1e-4
"""How far folding may move a logit, as a share of the largest one."""


def softmax(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs.float(), dim=-1)


class Predictor(nn.Module):
    """Pixels (B, C, S, S) uint8 -> what `predictions` makes of the net's outputs (B, O): probabilities, unless a task
    says otherwise. Averaged over the test-time `views`, which go through the net as one batch: its graph holds the
    net once."""

    def __init__(
        self,
        net: nn.Module,
        preprocess: Preprocess,
        views: str,
        crop: int | None,
        predictions: Callable[[Tensor], Tensor] = softmax,
    ) -> None:
        super().__init__()
        self.net, self.preprocess, self.views, self.predictions = net, preprocess, views, predictions
        self.augment = Augment(crop=crop)

    def forward(self, pixels: Tensor) -> Tensor:
        views = self.augment.test_views(pixels, self.views)  # (V, B, C, s, s) in 0..1
        count = views.shape[0]
        if count == 1:
            return self.predictions(self.net(self.preprocess(views[0])))
        outputs = self.net(self.preprocess(views.flatten(0, 1)))  # (V * B, O)
        return self.predictions(outputs).unflatten(0, (count, pixels.shape[0])).mean(0)


class Folded(NamedTuple):
    """A net for prediction only: `norms` batch norms became part of the layers before them, `kept` could not."""

    net: nn.Module
    norms: int
    kept: tuple[str, ...]


def fold(net: nn.Module, images: Tensor) -> Folded:
    """A copy of `net` with its batch norms folded into the layers before them and without dropout.

    `images` (B, channels, s, s) are preprocessed faces: they show which batch norm reads which layer, and that the
    copy says what the net says. Raises ExportError where it does not.
    """
    folded = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    folded = folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it
    with torch.no_grad():
        before = folded(images)
        pairs = norms_behind_layers(folded, images[:2])
        for layer, norm in pairs:
            fold_one(folded, layer, norm)
        drop_dropout(folded)
        moved = float((folded(images) - before).abs().max() / before.abs().max())
    if not moved <= ROUNDING:
        raise ExportError(
            f"folding {len(pairs)} batch norms of {type(net).__name__} moves its logits by {moved:.3g} of the largest "
            f"(allowed {ROUNDING:g}): something else reads a layer that one of them follows; nothing was written"
        )
    kept = tuple(name for name, part in folded.named_modules() if isinstance(part, _BatchNorm))
    return Folded(folded, len(pairs), kept)


def norms_behind_layers(net: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of (convolution or dense layer, batch norm) where the one's output, unchanged, is the other's input.

    Seen by looking on while the net runs, so that it does not matter how the net's own code calls them. A layer or
    norm that is called twice stays as it is.
    """
    made: dict[int, tuple[str, Tensor, int]] = {}  # by the identity of the output, which is kept alive
    calls: Counter[str] = Counter()
    found: list[tuple[str, str]] = []
    watches = []
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):

            def note(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                calls[name] += 1
                made[id(output)] = name, output, output._version

            watches.append(part.register_forward_hook(note))
        elif isinstance(part, _BatchNorm):

            def match(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls[name] += 1
                layer, _output, version = made.get(id(inputs[0]), ("", inputs[0], -1))
                if inputs[0]._version == version:  # a ReLU in place would have raised it
                    found.append((layer, name))

            watches.append(part.register_forward_pre_hook(match))
    net(images)
    for watch in watches:
        watch.remove()
    return [pair for pair in found if all(calls[name] == 1 for name in pair)]


def fold_one(net: nn.Module, layer_name: str, norm_name: str) -> None:
    """In float64: the products are rounded once."""
    layer, norm = net.get_submodule(layer_name), net.get_submodule(norm_name)
    assert isinstance(norm, _BatchNorm)
    fused = (
        fuse_conv_bn_eval(layer.double(), norm.double())
        if isinstance(layer, nn.Conv2d)
        else fuse_linear_bn_eval(layer.double(), norm.double())  # type: ignore[type-var]
    )
    net.set_submodule(layer_name, fused.float().requires_grad_(False))
    net.set_submodule(norm_name, nn.Identity())


def drop_dropout(net: nn.Module) -> None:
    for name in [name for name, part in net.named_modules() if isinstance(part, _DropoutNd)]:
        net.set_submodule(name, nn.Identity())
