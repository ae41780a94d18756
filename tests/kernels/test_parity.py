"""VGG-19 layer by layer, at its full width, through Triton's interpreter against float64: the parity that R0 lacked."""

from __future__ import annotations

import copy

import pytest
import torch
from torchvision.models.vgg import cfgs

import kernels
from fer_lab.models.vgg import Vgg
from kernels import tiles
from kernels.geometry import Layer


def vgg19(size: int, hidden: int = 512, classes: int = 7) -> dict[str, Layer]:
    """Its sixteen convolutions, as papers number them, with the pooling behind five of them, and R0's dense layers."""
    layers: dict[str, Layer] = {}
    channels, block, plan = 3, 1, cfgs["E"]
    for step, following in zip(plan, [*plan[1:], None], strict=True):
        if step == "M":
            block, size = block + 1, size // 2
            continue
        number = sum(name.startswith(f"{block}_") for name in layers) + 1
        layers[f"{block}_{number}"] = Layer(size, size, channels, step, relu=True, pool=following == "M")
        channels = step
    layers["dense 1"] = Layer(1, 1, channels * size * size, hidden, kernel=1, padding=0, relu=True)
    layers["dense 2"] = Layer(1, 1, hidden, classes, kernel=1, padding=0)
    return layers


LAYERS = vgg19(size=32)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """What torch.empty gives is NaN: an output, or a workspace, that is read before it is written."""
    monkeypatch.setenv("FER_KERNELS_INTERPRET", "1")
    torch.use_deterministic_algorithms(True)
    assert torch.empty(100).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def test_the_layers_are_vgg19s():
    assert list(LAYERS)[:5] == ["1_1", "1_2", "2_1", "2_2", "3_1"] and len(LAYERS) == 18
    assert [name for name, layer in LAYERS.items() if layer.pool] == ["1_2", "2_2", "3_4", "4_4", "5_4"]
    assert sum(layer.flops(1) for layer in vgg19(size=224).values()) == pytest.approx(39.04e9, rel=1e-3)


@pytest.fixture
def shared_sums(monkeypatch):
    """Tiles as for 132 processors: small, and several programs to a sum. The interpreter takes three times as long."""
    monkeypatch.setattr(tiles, "INTERPRETED_PROCESSORS", 132)


def error(case, name):
    """Of a layer with numbers of its own, over what it may be."""
    layer = LAYERS[name]
    one = case(layer, 2 if layer.height < 32 else 1, "float16", seed=[*LAYERS].index(name))
    weight = kernels.pack(one.weight, "float16")
    if name.startswith("dense"):
        result = kernels.linear(one.input[:, :, 0, 0], weight, one.bias, relu=layer.relu)[:, :, None, None]
    else:
        result = kernels.convolution(one.input, weight, one.bias, relu=True, pool=layer.pool)
    return one.error(result) / one.bound


DISTINCT = {layer: name for name, layer in reversed(LAYERS.items())}
"""By the first of each: 3_3, 4_3, 5_2 and 5_3 are the same convolution as the one before them."""


@pytest.mark.parametrize("name", reversed(DISTINCT.values()))
def test_every_layer(case, name):
    assert error(case, name) <= 1


@pytest.mark.parametrize("name", ["3_1", "5_4"])
def test_layers_whose_sums_are_shared(case, shared_sums, name):
    assert error(case, name) <= 1


def test_every_kernel_has_its_part(shared_sums):
    chosen = [tiles.choose(layer, 2, "float16", torch.device("cpu")) for layer in LAYERS.values()]
    assert {tile.kind for tile in chosen} == {"stem", "implicit", "split"}
    assert max(tile.splits for tile in chosen) > 2


def test_a_narrow_net_swapped(monkeypatch):
    """All nineteen layers together: a quarter of the width up to the last convolution."""
    *plan, last, pool = cfgs["E"]
    monkeypatch.setitem(cfgs, "E", [one if one == "M" else one // 4 for one in plan] + [last, pool])
    torch.manual_seed(0)
    net = Vgg(depth=19, classes=7, size=32).eval()
    images = torch.randn(1, 3, 32, 32)
    swapped, _ = kernels.swap(torch.export.export(net, (images,)), "float16")
    with torch.no_grad():
        result, expected = swapped.module()(images).double(), copy.deepcopy(net).double()(images.double())
    assert (result - expected).norm() <= 4e-3 * expected.norm()
