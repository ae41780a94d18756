"""What a net looks at: maps of a net that is known to look at one corner, and the command on a run."""

from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from fer_lab.build import build_data, build_module
from fer_lab.cli import CONF, UsageError
from fer_lab.evaluation import maps
from fer_lab.evaluation.explain import (
    feature_maps,
    first_filters,
    grad_cam,
    hide,
    largest,
    last_map,
    occlusion,
    sanity,
    steps,
    without_surprises,
)
from fer_lab.explain import explain, named, surest, worst
from fer_lab.models.resnet import ResNet18
from fer_lab.models.small import Small
from fer_lab.ours import composed

SIDE = 24


class Window(nn.Module):
    """All that it lets through is the upper right corner."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(x)
        mask[..., : SIDE // 3, -SIDE // 3 :] = 1
        return x * mask


class Corner(nn.Module):
    """Tells bright corners (class 1) from dark ones; nothing of it can learn any more."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(1, 2, 3, padding=1)
        pooled = (nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.backbone = nn.Sequential(Window(), convolution, *pooled)
        self.head = nn.Linear(2, 3)
        nn.init.constant_(convolution.weight, 1 / 9)
        nn.init.constant_(convolution.bias, 0)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0], [30.0, 10.0], [0.0, -5.0]]))
            self.head.bias.copy_(torch.tensor([1.0, 0.0, 0.5]))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


@pytest.fixture
def net() -> nn.Module:
    return without_surprises(Corner())


@pytest.fixture
def faces() -> torch.Tensor:
    found = 0.3 * torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found[..., : SIDE // 3, -SIDE // 3 :] += 0.6
    return found


def in_corner(found: torch.Tensor) -> torch.Tensor:
    """Share of each map that lies where the net looks."""
    return found[:, : SIDE // 3, -SIDE // 3 :].sum((1, 2)) / found.sum((1, 2))


def test_both_maps_point_at_the_corner_though_the_net_is_frozen(net, faces) -> None:
    targets = net(faces).argmax(1)
    assert targets.tolist() == [1] * 6
    layer = last_map(steps(net, faces))
    assert (layer.name, layer.shape) == ("backbone.1", (2, SIDE, SIDE))
    cams = grad_cam(net, layer.module, faces, targets)
    hidden = occlusion(net, faces, targets)
    for found in (cams, hidden):
        assert found.shape == (6, SIDE, SIDE) and not found.requires_grad
        assert (in_corner(found.clamp_min(0)) > 0.7).all()
        peaks = found.flatten(1).argmax(1)
        assert (peaks // SIDE < SIDE // 3).all() and (peaks % SIDE >= SIDE - SIDE // 3).all()
    assert cams.amin() == 0 and cams.amax((1, 2)).tolist() == pytest.approx([1] * 6)


def test_grad_cam_is_its_definition() -> None:
    torch.manual_seed(0)
    small = without_surprises(Small(classes=4, size=24))
    nn.init.normal_(small.head[-1].weight)
    images, targets = torch.rand(3, 1, 24, 24), torch.tensor([0, 2, 3])
    layer = last_map(steps(small, images))
    assert layer.kind == "Residual" and layer.shape == (128, 3, 3)
    activations = small.backbone[:-2](images).detach().requires_grad_(True)
    small.head(small.backbone[-2:](activations))[torch.arange(3), targets].sum().backward()
    weights = activations.grad.mean((2, 3), keepdim=True)
    coarse = (weights * activations).sum(1, keepdim=True).clamp_min(0).detach()
    expected = nn.functional.interpolate(coarse, (24, 24), mode="bilinear")[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(grad_cam(small, layer.module, images, targets), expected)


def test_occlusion_is_the_mean_fall_over_the_windows_that_hide_a_place(net, faces) -> None:
    targets, side, step = torch.ones(6, dtype=torch.long), 8, 4
    before = net(faces).softmax(1)[:, 1]
    fall, times = torch.zeros(6, SIDE, SIDE), torch.zeros(SIDE, SIDE)
    for top in range(0, SIDE - side + 1, step):
        for left in range(0, SIDE - side + 1, step):
            mask = torch.zeros(6, SIDE, SIDE, dtype=torch.bool)
            mask[:, top : top + side, left : left + side] = True
            fall += mask * (before - net(hide(faces, mask)).softmax(1)[:, 1])[:, None, None]
            times += mask[0]
    torch.testing.assert_close(occlusion(net, faces, targets, window=side), fall / times)


def test_the_check_tells_maps_that_mark_from_maps_that_do_not(net, faces) -> None:
    layer = last_map(steps(net, faces)).module
    good = sanity(net, layer, faces)
    assert (
        good.marked > 0.2 and good.interval.low > 0 and ": the maps mark what the net uses" in good.sentence
    )
    net.head.weight.zero_()  # it looks at nothing any more
    bad = sanity(net, layer, faces)
    assert (bad.marked, bad.elsewhere) == (0, 0) and "NOT shown" in bad.sentence
    masks = largest(torch.arange(100.0).reshape(1, 10, 10), 0.2)
    assert masks.sum() == 20 and masks[0, 8:].all()


def test_the_net_is_walked_in_order_with_all_its_parameters() -> None:
    for net in (Small(classes=7, size=48), ResNet18(classes=7, size=48)):
        found = steps(net.eval(), torch.rand(2, 1, 48, 48))
        assert sum(step.parameters for step in found) == sum(one.numel() for one in net.parameters())
        assert found[-1].shape == (7,) and not any(module._forward_hooks for module in net.modules())
        words = " ".join(text.get_text() for text in maps.graph(found, "Net", (1, 48, 48)).axes[0].texts)
        assert "Conv2d" in words and "AdaptiveAvgPool2d + Flatten" in words and "128×" in words
    with pytest.raises(ValueError, match=r"no convolution .* \(Flatten, Linear\)"):
        last_map(steps(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(1, 1, 2, 2)))


def test_filters_and_feature_maps_are_the_nets_own(net, faces) -> None:
    np.testing.assert_allclose(first_filters(net), np.full((2, 1, 3, 3), 1 / 9), rtol=1e-6)
    ((step, found),) = feature_maps(net, faces[:1], steps(net, faces), layers=5, channels=1)
    np.testing.assert_allclose(found[0], net.backbone[:2](faces[:1])[0, 0], rtol=1e-6)
    assert len(maps.features(faces[0].numpy(), [(step, found)]).axes) == 2


def test_faces_are_chosen_by_what_was_said_of_them() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    found = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.45, 0.55], [0.95, 0.05]], dtype=np.float32)
    assert worst(labels, found).tolist() == [4, 1]
    assert surest(labels, found).tolist() == [0, 2, 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with the net's first weights, its backbone frozen."""
    place = tmp_path_factory.mktemp("explain")
    words = ["data=synthetic", "data.source.train=14", "data.source.validation=14", "data.source.test=14"]
    config = composed(
        None, *words, f"cache_dir={place}/cache", "data.size=32", "model.freeze=backbone", "threads=1"
    )
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    config.name = "frozen"
    module = build_module(config, build_data(config), weights=None)
    folder = place / "runs/frozen"
    (folder / "figures").mkdir(parents=True)  # as of a run that was cut off before it was judged
    torch.save(module.judged.state_dict(), folder / "best.pt")
    OmegaConf.save(OmegaConf.to_container(config, resolve=True), folder / "config.yaml")
    return folder


def asked(run: Path, *words: str):
    places = [f"runs_dir={run.parent}", f"cache_dir={run.parent.parent}/cache", "checked=6", *words]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("explain", [f"run={run.name}", *places], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def test_a_run_is_explained_in_pictures(run, capsys) -> None:
    output = explain(asked(run, "count=2"))
    assert output == run / "explain" and "over 6 faces" in capsys.readouterr().out
    for name in ("maps.png", "filters.png", "features.png", "graph.png"):
        with Image.open(output / name) as picture:
            assert len(set(picture.convert("L").tobytes())) > 10
        assert f"]({name})" in (output / "explain.md").read_text()


def test_what_cannot_be_explained_is_refused(run) -> None:
    faults = (
        "faces=mistake (did you mean mistakes?)",
        "usage=tests; choices: train",
        "count=0: expected at least 1",
    )
    with pytest.raises(UsageError) as refused:
        explain(asked(run, "faces=mistake", "usage=tests", "count=0"))
    assert all(fault in str(refused.value) for fault in faults)
    with pytest.raises(UsageError, match="faces: nobody fits 0 faces of synthetic"):
        explain(asked(run, "faces=[nobody]"))


def test_names_may_be_ends_of_paths() -> None:
    class Data:
        index = type(
            "Index", (), {"names": ("test/fear/1.jpg", "test/anger/1.jpg", "2.jpg"), "name": "fer2013"}
        )

    assert named(Data, ["fear/1.jpg", "2.jpg"]) == [0, 2]
    with pytest.raises(UsageError, match=r"1\.jpg fits 2 faces of fer2013: type more"):
        named(Data, ["1.jpg"])
