"""From a config to live objects: the only place that instantiates."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import hydra
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from fer_lab.cli import UsageError
from fer_lab.data.faces import USAGES, digest
from fer_lab.identity import decisive
from fer_lab.ranks import local_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import Tensor, nn

    from fer_lab.data.cache import Cache
    from fer_lab.data.datamodule import FaceData
    from fer_lab.data.splits import Split
    from fer_lab.learning.module import FerModule, Scores
    from fer_lab.learning.tasks import Task

T = TypeVar("T")

ALLOWED = (
    "fer_lab.data.",
    "fer_lab.models.",
    "fer_lab.learning.",
    "torch.optim.",
    "pytorch_lightning.trainer.",
)
"""Modules whose classes (and schedules) a config may name; one read back from a run cannot reach further."""

WITH_AFFECT = "choose a data set that has them"


def instantiate(config: Any, **given: Any) -> Any:
    """hydra's instantiate, for targets that are defined in ALLOWED modules."""
    refuse_strangers(config)
    return hydra.utils.instantiate(config, _convert_="all", **given)


def refuse_strangers(config: Any) -> None:
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


class Part(NamedTuple):
    """One usage of a split, for the record: `counts` are the faces of each class."""

    usage: str
    digest: str
    counts: dict[str, int]


class Loaded(NamedTuple):
    """A data set, decoded and split, with what identifies it; one for all runs of this process that ask for it."""

    cache: Cache
    split: Split
    split_digest: str
    parts: tuple[Part, ...]


DECODED = ("cache_dir", *(f"data.{name}" for name in ("source", "size", "channels", "bad", "crop", "margin")))
"""Keys that decide what the decoded pictures are."""

KEPT = 8
"""Data sets, and splits of them, that a process comes back to; a sweep over seeds or limits puts the oldest out."""

_caches: dict[str, Cache] = {}
_loaded: dict[str, Loaded] = {}


def load_data(cfg: DictConfig) -> Loaded:
    """The files are looked at once in a process: trials of a sweep and folds share what they found."""
    key = text_of(cfg, *DECODED, "data.limit", "data.exclude", "split")
    return kept(_loaded, key, lambda: load_data_anew(cfg))


def text_of(cfg: DictConfig, *keys: str) -> str:
    values = (OmegaConf.select(cfg, key) for key in keys)
    return json.dumps(
        [
            OmegaConf.to_container(one, resolve=True) if OmegaConf.is_config(one) else str(one)
            for one in values
        ]
    )


def kept(store: dict[str, T], key: str, make: Callable[[], T]) -> T:
    """What `make` gave for this key, if it is among the last few that were asked for."""
    found = store.pop(key) if key in store else make()
    while len(store) >= KEPT:
        del store[next(iter(store))]
    store[key] = found
    return found


def decoded(cfg: DictConfig) -> Cache:
    from fer_lab.data.cache import open_cache

    data = cfg.data
    return open_cache(
        instantiate(data.source),
        data.size,
        data.channels,
        Path(cfg.cache_dir),
        data.bad,
        crop=data.get("crop", "none"),
        margin=data.get("margin", 0.0),
    )


def load_data_anew(cfg: DictConfig) -> Loaded:
    from fer_lab.clean import without_leaks
    from fer_lab.data.splits import split_within

    cache = kept(_caches, text_of(cfg, *DECODED), lambda: decoded(cfg))
    index = cache.index
    split = split_within(instantiate(cfg.split), index, cfg.data.limit)
    split = without_leaks(cfg, index, split)
    subsets = {usage: index.subset(rows) for usage in USAGES if len(rows := getattr(split, usage))}
    parts = (Part(usage, digest(one.digest, *one.names), one.counts()) for usage, one in subsets.items())
    return Loaded(cache, split, split.digest(index), tuple(parts))


def build_data(cfg: DictConfig, to_learn: bool = True) -> FaceData:
    """The data, decoded and split; sets what the rest of the config refers to: cfg.classes, class_count, size and
    output_count, the numbers that the net gives for a face. Raises UsageError where cfg.task is `to_learn` what
    these faces do not say."""
    refuse_wrong_sizes(cfg)
    loaded = load_data(cfg)

    from fer_lab.data.datamodule import FaceData  # Lightning: only now, when nothing is wrong with the data

    task = task_of(cfg)
    if to_learn:
        refuse_without_affect(task, loaded)
    classes = list(loaded.cache.index.classes)
    known = {
        "classes": classes,
        "class_count": len(classes),
        "output_count": task.outputs(len(classes)),
        "size": cfg.augment.get("crop") or cfg.data.size,
    }
    for key, value in known.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    balance = instantiate(cfg.balance)
    return FaceData(
        loaded.cache,
        loaded.split,
        instantiate(cfg.augment),
        cfg.data.batch_size,
        balance,
        cfg.seed,
        labels=cfg.data.get("labels", "majority"),
        stream=streams(cfg, loaded.cache),
    )


def streams(cfg: DictConfig, cache: Cache) -> bool:
    """Whether an epoch goes through the images by parts: as data.stream says, else by the size of the set alone, since
    it changes the order of an epoch, and a run may go on on a machine with another memory."""
    from fer_lab.data.stream import is_large

    wanted = cfg.data.get("stream")
    return is_large(cache.images) if wanted is None else bool(wanted)


def task_of(cfg: DictConfig) -> type[Task]:
    """The class of cfg.task, before the config of its settings can be resolved: they refer to the data's classes."""
    refuse_strangers({"_target_": cfg.task._target_})
    return get_object(cfg.task._target_)


def refuse_without_affect(task: type[Task], loaded: Loaded) -> None:
    import numpy as np

    affect = loaded.cache.index.affect
    for usage in USAGES:
        rows = getattr(loaded.split, usage)
        if task.needs_affect and len(rows) and (affect is None or np.isnan(affect[rows]).all()):
            raise UsageError(
                f"task {task.__name__} needs valence and arousal, which the {usage} faces of "
                f"{loaded.cache.index.name} do not have; {WITH_AFFECT}; task=emotion needs none"
            )


def refuse_wrong_sizes(cfg: DictConfig) -> None:
    """What would fail only after hours, or deep in a library."""
    from fer_lab.data.faces import LABELS, TEST_VIEWS

    rules = {
        "views": (cfg.views in TEST_VIEWS, ", ".join(TEST_VIEWS)),
        "data.size": (isinstance(cfg.data.size, int) and cfg.data.size >= 1, "a side in pixels"),
        "data.channels": (cfg.data.channels in (1, 3), "1 or 3"),
        "data.labels": (cfg.data.get("labels", LABELS[0]) in LABELS, ", ".join(LABELS)),
        "data.limit": (
            cfg.data.limit is None or isinstance(cfg.data.limit, int),
            "a number of faces or null",
        ),
        "data.stream": (
            cfg.data.get("stream") in (None, True, False),
            "true, false or null, by the size of the set",
        ),
        "ema": (
            cfg.ema is None or (isinstance(cfg.ema, float) and 0 < cfg.ema < 1),
            "a decay in 0..1 or null",
        ),
        "patience": (cfg.patience is None or isinstance(cfg.patience, int), "a number of epochs or null"),
        "layer_decay": (
            isinstance(share := cfg.get("layer_decay", 1.0), int | float) and 0 < share <= 1,
            "a share above 0, 1 for one rate",
        ),
        "unfreeze": (
            (every := cfg.get("unfreeze")) is None or (isinstance(every, int) and every >= 1),
            "a number of epochs >= 1 or null",
        ),
        "scale_lr": (cfg.get("scale_lr", "none") in ("none", "linear"), "none or linear"),
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

    if cfg.trainer.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return torch.device("cpu")
    if cfg.trainer.devices in (1, "1"):
        return torch.device("cuda")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


def make_net(cfg: DictConfig, weights: str | None) -> nn.Module:
    import pytorch_lightning as pl
    import torch

    from fer_lab.models.weights import freeze, load_weights

    pl.seed_everything(cfg.seed, verbose=False)
    net = instantiate(cfg.model.net)
    loaded = load_weights(net, weights)
    if any(name.startswith("head.") for name in loaded.dropped):
        print(f"{weights}: its head is of another shape and stays behind; ours starts afresh")
    freeze(net, cfg.model.freeze)
    return net.to(memory_format=torch.channels_last)  # as fast or faster on CPUs and tensor cores alike


def build_module(
    cfg: DictConfig,
    data: FaceData,
    weights: str | None,
    make: Callable[[DictConfig, str | None], nn.Module] = make_net,
) -> FerModule:
    """The net with `weights` (imagenet, a path or none), frozen as asked, and how it learns."""
    import numpy as np

    from fer_lab.learning.module import FerModule
    from fer_lab.learning.rates import Rates

    net = make(cfg, weights)
    task = instantiate(cfg.task)
    task.fit_to(np.bincount(data.index.labels[data.split.train], minlength=len(cfg.classes)).tolist())
    return FerModule(
        net=net,
        task=task,
        preprocess=instantiate(cfg.model.preprocess),
        optimizer=instantiate(cfg.optimizer),
        scores=quick_scores(task),
        scheduler=instantiate(cfg.scheduler) if "_target_" in cfg.scheduler else None,
        ema=cfg.ema,
        seed=cfg.seed,
        rates=Rates(cfg.get("layer_decay", 1.0), cfg.get("unfreeze"), cfg.get("scale_lr", "none")),
    )


def quick_scores(task: Task) -> Scores:
    """What a validation epoch is scored by: the figures of each thing that the task tells."""
    from fer_lab.evaluation.affect import quick_affect_metrics
    from fer_lab.evaluation.metrics import quick_metrics

    def scores(outputs: Tensor, labels: Tensor, affect: Tensor | None) -> dict[str, float]:
        logits, told = task.logits(outputs), task.affect(outputs)
        found = {} if logits is None else quick_metrics(logits, labels)
        return found if told is None or affect is None else found | quick_affect_metrics(told, affect)

    return scores


def starting_weights(cfg: DictConfig, uri: str) -> tuple[str | None, str]:
    """What model.weights means here: imagenet, a path or None; and a digest of it for the signature."""
    from fer_lab.tracking.find import find_run

    if OmegaConf.is_missing(cfg.model, "weights"):
        raise UsageError(
            "model.weights must be named, as this net's convolutions stay as they come: runs:/ID of a trained run "
            "(python -m fer_lab.train recipe=fer2013_small makes one), or the PATH of its best.pt"
        )
    if cfg.model.weights is None or cfg.model.weights == "imagenet":
        return cfg.model.weights, str(cfg.model.weights)
    weights = str(cfg.model.weights)
    path = (
        find_run(weights, Path(cfg.runs_dir), uri) / "best.pt"
        if weights.startswith("runs:/")
        else Path(weights)
    )
    return str(path), file_digest(path.expanduser(), file_stamp(path))


@cache
def file_digest(path: Path, stamp: tuple[int, int]) -> str:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content).hexdigest()


def file_stamp(path: str | Path | None) -> tuple[int, int]:
    """Size and time of a file's last change; (0, 0) for what is no file."""
    try:
        facts = Path(path or "").expanduser().stat()
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def signature(cfg: DictConfig, data: FaceData, weights_digest: str) -> str:
    """The same for two runs that must give the same result: the settings, the data, the starting weights."""
    return digest(decisive(cfg), data.index.digest, load_data(cfg).split_digest, weights_digest)
