"""The winner of a sweep: judged once on faces that no choice has seen, and registered for use."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from torch import nn

    from fer_lab.data.datamodule import FaceData
    from fer_lab.learning.module import FerModule

REQUIREMENTS = ("torch", "numpy")
SHOWN = ("accuracy", "balanced_accuracy", "f1_macro", "ccc", "ccc_valence", "ccc_arousal")


def crown(config: DictConfig, name: str) -> dict[str, Any]:
    """Trains (or finds) the run, judges it, registers its net as `models:/name@champion`. Returns the run's name, the
    scores as validation/… and test/…, and the version registered: empty where the tracking store does not take it,
    which is said and can be made up for by the same sweep again."""
    from fer_lab.evaluate import rebuild
    from fer_lab.tracking.address import redacted, tracking_uri
    from fer_lab.tracking.models import register_champion
    from fer_lab.tracking.record import TrackingError
    from fer_lab.tracking.store import forwarded
    from fer_lab.train import train

    folder = Path(config.runs_dir) / train(config).run
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    module, data = rebuild(folder, saved)
    uri = tracking_uri(config.tracking.uri)
    try:
        registered = register_champion(
            uri,
            forwarded(folder).get(redacted(uri), {}).get("run_id", ""),
            predictor(module, data, saved.views),
            data.cache.images[data.split.validation[:2]],
            name,
            requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
            tags={"classes": ", ".join(saved.classes), "fer.run": folder.name},
        )
    except TrackingError as error:
        print(error)
        registered = ""
    return {
        "run": folder.name,
        "registered": f"models:/{name}@champion" if registered else "",
        **scores(folder),
    }


def predictor(module: FerModule, data: FaceData, views: str) -> nn.Module:
    """Pixels (B, C, H, W) uint8 of the data's size to what the task tells (B, K | 2 | K + 2), test-time views and all, on the CPU."""
    import torch
    from torch import Tensor, nn

    class Predictor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.preprocess = module.judged.cpu(), module.preprocess.cpu()

        def forward(self, images: Tensor) -> Tensor:
            shown = data.augment.test_views(images, views)  # (V, B, C, H, W)
            found = [module.task.predictions(self.net(self.preprocess(view))) for view in shown]
            return torch.stack(found).mean(0)

    return Predictor().eval()


def scores(folder: Path) -> dict[str, float]:
    """What judging the run wrote down."""
    found: dict[str, float] = {}
    for usage in ("validation", "test"):
        path = folder / "figures" / f"{usage}.json"
        if path.exists():
            known = json.loads(path.read_text())["scores"]
            found |= {f"{usage}/{metric}": known[metric] for metric in SHOWN if metric in known}
    return found
