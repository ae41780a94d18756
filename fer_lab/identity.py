"""Which of a run's settings make it what it is: those that are part of its signature."""

from __future__ import annotations

import shlex
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
    "data.source.labels",  # data.labels again
    "data.source.ratings",  # a path: the index's digest has what it says
    "output_count",  # the task's and the classes' affair
)
"""Keys that cannot change what a run learns: they are no part of its signature."""

NEUTRAL = {
    "layer_decay": 1.0,
    "unfreeze": None,
    "scale_lr": "none",
    "data.labels": "majority",
    "data.crop": "none",
    "data.exclude": None,
    "data.stream": None,
    "split.train_on_all": False,
}
"""Values of keys that came later, which say what was done before there were such keys: where a key has its value here,
it is no part of the signature, and runs of earlier versions are found again."""


def decisive(cfg: DictConfig) -> str:
    """What of the settings can change a result, as text."""
    idle = [key for key, value in NEUTRAL.items() if OmegaConf.select(cfg, key) == value]
    if cfg.data.get("crop", "none") == "none":
        idle.append("data.margin")  # around no crop
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for key in (*WITHOUT_EFFECT, *idle):
        *parents, leaf = key.split(".")
        section = settings
        for parent in parents:
            section = section[parent]
        section.pop(leaf, None)
    return OmegaConf.to_yaml(settings, sort_keys=True)


def portable(command: str) -> str:
    """A command as it would be typed on another machine: without this one's places that change no result, and with
    PATH for those that must be named."""
    words = []
    for word in shlex.split(command):
        key, equals, value = word.partition("=")
        if key in ("runs_dir", "cache_dir") or key.startswith("tracking."):
            continue
        words.append(f"{key}=PATH" if equals and value.startswith(("/", "~")) else word)
    return " ".join(shlex.quote(word) for word in words)
