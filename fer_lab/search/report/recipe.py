"""The winner as a recipe: its choices of every group, and the values that these groups do not give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

Compose = Callable[[Sequence[str]], DictConfig]
"""Words to a composed config, hydra node included."""

ELSEWHERE = ("recipe", "sweeps")
"""Groups that only set others: what they said stands in the values."""
UNSAID = ("hydra", "tracking")
"""Sections left out: a tracking address belongs to a place, and may hold a password."""


def write_recipe(path: Path, best: DictConfig, compose_train: Compose, head: Sequence[str]) -> list[str]:
    """Writes `path` so that `--config-dir` of its folder's parent and `recipe=<stem>` compose `best` again, whole
    or not at all; `head` are lines of comment.

    `compose_train` composes what the recipe will be given to. Returns the words that the command needs beside
    the recipe: a file cannot take a key away, `~key` can.
    """
    choices = groups(best, compose_train([]))
    plain = compose_train([f"{group}={choice}" for group, choice in choices.items()])
    values = different(content(plain), content(best))
    text = "\n".join(
        [
            "# @package _global_",
            *(f"# {line}" for line in head),
            "defaults:",
            *(
                f"  - override /{group}: {'null' if choice is None else choice}"
                for group, choice in choices.items()
            ),
            OmegaConf.to_yaml(values) if values else "",
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
    return [f"~{key}" for key in missing(content(plain), content(best))]


def groups(config: DictConfig, base: DictConfig) -> dict[str, str | None]:
    """The choices that `config` made in the groups that `base` has."""
    chosen = config.hydra.runtime.choices
    known = [str(group) for group in base.hydra.runtime.choices]
    return {
        group: chosen[group] for group in known if not group.startswith("hydra/") and group not in ELSEWHERE
    }


def content(config: DictConfig) -> dict[str, Any]:
    """What the config says, interpolations as they are written."""
    said = OmegaConf.masked_copy(config, [str(key) for key in config if key not in UNSAID])
    return OmegaConf.to_container(said, resolve=False)  # type: ignore[return-value]


def different(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `after` that `before` does not say."""
    found = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            value = different(old, value)
            if value:
                found[key] = value
        elif key not in before or value != old or type(value) is not type(old):
            found[key] = value
    return found


def missing(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that `before` has and `after` has not."""
    found = []
    for key, old in before.items():
        if key not in after:
            found.append(f"{prefix}{key}")
        elif isinstance(old, dict) and isinstance(after[key], dict):
            found += missing(old, after[key], f"{prefix}{key}.")
    return found
