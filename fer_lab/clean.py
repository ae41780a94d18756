"""What an audit means for a run: a split without copies, and scores on the faces that have none elsewhere."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError
from fer_lab.evaluation.audits import Audit, Copies, folder_of, read_audit

if TYPE_CHECKING:
    from fer_lab.data.datamodule import FaceData
    from fer_lab.data.faces import Index
    from fer_lab.data.splits import Split
    from fer_lab.evaluate import Judgement

CHOICES = (None, "audit")
IDLE = ("data.root", "data.exclude", "data.bad", "data.batch_size", "data.labels", "split.fold")
LOOKS = ("size", "channels", "crop", "margin")
"""Keys of data that change what its decoded faces look like, and so need an audit of their own."""


def audit_of(cfg: DictConfig, index: Index) -> Audit | None:
    """The audit of exactly these decoded faces, where there is one."""
    from fer_lab.build import file_stamp

    folder = folder_of(index, cfg.cache_dir)
    audit = read_again(folder, file_stamp(folder / "manifest.json"))
    return audit if audit and audit.data == index.digest else None


@cache
def read_again(folder: Path, stamp: tuple[int, int]) -> Audit | None:
    """Read once in a process, and once more where the file has changed."""
    return read_audit(folder)


def without_leaks(cfg: DictConfig, index: Index, split: Split) -> Split:
    """The split as data.exclude wants it. Raises UsageError where it wants an audit that nobody has made."""
    wanted = cfg.data.get("exclude")
    if wanted not in CHOICES:
        raise UsageError(f"data.exclude={wanted}; choices: null, audit")
    if wanted is None:
        return split
    audit = audit_of(cfg, index)
    if audit is None:
        raise UsageError(missing(cfg, index))
    cleaned = Copies.of(audit, index, split).cleaned()
    if not len(cleaned.train) or not len(cleaned.validation):
        raise UsageError(
            f"data.exclude=audit leaves {len(cleaned.train)} faces to train and {len(cleaned.validation)} to "
            "validate: the parts of this split are copies of each other; choose another split"
        )
    return cleaned


def missing(cfg: DictConfig, index: Index) -> str:
    folder = folder_of(index, cfg.cache_dir)
    others = sorted(path.name for path in folder.parent.glob(f"{index.name}-*") if path != folder)
    had = (
        f"; {', '.join(others[:3])} in {folder.parent} is of other files, another size or another crop"
        if others
        else ""
    )
    return (
        f"data.exclude=audit needs an audit of these {len(index):,} faces of {index.name}{had}. "
        f"Make it:\n  {audit_command(cfg)}"
    )


def audit_command(cfg: DictConfig) -> str:
    """The command that audits what `cfg` trains on: its data set and split, with the keys that the user chose."""
    group = str(cfg.data.source._target_).rpartition(".")[0].rpartition(".")[2]
    words = [f"data={group}", *([f"data.root={cfg.data.root}"] if cfg.data.get("root") else [])]
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = [text.partition("=")[0].lstrip("+~") for text in typed]
    words += [
        text
        for key, text in zip(keys, typed, strict=True)
        if key.startswith(("data.", "split")) and key not in IDLE
    ]
    if "recipe" in keys:  # it may have set what the cache depends on
        words += [
            f"data.{key}={cfg.data[key]}" for key in LOOKS if key in cfg.data and f"data.{key}" not in keys
        ]
    if OmegaConf.select(cfg, "cache_dir") != "cache":
        words.append(f"cache_dir={cfg.cache_dir}")
    return " ".join(["python -m fer_lab.audit", *map(shlex.quote, words)])


def told(whole: Judgement, clean: Judgement) -> str:
    """A line for the end of a run: what is left of its first score without the copies."""
    name, score = next(iter(clean.scores.items()))
    return (
        f"{whole.usage}: {name} {score:.4f} on the {len(clean.rows):,} of {len(whole.rows):,} faces that have no copy in "
        f"another part ({whole.scores[name]:.4f} on all)"
    )


def clean_part(cfg: DictConfig, judgement: Judgement, data: FaceData) -> list[Judgement]:
    """The judgement of the faces that have no copy in another part of the split; none where nobody has looked."""
    import numpy as np

    from fer_lab.evaluate import judgement_of

    audit = audit_of(cfg, data.index)
    if audit is None:
        return []
    clean = ~Copies.of(audit, data.index, data.split).leaked(judgement.usage)
    if not clean.any():
        return []
    predictions = [judgement.probabilities, *([] if judgement.affect is None else [judgement.affect])]
    return [
        judgement_of(
            f"{judgement.usage}_clean",
            data.index,
            judgement.rows[clean],
            np.concatenate(predictions, axis=1)[clean],
            judgement.inference_ms,
            judgement.classes,
        )
    ]
