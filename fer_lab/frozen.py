"""Backbones that do not learn: made once for all trials of a process, and looked through once at every face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fer_lab.build import file_stamp, instantiate, make_net
from fer_lab.data.faces import Faces
from fer_lab.learning.features import features_key, frozen_features

if TYPE_CHECKING:
    from fer_lab.data.datamodule import FaceData
    from fer_lab.learning.module import FerModule

WITHOUT_WEIGHTS = ("dropout",)
"""Keys of model.net that cannot change its first weights."""

_first: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {}


def net_on_shared_backbone(cfg: DictConfig, weights: str | None) -> nn.Module:
    """As make_net, but a backbone that is frozen as a whole is one object for all who ask for the same.

    The head starts from the same numbers as make_net's.
    """
    if cfg.model.freeze != "backbone" or cfg.get("unfreeze") is not None:
        return make_net(cfg, weights)
    settings = OmegaConf.to_container(cfg.model.net, resolve=True)
    assert isinstance(settings, dict)
    decisive = {name: value for name, value in settings.items() if name not in WITHOUT_WEIGHTS}
    key = json.dumps([decisive, weights, file_stamp(weights), cfg.seed])
    if key not in _first:
        _first.clear()  # one at a time: it may fill a good part of the memory
        net = make_net(cfg, weights)
        _first[key] = net.get_submodule("backbone"), net.state_dict()
    backbone, first = _first[key]
    with torch.device("meta"):  # a structure without numbers
        net = instantiate(cfg.model.net)
    net.backbone = backbone
    head = {name: value.clone() for name, value in first.items() if not name.startswith("backbone.")}
    net.load_state_dict(head, strict=False, assign=True)
    return net


def use_frozen_features(data: FaceData, module: FerModule, cache_dir: str | Path) -> bool:
    """Gives `data` the backbone's features in place of images, where the backbone sees only a fixed set of them."""
    if not sees_fixed_faces(data, module):
        return False
    folder, count, views = Path(cache_dir), len(data.rows), 1 + (data.augment.views or 0)
    looks = (look(data, module, rows) for rows in data.rows.split(32))
    data.features = frozen_features(folder, key_of(data, module), count, views, lambda: looks)
    return True


def sees_fixed_faces(data: FaceData, module: FerModule) -> bool:
    augment, backbone = data.augment, module.net.get_submodule("backbone")
    frozen = not any(weight.requires_grad for weight in backbone.parameters())
    changing = augment.mixup or augment.resolutions or not (augment.is_identity or augment.views)
    return frozen and not changing and module.rates.unfreeze is None


@torch.inference_mode()
def look(data: FaceData, module: FerModule, rows: Tensor) -> Tensor:
    """(B, 1 + k, …): what the backbone makes of faces, each plain and then in its k fixed views."""
    backbone = module.net.get_submodule("backbone").eval()
    images, labels = torch.from_numpy(data.cache.images[rows.numpy()]), torch.from_numpy(data.index.labels)
    faces = Faces(images.to(module.device), labels[rows], rows)
    views = data.all_views(faces)  # (B, 1 + k, C, H, W)
    found: Tensor = backbone(module.preprocess(views.flatten(0, 1)))
    return found.unflatten(0, views.shape[:2])


def key_of(data: FaceData, module: FerModule) -> str:
    """The name of these features among all that were ever computed."""
    augment = data.augment
    looks = repr(sorted(vars(augment).items())) if augment.views else repr(augment.crop)
    return features_key(
        module.net.get_submodule("backbone"),
        data.index.digest,
        str(data.rows.tolist()),
        looks,
        str(1 + (augment.views or 0)),
        str(data.seed if augment.views else 0),
        module.preprocess.signature,
    )
