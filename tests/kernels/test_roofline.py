"""The floors against the table of ../shared/kernels.md, section 2, which was computed by other means."""

from __future__ import annotations

import pytest

from kernels.geometry import Layer
from kernels.roofline import H100, Machine, floor, network_floor, vgg19

BATCHES = (1, 2, 4, 8, 16, 32, 64)
MICROSECONDS = {
    (224, "float16", "all"): (62, 111, 214, 420, 831, 1654, 3300),
    (224, "float16", "activation"): (67, 122, 235, 461, 913, 1818, 3626),
    (224, "float16", "convolution"): (87, 161, 314, 619, 1230, 2451, 4894),
    (224, "float16", "nothing"): (107, 201, 393, 778, 1547, 3085, 6161),
    (48, "float16", "all"): (14.3, 15.2, 18.0, 24.0, 41, 76, 151),
    (48, "float16", "convolution"): (15.5, 17.5, 22.6, 33, 60, 113, 225),
    (224, "tf32", "all"): (124, 223, 429, 840, 1663, 3309, 6600),
    (224, "tf32", "convolution"): (174, 323, 628, 1238, 2460, 4902, 9788),
}


@pytest.mark.parametrize(("case", "expected"), MICROSECONDS.items(), ids=lambda value: str(value)[:32])
def test_floors_of_the_whole_net_are_the_tables(case, expected):
    size, precision, fusion = case
    layers = list(vgg19(size).values())
    found = [1e6 * network_floor(layers, batch, precision, fusion=fusion) for batch in BATCHES]
    assert found == pytest.approx(expected, abs=0.6)


@pytest.mark.parametrize(
    ("name", "one", "many", "bound"),
    [
        ("conv1_1", 2.2, 71.7, "memory"),
        ("conv1_2", 4.7, 149.9, "arithmetic"),
        ("conv2_1", 2.3, 74.9, "arithmetic"),
        ("conv4_4", 4.7, 149.9, "arithmetic"),
        ("conv5_1", 1.7, 37.5, "arithmetic"),
        ("fc1", 8.6, 9.1, "memory"),
    ],
)
def test_floors_of_single_layers_are_the_tables(name, one, many, bound):
    layer = vgg19(224)[name]
    assert 1e6 * floor(layer, 1, "float16").seconds == pytest.approx(one, abs=0.06)
    assert 1e6 * floor(layer, 32, "float16").seconds == pytest.approx(many, abs=0.06)
    assert floor(layer, 32, "float16").bound == bound


def test_one_layer_by_hand():
    layer, machine = Layer(4, 4, 16, 32, pool=True), Machine("round", 1000.0, 10.0)
    unpooled, pooled, read = 4 * 4 * 32 * 2, 2 * 2 * 32 * 2, 4 * 4 * 16 * 2 + 32 * 9 * 16 * 2 + 32 * 4
    products = 4 * 4 * 32 * 9 * 16
    alone, eager = floor(layer, 1, "float16", machine), floor(layer, 1, "float16", machine, "nothing")
    assert alone == pytest.approx((2 * products / 1000, (read + pooled) / 10, 0))
    assert eager.memory == pytest.approx((read + unpooled) / 10)
    assert eager.passes == pytest.approx((4 * unpooled + unpooled + pooled) / 10)
    assert floor(layer, 1, "float32", machine).arithmetic == pytest.approx(6 * alone.arithmetic)


def test_the_net_is_vgg19_with_the_head_of_r0():
    layers = vgg19(224)
    assert len(layers) == 18
    assert sum(layer.flops(1) for layer in layers.values()) == pytest.approx(39.04e9, rel=1e-3)
    assert sum(layer.flops(1) for layer in vgg19(48).values()) == pytest.approx(1.79e9, rel=2e-3)
    weights = sum(layer.filters * (layer.taps * layer.channels + 1) for layer in layers.values())
    assert weights == 20_024_384 + (25088 * 512 + 512) + (512 * 7 + 7)  # torchvision's features, R0's head
    assert H100.flops == 790e12
