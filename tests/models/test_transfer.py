"""A linear head on a frozen map: the weights of a trained small fit, and training ends where scikit-learn does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from fer_lab.build import build_data
from fer_lab.evaluation.predictions import read_predictions
from fer_lab.folds import FoldJob, predict_test
from fer_lab.learning.lbfgs import LBFGS, SecondStep
from fer_lab.models.small import Small
from fer_lab.models.small_transfer import NotTheWhole, Scale, SmallTransfer
from fer_lab.models.weights import WeightsError, load_weights
from fer_lab.tracking.forward import settle
from fer_lab.train import train
from tests.composing import composed

DECAY = 0.3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Small of eight classes with batch norms that have seen something."""
    torch.manual_seed(3)
    net = Small(classes=8, size=32)
    net(torch.randn(64, 1, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    torch.save(net.state_dict(), path)
    return path


def features(path: Path, images: np.ndarray) -> np.ndarray:
    """(N, 1152): the last map over 3x3 fields, of the face and its mirror image in nine places, with plain torch."""
    net = Small(classes=8, size=32)
    net.load_state_dict(torch.load(path, weights_only=True))
    views = torch.from_numpy(images).float() / 255
    centred = (views - views.mean((2, 3), keepdim=True)) / views.std((2, 3), keepdim=True).clamp_min(0.04)
    with torch.no_grad():
        edge = functional.pad(centred, (2, 2, 2, 2), mode="replicate")
        views = [edge[..., y : y + 32, x : x + 32] for y in (0, 2, 4) for x in (0, 2, 4)]
        maps = [net.eval().backbone[:6](one) for view in views for one in (view, view.flip(-1))]
        return (sum(functional.adaptive_avg_pool2d(one, 3).flatten(1) for one in maps) / 18).double().numpy()


def test_training_ends_where_scikit_learn_does(tmp_path, weights):
    words = (
        "model=small_transfer", f"model.weights={weights}", f"optimizer.weight_decay={DECAY}",
        "augment=none", "scheduler=none", "split=kfold", "split.folds=3", "data.source.train=56",
        "data.source.validation=14", "data.source.test=14", "data.size=32", "data.batch_size=256",
        "trainer.max_epochs=1", "trainer.accelerator=cpu", "threads=1",
    )  # fmt: skip
    cfg = composed("train", tmp_path, *words)
    run = train(cfg, FoldJob("fold", parent=""), predict_test).run
    settle()
    found = read_predictions(tmp_path / "runs" / run / "figures/test_predictions.csv")

    data = build_data(cfg)
    split, labels = data.split, data.index.labels
    seen = features(weights, data.cache.images)
    centre, deviation = seen[split.train].mean(0), seen[split.train].std(0)
    alive = deviation > 1e-6 * deviation.max()
    scaled = (seen - centre) / np.sqrt(np.where(alive, deviation, np.inf))
    scaled /= np.sqrt((scaled[split.train] ** 2).mean())
    oracle = LogisticRegression(C=1 / (len(split.train) * DECAY), max_iter=5000, tol=1e-10)
    oracle.fit(scaled[split.train], labels[split.train])
    np.testing.assert_allclose(found.values, oracle.predict_proba(scaled[split.test]), atol=3e-3)


def test_the_weights_of_a_trained_small_fit_and_those_of_another_side_do_not(weights, tmp_path):
    net = SmallTransfer(classes=7, size=32)
    loaded = load_weights(net, weights)
    assert all(name in loaded.loaded for name in net.state_dict() if name.startswith("backbone."))
    assert set(loaded.missing) == {"head.0.mean", "head.0.scale", "head.1.weight", "head.1.bias"}
    state = torch.load(weights, weights_only=True)
    del state["backbone.5.second.weight"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(WeightsError, match=r"backbone.5.second.weight .* is absent"):
        load_weights(net, tmp_path / "part.pt")


def test_a_face_and_its_mirror_image_are_the_same():
    net = SmallTransfer(classes=7, size=48, pool=2).eval()
    images = torch.randn(4, 1, 48, 48)
    torch.testing.assert_close(net(images), net(images.flip(-1)))
    assert net.backbone(images).shape == (4, 128 * 4)
    assert repr(net.backbone) != repr(SmallTransfer(classes=7, size=48, pool=2, shift=1).backbone)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_scaling_by_a_power_of_the_deviation(power):
    seen = np.random.default_rng(0).normal(2, [0.1, 1, 5, 0], size=(50, 4))
    scale = Scale(4, power)
    found = scale.train()(torch.from_numpy(seen).float()).numpy()
    deviation = np.array([*seen[:, :3].std(0), 1])
    wanted = (seen - seen.mean(0)) / deviation**power * [1, 1, 1, 0]
    np.testing.assert_allclose(found, wanted / np.sqrt((wanted**2).mean()), atol=1e-5)
    later = scale.eval()(torch.zeros(1, 4))  # the training part's numbers stay
    torch.testing.assert_close(later[0], -scale.mean * scale.scale)


def test_lbfgs_takes_one_step_and_no_second():
    head = torch.nn.Linear(3, 2)
    optimizer = LBFGS(head.parameters())
    optimizer.step(lambda: head(torch.ones(4, 3)).square().mean())
    with pytest.raises(
        SecondStep, match=r"set data.batch_size to their number or more and trainer.max_epochs=1"
    ):
        optimizer.step(lambda: head(torch.ones(4, 3)).square().mean())


def test_features_are_scaled_by_all_faces_in_any_order_and_never_by_a_part():
    seen = torch.randn(50, 4) + 2
    scale = Scale(4).train()
    first = scale(seen)
    torch.testing.assert_close(scale(seen.flip(0)).flip(0), first)
    with pytest.raises(NotTheWhole, match=r"set data.batch_size to their number or more, augment=none"):
        scale(seen[:40])
    torch.testing.assert_close(scale.eval()(seen[:1]), first[:1])


def test_the_net_alone_brings_what_it_needs_and_says_what_it_lacks(tmp_path, weights):
    cfg = small(tmp_path, "data.batch_size=16")
    assert "_target_" not in cfg.scheduler and not (cfg.augment.flip or cfg.augment.shift)
    with pytest.raises((SecondStep, NotTheWhole), match=r"data.batch_size to their number"):
        train(small(tmp_path, f"model.weights={weights}", "data.batch_size=16"))
    settle()


def small(place: Path, *words: str) -> DictConfig:
    usual = (
        "model=small_transfer", "data.source.train=28", "data.source.validation=14", "data.source.test=14",
        "data.size=32", "trainer.max_epochs=1", "trainer.accelerator=cpu", "threads=1",
    )  # fmt: skip
    return composed("train", place, *usual, *words)


def test_a_head_alone_is_what_lbfgs_is_for():
    with pytest.raises(ValueError, match=r"not for convolutions: model.freeze=backbone"):
        LBFGS(torch.nn.Conv2d(1, 1, 3).parameters())
