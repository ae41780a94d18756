"""Where a net's weights come from, and which of them stay as they are."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
CHOICES = "model.weights takes imagenet, the PATH of a state_dict (.pt, .pth) or checkpoint (.ckpt), runs:/ID or null"


class WeightsError(ValueError):
    """Weights that cannot be had or do not fit the net; the text says what to do."""


class Loaded(NamedTuple):
    """Names of the net's tensors that were `loaded`, of those in the file that were `dropped`, of those left `missing`."""

    loaded: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def load_weights(net: nn.Module, spec: str | Path | None) -> Loaded:
    """Load what model.weights names into the backbone and, where every shape fits, the head of `net`.

    A whole backbone or nothing: WeightsError if any of its tensors is absent or of another shape, and if the
    weights cannot be read. `runs:/ID` must have been turned into the path of that run's checkpoint before.
    """
    if spec is None:
        return Loaded()
    state = imagenet(net) if spec == "imagenet" else read(Path(spec).expanduser())
    state = rename(
        state, getattr(net, "torchvision_backbone", None), getattr(net, "torchvision_renamed", None)
    )
    own = net.state_dict()
    fits = {name for name in own if name in state and state[name].shape == own[name].shape}
    _refuse_misfit(own, state, fits, spec)
    if any(name not in fits for name in own if name.startswith("head.")):
        fits = {name for name in fits if name.startswith("backbone.")}
    net.load_state_dict({name: state[name] for name in fits}, strict=False)
    return Loaded(
        loaded=tuple(name for name in own if name in fits),
        dropped=tuple(name for name in state if name not in fits),
        missing=tuple(name for name in own if name not in fits),
    )


def imagenet(net: nn.Module) -> State:
    """The state_dict that torchvision offers for `net`, out of the torch hub's folder or the network."""
    weights = getattr(net, "imagenet", None)
    if weights is None:
        raise WeightsError(
            f"{type(net).__name__} has no ImageNet weights (the vgg, resnet50 and densenet models have). {CHOICES}."
        )
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        with _patience(seconds=20):
            return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise WeightsError(
            f"ImageNet weights of {type(net).__name__} could not be had: {error}. "
            f"Put {weights.url} at {place} (TORCH_HOME moves that folder) or choose others: {CHOICES}."
        ) from error


def read(path: Path) -> State:
    """The tensors of a state_dict or of the net in a Lightning checkpoint; never runs code out of the file."""
    if not path.is_file():
        raise WeightsError(f"There are no weights at {path}. {CHOICES}.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} is not a file of plain tensors ({reason}). If it is your own pickled net, save it again "
            f"with torch.save(net.state_dict(), …). {CHOICES}."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = checkpointed_net(content["state_dict"])
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no state_dict (names -> tensors). {CHOICES}.")
    return content


def checkpointed_net(state: State) -> State:
    """The net among the tensors of a LightningModule: its moving average where there is one, as that was judged."""
    for start in ("average.module.", "net."):
        if net := {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}:
            return net
    return state


def rename(
    state: State, torchvision_backbone: str | None, torchvision_renamed: tuple[str, str] | None = None
) -> State:
    """torchvision's names as ours: its feature layers begin with `torchvision_backbone`, ours with `backbone.`.

    `torchvision_renamed` is a pattern and what it became, where its files have other names than its nets."""
    if torchvision_backbone is None or any(name.startswith("backbone.") for name in state):
        return state
    start = torchvision_backbone
    if torchvision_renamed:
        state = {re.sub(*torchvision_renamed, name): value for name, value in state.items()}
    return {
        f"backbone.{name[len(start) :]}" if name.startswith(start) else name: value
        for name, value in state.items()
    }


def _refuse_misfit(own: State, state: State, fits: set[str], spec: str | Path) -> None:
    # a count of batches is no weight, and files from before torch 0.4.1 lack it
    needed = [
        name for name in own if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    ]
    misfits = [name for name in needed if name not in fits]
    if misfits:
        name = misfits[0]
        found = (
            f"of shape {tuple(state[name].shape)}"
            if name in state
            else f"absent (it has {', '.join([*state][:3])} …)"
        )
        raise WeightsError(
            f"{spec} fits {len(needed) - len(misfits)} of the {len(needed)} tensors of the backbone: {name} should be "
            f"of shape {tuple(own[name].shape)} but is {found}. Choose the model that wrote the file. {CHOICES}."
        )


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a silent network: torch.hub sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def parts(net: nn.Module) -> list[str]:
    """The children of the backbone that have parameters, by name and from below: "backbone.conv1", …"""
    children = net.get_submodule("backbone").named_children()
    return [f"backbone.{name}" for name, part in children if has_parameters(part)]


def has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def freeze(net: nn.Module, what: str | int) -> tuple[str, ...]:
    """Stop the learning of "none", the whole "backbone", its first N parts, or all that comes before a module in it.

    A module is named as in "layer4.2.conv2", and what comes before it goes by the order in which the net lists its
    modules. Returns the names of the frozen modules, e.g. ("backbone.0", "backbone.2"). Call `hold_frozen` after
    every `net.train()`: batch norm and dropout do not ask for gradients.
    """
    all_parts, name = parts(net), str(what).removeprefix("backbone.")
    if what == "none":
        frozen: list[str] = []
    elif what == "backbone":
        frozen = ["backbone"]
    elif str(what).isdecimal() and not isinstance(what, bool) and int(what) <= len(all_parts):
        frozen = all_parts[: int(what)]
    elif isinstance(what, str) and not what.isdecimal() and is_inside(net, name):
        frozen = before(net, name)
    else:
        raise WeightsError(
            f"model.freeze={what} is not none, backbone or a number in 0..{len(all_parts)} ({', '.join(all_parts)}), "
            "nor a module in the backbone, before which all is to be frozen"
        )
    for name in frozen:
        net.get_submodule(name).requires_grad_(False)
    return tuple(frozen)


def is_inside(net: nn.Module, name: str) -> bool:
    return bool(name) and name in dict(net.get_submodule("backbone").named_modules())


def before(net: nn.Module, name: str) -> list[str]:
    """The largest modules of the backbone that come whole before `name` and have parameters."""
    found, place = [], "backbone"
    for step in name.split("."):
        for child, part in net.get_submodule(place).named_children():
            if child == step:
                break
            if has_parameters(part):
                found.append(f"{place}.{child}")
        place = f"{place}.{step}"
    return found


def frozen_parts(net: nn.Module, place: str = "backbone") -> list[str]:
    """The largest modules inside the backbone of which nothing learns, from below: what `unfreeze` takes."""
    found = []
    for child, part in net.get_submodule(place).named_children():
        learning = [parameter.requires_grad for parameter in part.parameters()]
        if learning and not any(learning):
            found.append(f"{place}.{child}")
        elif not all(learning):
            found += frozen_parts(net, f"{place}.{child}")
    return found


def unfreeze(net: nn.Module, frozen: Sequence[str], count: int) -> None:
    """Let the topmost `count` of the `frozen` parts of the backbone learn, and no other of them."""
    for place, name in enumerate(reversed(frozen), start=1):
        net.get_submodule(name).requires_grad_(place <= count)


def hold_frozen(net: nn.Module) -> None:
    """Put every module of the backbone whose parameters are all frozen into evaluation mode."""
    for module in net.get_submodule("backbone").modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
