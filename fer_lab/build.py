"""From a config to live objects: the only place that instantiates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from fer_lab.cli import UsageError
from fer_lab.data.faces import digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from fer_lab.data.datamodule import FaceData
    from fer_lab.learning.module import FerModule

ALLOWED = (
    "fer_lab.data.",
    "fer_lab.models.",
    "fer_lab.learning.",
    "torch.optim.",
    "pytorch_lightning.trainer.",
)
"""Modules whose classes (and schedules) a config may name; one read back from a run cannot reach further."""

WITHOUT_EFFECT = (
    "name",
    "rerun",
    "threads",
    "runs_dir",
    "cache_dir",
    "cache_features",
    "tracking",
    "data.root",
    "data.source.root",
)
"""Keys that cannot change what a run learns: they are no part of its signature."""


def instantiate(config: Any, **given: Any) -> Any:
    """hydra's instantiate, for targets that are defined in ALLOWED modules."""
    for target in targets(config):
        try:
            defined = getattr(get_object(target), "__module__", "")
        except Exception as error:
            raise UsageError(f"_target_: {target} cannot be loaded: {error}") from None
        known = get_object(target)
        is_schedule = defined == "fer_lab.learning.schedulers"
        if not f"{defined}.".startswith(ALLOWED) or not (isinstance(known, type) or is_schedule):
            raise UsageError(
                f"_target_: {target} is not part of fer_lab; a config may name classes of {', '.join(ALLOWED)}"
            )
    return hydra.utils.instantiate(config, _convert_="all", **given)


def targets(config: Any) -> Iterator[str]:
    if isinstance(config, DictConfig | dict):
        for key, value in config.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from targets(value)
    elif isinstance(config, ListConfig | list | tuple):
        for value in config:
            yield from targets(value)


def build_data(cfg: DictConfig) -> FaceData:
    """The data, decoded and split; sets cfg.classes, class_count and size, which the rest of the config refers to."""
    from fer_lab.data.cache import open_cache
    from fer_lab.data.splits import split_within

    refuse_wrong_sizes(cfg)
    source = instantiate(cfg.data.source)
    cache = open_cache(source, cfg.data.size, cfg.data.channels, Path(cfg.cache_dir), cfg.data.bad)
    split = split_within(instantiate(cfg.split), cache.index, cfg.data.limit)
    classes = list(cache.index.classes)
    size = cfg.augment.get("crop") or cfg.data.size
    for key, value in {"classes": classes, "class_count": len(classes), "size": size}.items():
        OmegaConf.update(cfg, key, value, force_add=True)

    from fer_lab.data.datamodule import FaceData  # Lightning: only now, when nothing is wrong with the data

    balance = instantiate(cfg.balance)
    return FaceData(cache, split, instantiate(cfg.augment), cfg.data.batch_size, balance, cfg.seed)


def refuse_wrong_sizes(cfg: DictConfig) -> None:
    """What would fail only after hours, or deep in a library."""
    from fer_lab.data.faces import TEST_VIEWS

    rules = {
        "views": (cfg.views in TEST_VIEWS, ", ".join(TEST_VIEWS)),
        "data.size": (isinstance(cfg.data.size, int) and cfg.data.size >= 1, "a side in pixels"),
        "data.channels": (cfg.data.channels in (1, 3), "1 or 3"),
        "data.limit": (
            cfg.data.limit is None or isinstance(cfg.data.limit, int),
            "a number of faces or null",
        ),
        "ema": (
            cfg.ema is None or (isinstance(cfg.ema, float) and 0 < cfg.ema < 1),
            "a decay in 0..1 or null",
        ),
        "patience": (cfg.patience is None or isinstance(cfg.patience, int), "a number of epochs or null"),
        "threads": (cfg.threads is None or isinstance(cfg.threads, int), "a number or null"),
    }
    wrong = [
        f"{key}={OmegaConf.select(cfg, key)}: expected {what}"
        for key, (fits, what) in rules.items()
        if not fits
    ]
    if wrong:
        raise UsageError("\n".join(wrong))


def device_of(cfg: DictConfig) -> torch.device:
    """Where nets look at pictures outside the Trainer: the GPU that trainer.accelerator would take, or the CPU."""
    import torch

    wanted = cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")


def build_module(cfg: DictConfig, data: FaceData, weights: str | None) -> FerModule:
    """The net with `weights` (imagenet, a path or none), frozen as asked, and how it learns."""
    import numpy as np
    import pytorch_lightning as pl
    import torch

    from fer_lab.evaluation.metrics import quick_metrics
    from fer_lab.learning.module import FerModule
    from fer_lab.models.weights import freeze, load_weights

    pl.seed_everything(cfg.seed, verbose=False)
    net = instantiate(cfg.model.net)
    loaded = load_weights(net, weights)
    if any(name.startswith("head.") for name in loaded.dropped):
        print(f"{weights}: its head is of another shape and stays behind; ours starts afresh")
    freeze(net, cfg.model.freeze)
    net = net.to(memory_format=torch.channels_last)  # as fast or faster on CPUs and tensor cores alike
    task = instantiate(cfg.task)
    task.fit_to(np.bincount(data.index.labels[data.split.train], minlength=len(cfg.classes)).tolist())
    return FerModule(
        net=net,
        task=task,
        preprocess=instantiate(cfg.model.preprocess),
        optimizer=instantiate(cfg.optimizer),
        scores=quick_metrics,
        scheduler=instantiate(cfg.scheduler) if "_target_" in cfg.scheduler else None,
        ema=cfg.ema,
        seed=cfg.seed,
    )


def use_frozen_features(data: FaceData, module: FerModule, cache_dir: str) -> bool:
    """Gives `data` the backbone's features in place of images, where the backbone sees only a fixed set of them."""
    import torch

    from fer_lab.data.faces import Faces
    from fer_lab.learning.features import features_key, frozen_features

    augment = data.augment
    backbone = module.net.get_submodule("backbone").eval()
    frozen = not any(weight.requires_grad for weight in backbone.parameters())
    if not frozen or augment.mixup or augment.resolutions or not (augment.is_identity or augment.views):
        return False
    images, labels = torch.from_numpy(data.cache.images), torch.from_numpy(data.index.labels)

    @torch.inference_mode()
    def compute() -> Iterator[Tensor]:
        for rows in data.rows.split(32):
            faces = Faces(images[rows].to(module.device), labels[rows], rows)
            views = data.all_views(faces)  # (B, 1 + k, C, H, W)
            found = backbone(module.preprocess(views.flatten(0, 1)))
            yield found.unflatten(0, views.shape[:2])

    views = 1 + (augment.views or 0)
    looks = repr(sorted(vars(augment).items())) if augment.views else repr(augment.crop)
    key = features_key(
        backbone, data.index.digest, str(data.rows.tolist()), looks, str(views), str(data.seed if views > 1 else 0),
        module.preprocess.signature,
    )  # fmt: skip
    data.features = frozen_features(Path(cache_dir), key, len(data.rows), views, compute)
    return True


def signature(cfg: DictConfig, data: FaceData, weights_digest: str) -> str:
    """The same for two runs that must give the same result: the settings, the data, the starting weights."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    for key in WITHOUT_EFFECT:
        *parents, leaf = key.split(".")
        section = settings
        for parent in parents:
            section = section[parent]
        section.pop(leaf, None)
    parts = (data.index.digest, data.split.digest(data.index), weights_digest)
    return digest(OmegaConf.to_yaml(settings, sort_keys=True), *parts)
