"""Pretrain, then fine-tune: layer-wise rates, gradual unfreezing and scaled rates. Oracles: rates worked out by hand, the
weights that move, and a run that was not interrupted."""

from __future__ import annotations

import hydra
import pytest
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning.callbacks import Checkpoint

from fer_lab.build import build_data, build_module, refuse_wrong_sizes
from fer_lab.cli import CONF, UsageError
from fer_lab.frozen import net_on_shared_backbone, use_frozen_features
from fer_lab.learning.callbacks import Checkpoints
from fer_lab.learning.module import LearningError
from fer_lab.learning.optimizers import SGDW, Muon
from fer_lab.learning.rates import Rates
from fer_lab.models.densenet import DenseNet
from fer_lab.models.small import Small
from fer_lab.models.weights import before, freeze, frozen_parts, load_weights, parts, unfreeze

SMALL = (
    "model=small", "data.source.train=42", "data.source.validation=14", "data.source.test=14", "data.size=16",
    "data.batch_size=16", "optimizer=sgd", "scheduler=none", "augment=none",
)  # fmt: skip
FROM_BELOW = [
    "backbone.0",
    "backbone.1",
    "backbone.3",
    "backbone.4",
    "backbone.5",
]  # Small's, with parameters


def composed(tmp_path, *words: str):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [*SMALL, f"cache_dir={tmp_path}", *words]
        cfg = hydra.compose("train", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def built(tmp_path, *words: str):
    cfg = composed(tmp_path, *words)
    data = build_data(cfg)
    return data, build_module(cfg, data, None)


def same(ours, theirs) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


class Listener(Checkpoint):  # called last, when the epoch is logged
    """The losses of every epoch, and the parts of the net whose weights moved in it."""

    def __init__(self, module):
        self.losses, self.moved = [], []
        self.seen = self.sums(module)

    @staticmethod
    def sums(module):
        names = [*parts(module.net), "head"]
        return {
            name: [weight.detach().clone() for weight in module.net.get_submodule(name).parameters()]
            for name in names
        }

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        now = self.sums(pl_module)
        self.moved.append([name for name, weights in now.items() if not same(weights, self.seen[name])])
        self.seen = now


def fit(tmp_path, data, module, *callbacks: pl.Callback, epochs: int, resumed=None) -> Listener:
    listener = Listener(module)
    pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[listener, *callbacks],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    ).fit(module, datamodule=data, ckpt_path=resumed, weights_only=True if resumed else None)  # fmt: skip
    return listener


def rate_of(optimizer, tensor):
    (group,) = (one for one in optimizer.param_groups if any(tensor is each for each in one["params"]))
    return group["lr"]


def test_each_part_learns_at_a_share_of_the_rate_above_it():
    net = Small(classes=7, size=16)
    optimizer = Rates(layer_decay=0.5).optimizer(lambda groups: torch.optim.SGD(groups, lr=0.8), net, 1)
    expected = dict(zip(["head", *reversed(FROM_BELOW)], [0.8, 0.4, 0.2, 0.1, 0.05, 0.025], strict=True))
    for name, rate in expected.items():
        for weight in net.get_submodule(name).parameters():
            assert rate_of(optimizer, weight) == pytest.approx(rate), name
    assert optimizer.param_groups[0]["lr"] == 0.8, "the rate that is logged is the head's"
    held = [one for group in optimizer.param_groups for one in group["params"]]
    assert len(held) == len({id(one) for one in held}) == len(list(net.parameters()))
    assert {
        group["weight_decay"]
        for group in optimizer.param_groups
        if any(one.ndim <= 1 for one in group["params"])
    } == {0.0}


def test_both_rates_of_muon_follow_the_parts_and_the_processes():
    net = Small(classes=7, size=16)
    rates = Rates(layer_decay=0.5, scale_lr="linear")
    optimizer = rates.optimizer(lambda groups: Muon(groups, lr=0.08, adam_lr=0.004), net, 4)
    top = net.get_submodule("backbone.5")
    assert rate_of(optimizer, net.head[1].weight) == pytest.approx(0.004 * 4)
    assert rate_of(optimizer, top.first.weight) == pytest.approx(0.08 * 4 / 2)
    assert rate_of(optimizer, top.first_norm.weight) == pytest.approx(0.004 * 4 / 2)
    assert rate_of(optimizer, net.backbone[0].weight) == pytest.approx(0.004 * 4 / 32)


def test_rate_and_decay_grow_with_the_processes_as_in_r4():
    net = Small(classes=7, size=16)

    def make(groups):
        return SGDW(groups, lr=0.025, momentum=0.9, nesterov=True, weight_decay=0.01)

    for processes, scale, expected in ((4, "linear", (0.1, 0.04)), (4, "none", (0.025, 0.01)), (1, "linear", (0.025, 0.01))):  # fmt: skip
        decaying, steady = Rates(scale_lr=scale).optimizer(make, net, processes).param_groups
        assert (decaying["lr"], decaying["weight_decay"]) == pytest.approx(expected)
        assert (steady["lr"], steady["weight_decay"]) == (pytest.approx(expected[0]), 0.0)


def test_parts_are_unfrozen_from_above_epoch_by_epoch(tmp_path):
    data, module = built(tmp_path, "model.freeze=backbone", "unfreeze=2")
    assert module.frozen == FROM_BELOW
    listener = fit(tmp_path, data, module, epochs=6)
    learning = [["head"], ["backbone.5", "head"], ["backbone.4", "backbone.5", "head"]]
    assert listener.moved == [learning[0], learning[0], learning[1], learning[1], learning[2], learning[2]]
    assert module.net.backbone[4].first_norm.training and not module.net.backbone[1].training


def test_what_was_frozen_before_a_module_is_unfrozen_from_there_down():
    with torch.device("meta"):
        net = DenseNet(depth=121, classes=8, size=32)
    frozen = freeze(net, "denseblock1.denselayer2.conv2")
    assert frozen == (
        "backbone.conv0", "backbone.norm0", "backbone.denseblock1.denselayer1",
        "backbone.denseblock1.denselayer2.norm1", "backbone.denseblock1.denselayer2.conv1",
        "backbone.denseblock1.denselayer2.norm2",
    )  # fmt: skip
    assert list(frozen) == frozen_parts(net) == before(net, "denseblock1.denselayer2.conv2")
    assert net.backbone.denseblock1.denselayer2.conv2.weight.requires_grad
    assert net.backbone.denseblock1.denselayer3.conv1.weight.requires_grad
    unfreeze(net, frozen, 2)
    assert frozen_parts(net) == list(frozen[:-2])
    assert freeze(net, "backbone.conv0") == ()


@pytest.mark.parametrize("words", [(), ("ema=0.9", "layer_decay=0.5", "optimizer=adamw")])
def test_a_run_interrupted_while_unfreezing_goes_on_as_if_nothing_had_been(tmp_path, words):
    words = ("model.freeze=backbone", "unfreeze=1", "model.dropout=0.2", *words)

    def keeper(name: str) -> Checkpoints:
        (tmp_path / name).mkdir(exist_ok=True)
        checkpoints = Checkpoints(tmp_path / name, "val/loss", "min")
        checkpoints.share = 1.0  # written at every epoch
        return checkpoints

    whole = fit(tmp_path, *built(tmp_path, *words), keeper("whole"), epochs=4)
    first = fit(tmp_path, *built(tmp_path, *words), keeper("half"), epochs=2)
    rest = fit(
        tmp_path, *built(tmp_path, *words), keeper("half"), epochs=4, resumed=tmp_path / "half/last.ckpt"
    )
    assert [*first.losses, *rest.losses] == whole.losses
    assert whole.moved[3] == [*FROM_BELOW[2:], "head"]
    best = [torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("half", "whole")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])


def test_the_best_weights_are_of_one_epoch_also_where_they_were_frozen_in_it(tmp_path):
    """What is frozen in the best epoch learns later on, and must not slip into best.pt."""
    data, module = built(tmp_path, "model.freeze=backbone", "unfreeze=1")
    start = {name: value.clone() for name, value in module.net.state_dict().items()}
    checkpoints = Checkpoints(tmp_path, "train/loss", "max")  # the highest of falling losses is an early one
    checkpoints.share = 1e-9  # best.pt is written when all is over
    listener = fit(tmp_path, data, module, checkpoints, epochs=3)
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    epoch = checkpoints.best_epoch
    assert epoch < 2 and FROM_BELOW[-1 - epoch] in listener.moved[epoch + 1]
    for name in FROM_BELOW[: 5 - epoch]:
        weights = module.net.get_submodule(name).named_parameters(prefix=name)
        assert all(torch.equal(best[each], start[each]) for each, _ in weights)
    module.net.load_state_dict(best)
    again = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (found,) = again.validate(module, datamodule=data, verbose=False)
    assert found["val/loss"] == pytest.approx(listener.losses[epoch]["val/loss"], rel=1e-5)


def test_no_features_are_kept_and_no_backbone_is_shared_of_what_will_learn(tmp_path):
    words = ("model.freeze=backbone", "unfreeze=1")
    data, module = built(tmp_path, *words)
    assert not use_frozen_features(data, module, str(tmp_path))
    cfg = composed(tmp_path, *words, "+output_count=7", "+size=16")
    assert net_on_shared_backbone(cfg, None).backbone is not net_on_shared_backbone(cfg, None).backbone


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("unfreeze=1",), r"unfreeze=1: nothing of the backbone is frozen; choose model\.freeze=backbone"),
        (("unfreeze=5", "model.freeze=backbone"), r"the 2 epochs of training end before.*choose 1\.\.1"),
        (("layer_decay=0.5", "model.freeze=backbone"), r"layer_decay=0\.5: the whole backbone is frozen"),
    ],
)
def test_what_could_change_nothing_is_refused(tmp_path, words, text):
    data, module = built(tmp_path, *words)
    with pytest.raises(LearningError, match=text):
        fit(tmp_path, data, module, epochs=2)


def test_unfreezing_in_several_processes_is_refused():
    with pytest.raises(ValueError, match=r"unfreeze=1 with 2 processes.*trainer\.devices=1"):
        Rates(unfreeze=1).optimizer(lambda groups: torch.optim.SGD(groups), Small(classes=7, size=16), 2)


def test_settings_out_of_range_are_named_together(tmp_path):
    cfg = composed(tmp_path, "layer_decay=1.5", "unfreeze=0", "scale_lr=sqrt")
    with pytest.raises(UsageError) as error:
        refuse_wrong_sizes(cfg)
    for part in (
        "layer_decay=1.5: expected",
        "unfreeze=0: expected",
        "scale_lr=sqrt: expected none or linear",
    ):
        assert part in str(error.value)


def test_weights_of_seven_classes_start_a_net_of_eight(tmp_path):
    """R1's two commands: RAF-DB has seven classes, AffectNet eight."""
    first, second = Small(classes=7, size=16), Small(classes=8, size=16)
    torch.save(first.state_dict(), tmp_path / "best.pt")
    own = second.head[1].weight.clone()
    loaded = load_weights(second, tmp_path / "best.pt")
    assert same(first.backbone.parameters(), second.backbone.parameters())
    assert torch.equal(second.head[1].weight, own) and loaded.dropped == ("head.1.weight", "head.1.bias")
