"""A frozen backbone's features, computed once: the same losses as looking at every picture again."""

from __future__ import annotations

import hydra
import pytest
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning.callbacks import Checkpoint

from fer_lab.build import build_data, build_module
from fer_lab.cli import CONF
from fer_lab.frozen import use_frozen_features
from fer_lab.learning.callbacks import Checkpoints

SMALL = (
    "model=vgg16_bn", "model.weights=null", "data.source.train=42", "data.source.validation=14",
    "data.source.test=14", "data.size=32", "data.batch_size=16", "optimizer=sgd", "scheduler=none",
)  # fmt: skip


def parts(tmp_path, *words: str):
    """Data and module of a small frozen VGG."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [*SMALL, f"cache_dir={tmp_path}", *words]
        cfg = hydra.compose("train", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    data = build_data(cfg)
    return data, build_module(cfg, data, None)


def fit(tmp_path, data, module, *callbacks: pl.Callback, epochs: int = 3, resumed=None):
    """The logged losses of every epoch."""
    losses: list[dict[str, float]] = []

    class Listener(Checkpoint):  # called last, when the epoch is logged
        def on_train_epoch_end(self, trainer, pl_module):
            losses.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[Listener(), *callbacks],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    ).fit(module, datamodule=data, ckpt_path=resumed, weights_only=True if resumed else None)  # fmt: skip
    return losses


def history(tmp_path, cached: bool, *words: str) -> list[dict[str, float]]:
    data, module = parts(tmp_path, *words)
    used = use_frozen_features(data, module, str(tmp_path)) if cached else False
    assert used == cached
    return fit(tmp_path, data, module)


@pytest.mark.parametrize(
    "words", [("augment=none",), ("augment=standard", "augment.views=3")], ids=["plain", "views"]
)
def test_cached_features_give_the_losses_of_the_images(tmp_path, words):
    looking, cached, reused = (history(tmp_path, flag, *words) for flag in (False, True, True))
    assert len(cached) == 3
    for one, other in zip(looking, cached, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert cached == reused
    assert len(list((tmp_path / "features").glob("*/features.npy"))) == 1


@pytest.mark.parametrize(
    "words",
    [("augment=standard",), ("augment=none", "model.freeze=none"), ("augment=none", "augment.mixup=0.2")],
    ids=["random", "learning", "mixup"],
)
def test_features_are_not_used_where_the_backbone_sees_something_new_each_time(tmp_path, words):
    data, module = parts(tmp_path, *words)
    assert not use_frozen_features(data, module, str(tmp_path))
    assert data.features is None


def test_other_weights_data_or_views_get_other_features(tmp_path):
    other = ((), ("seed=1",), ("data.source.seed=1",), ("augment=light", "augment.views=2"))
    for words in (*other, *other):
        use_frozen_features(*parts(tmp_path, *words), str(tmp_path))
    assert len(list((tmp_path / "features").glob("*/features.npy"))) == 4


def test_checkpoints_leave_frozen_weights_out_and_a_resumed_run_goes_on_as_if_nothing_had_been(tmp_path):
    def keeper(name: str) -> Checkpoints:
        (tmp_path / name).mkdir(exist_ok=True)
        checkpoints = Checkpoints(tmp_path / name, "val/loss", "min")
        checkpoints.share = 1.0  # written at every epoch
        return checkpoints

    whole = fit(tmp_path, *parts(tmp_path), keeper("whole"), epochs=4)
    first = fit(tmp_path, *parts(tmp_path), keeper("half"), epochs=2)
    last = tmp_path / "half/last.ckpt"
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert any(name.startswith("net.head") for name in saved)
    assert not any(name.startswith("net.backbone") and name.endswith("weight") for name in saved)
    rest = fit(tmp_path, *parts(tmp_path), keeper("half"), epochs=4, resumed=last)
    assert [*first, *rest] == whole
    best = [torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("half", "whole")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])
    assert best[0].keys() == parts(tmp_path)[1].net.state_dict().keys()
