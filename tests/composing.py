"""The configs that commands would compose, for tests that call an entry point's own function."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import CONF


def plain(entry: str, *words: str) -> DictConfig:
    """As `python -m fer_lab.ENTRY WORDS` hands it on, with Hydra's own node where a run looks for it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(entry, overrides=list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    found = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    OmegaConf.set_struct(found, False)
    return found


def composed(entry: str, home: Path, *words: str, runs: str = "runs") -> DictConfig:
    """With runs, caches and the tracking store below `home`."""
    places = (
        f"runs_dir={home}/{runs}",
        f"cache_dir={home}/cache",
        f"tracking.uri=sqlite:///{home}/mlflow.db",
    )
    return plain(entry, *places, *words)
