"""A frozen backbone's features, computed once: the same losses as looking at every picture again."""

from __future__ import annotations

import hydra
import pytest
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig

from fer_lab.build import build_data, build_module, use_frozen_features
from fer_lab.cli import CONF


def history(tmp_path, cached: bool, *words: str) -> list[dict[str, float]]:
    """The logged losses of three epochs."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(
            "train",
            overrides=[
                "model=vgg16_bn", "model.weights=null", "data.source.train=42", "data.source.validation=14",
                "data.source.test=14", "data.size=32", "data.batch_size=16", "optimizer=sgd", "scheduler=none",
                f"cache_dir={tmp_path}", *words,
            ],
            return_hydra_config=True,
        )  # fmt: skip
    HydraConfig.instance().set_config(cfg)
    data = build_data(cfg)
    module = build_module(cfg, data, None)
    used = use_frozen_features(data, module, cfg.cache_dir) if cached else False
    assert used == cached
    losses: list[dict[str, float]] = []

    class Listener(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            losses.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, callbacks=[Listener()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    ).fit(module, datamodule=data)  # fmt: skip
    return losses


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


def test_features_are_not_used_where_the_backbone_sees_something_new_each_time(tmp_path):
    for words in (
        ("augment=standard",),
        ("augment=none", "model.freeze=none"),
        ("augment=none", "augment.mixup=0.2"),
    ):
        with pytest.raises(AssertionError):
            history(tmp_path, True, *words)


def test_other_weights_data_or_views_get_other_features(tmp_path):
    for words in (
        ("augment=none",),
        ("augment=none", "seed=1"),
        ("augment=none", "data.source.seed=1"),
        ("augment=light", "augment.views=2"),
    ):
        history(tmp_path, True, *words)
    assert len(list((tmp_path / "features").glob("*/features.npy"))) == 4
    assert torch.isfinite(torch.tensor(list(history(tmp_path, True, "augment=none")[0].values()))).all()
