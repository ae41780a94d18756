"""What an audit means for a run: a split without copies, and scores on the faces that have none elsewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import CONF, UsageError
from fer_lab.evaluation.audits import Audit, Copies, folder_of, read_audit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fer_lab.data.datamodule import FaceData
    from fer_lab.data.faces import Index
    from fer_lab.data.splits import Split
    from fer_lab.evaluate import Judgement

CHOICES = (None, "audit")
IDLE = ("data.exclude", "data.bad", "data.batch_size", "data.labels", "split.fold", "split._target_")
"""Keys that an audit does not depend on, or that are said otherwise."""
KEYWORDS = ("null", "true", "false", "nan", "inf")


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
    """The command that audits the faces of `cfg`, a command line's config or a run's: its data set and split with every
    key that is not as conf/ has it, so that the audit is of these very decoded faces."""
    name = str(cfg.data.source._target_).rpartition(".")[0].rpartition(".")[2]
    name = name if (CONF / "data" / f"{name}.yaml").exists() else "folder"
    words = [f"data={name}"]
    usual = audit_config(*words)
    if cfg.split._target_ != usual.split._target_:
        words += [f"split={split_name(str(cfg.split._target_))}"]
        usual = audit_config(*words)
    root = {"root": cfg.data.get("root")} if cfg.data.get("root") else {}
    words += changes("data", root, usual)  # the first thing to look for in a command
    for section in ("data", "split"):
        words += changes(section, leaves(OmegaConf.to_container(cfg[section], resolve=True)), usual)
    if str(cfg.cache_dir) != str(usual.cache_dir):
        words.append(f"cache_dir={word(cfg.cache_dir)}")
    return " ".join(["python -m fer_lab.audit", *map(quoted, words)])


def audit_config(*words: str) -> DictConfig:
    """`python -m fer_lab.audit …` as a config; also from within an entry point."""
    if GlobalHydra.instance().is_initialized():
        return hydra.compose("audit", overrides=list(words))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("audit", overrides=list(words))


def split_name(target: str) -> str:
    """The choice of split= that makes it."""
    files = {
        str(OmegaConf.select(OmegaConf.load(path), "_target_")): path.stem
        for path in (CONF / "split").glob("*.yaml")
    }
    return files.get(target, "official")


def changes(section: str, wanted: Mapping[str, Any], usual: DictConfig) -> list[str]:
    """The words that give a section its wanted values, {dotted key: value}; `usual` gets them as well.

    Keys that refer to others come last: what they refer to may have set them right by then.
    """
    words = []
    for referring in (False, True):
        for key, value in wanted.items():
            raw = leaves(OmegaConf.to_container(usual[section]))
            now = leaves(OmegaConf.to_container(usual[section], resolve=True))
            if ("${" in str(raw.get(key))) != referring or f"{section}.{key}" in IDLE:
                continue
            if key not in now or now[key] != value:
                words.append(f"{'' if key in now else '+'}{section}.{key}={word(value)}")
                OmegaConf.update(usual, f"{section}.{key}", value, force_add=True)
    return words


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted key: value}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def word(value: Any) -> str:
    """A value in Hydra's grammar, quoted where it needs to be."""
    if isinstance(value, list):
        return f"[{','.join(map(word, value))}]"
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else str(value).lower()
    text = str(value)
    if re.fullmatch(r"[A-Za-z_/.][\w/.@%+-]*", text) and text.lower() not in KEYWORDS:
        return text
    closed = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (found[2] and "\\'"), text)
    return f"'{closed}'"


def quoted(text: str) -> str:
    """For a shell; Hydra's own quotes within are left readable where they can be."""
    return f'"{text}"' if "'" in text and not re.search(r'["$`\\!]', text) else shlex.quote(text)


def told(whole: Judgement, clean: Judgement) -> str:
    """A line for the end of a run: what is left of its first score without the copies."""
    name, score = next(iter(clean.scores.items()))
    return (
        f"{whole.usage}: {name} {score:.4f} on the {len(clean.rows):,} of {len(whole.rows):,} faces that have no copy in "
        f"another part ({whole.scores[name]:.4f} on all)"
    )


def clean_part(cfg: DictConfig, judgement: Judgement, data: FaceData) -> list[Judgement]:
    """The judgement of the faces that have no copy in another part of the split; none where nobody has looked."""
    audit = audit_of(cfg, data.index)
    if audit is None:
        return []
    return without(judgement, data.index, Copies.of(audit, data.index, data.split).leaked(judgement.usage))


def without(judgement: Judgement, index: Index, copied: NDArray[np.bool_]) -> list[Judgement]:
    """The same predictions judged without the faces that are `copied` (N,); none where no face is left."""
    import numpy as np

    from fer_lab.evaluate import judgement_of

    if copied.all():
        return []
    predictions = [judgement.probabilities, *([] if judgement.affect is None else [judgement.affect])]
    return [
        judgement_of(
            f"{judgement.usage}_clean",
            index,
            judgement.rows[~copied],
            np.concatenate(predictions, axis=1)[~copied],
            judgement.inference_ms,
            judgement.classes,
        )
    ]


def write_clean(whole: Judgement, found: list[Judgement], folder: Path) -> list[Path]:
    """The scores of the clean part beside those of the whole, and a line on the terminal."""
    from fer_lab.evaluate import write_scores

    for clean in found:
        print(told(whole, clean))
    return [write_scores(clean, folder) for clean in found]
