"""The winner of a sweep: judged once on faces that no choice has seen, and registered for use."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

REQUIREMENTS = ("torch", "numpy")


def crown(config: DictConfig, name: str) -> dict[str, Any]:
    """Trains (or finds) the run, judges it, registers its net as `models:/name@champion`; the scores by part of the split.

    A tracking store that is down leaves the net unregistered: `registered` is then empty and `sweep report` tries again.
    """
    from fer_lab.evaluate import rebuild
    from fer_lab.tracking.address import tracking_uri
    from fer_lab.tracking.models import register_champion
    from fer_lab.tracking.record import TrackingError
    from fer_lab.tracking.store import mlflow_run_id
    from fer_lab.train import train

    result = train(config)
    folder = Path(config.runs_dir) / result.run
    scores = {
        f"{usage}/{metric}": value
        for usage in ("validation", "test")
        if (path := folder / "figures" / f"{usage}.json").exists()
        for metric, value in json.loads(path.read_text())["scores"].items()
    }
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    module, data = rebuild(folder, saved)
    faces = data.cache.images[data.split.validation[:2]]
    try:
        registered = register_champion(
            tracking_uri(config.tracking.uri), mlflow_run_id(folder, tracking_uri(config.tracking.uri)),
            Predictor(module, data), faces, name,
            requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
            tags={"classes": ", ".join(saved.classes)},
        )  # fmt: skip
    except TrackingError as error:
        print(error)
        registered = ""
    return {"run": result.run, "registered": str(registered), **scores}
