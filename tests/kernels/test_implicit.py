"""The implicit convolution in Triton's interpreter against torch in float64: borders, ragged tiles, all precisions."""

from __future__ import annotations

import pytest
import torch

from kernels import implicit
from kernels.geometry import PRECISIONS, Layer
from kernels.packing import pack, round_to_tf32, split
from kernels.splitting import split_input
from kernels.tiles import Tile
from kernels.twin import convolution

SMALL = Tile("implicit", 32, 16, 16)
CASES = {
    "borders": (Layer(9, 7, 32, 48, relu=True), 2, Tile("implicit", 32, 32, 32)),
    "pool": (Layer(8, 8, 32, 32, relu=True, pool=True), 2, Tile("implicit", 64, 32, 16)),
    "pool of odd sides": (Layer(7, 9, 16, 24, pool=True), 3, SMALL),
    "pool of one window": (Layer(3, 2, 16, 16, relu=True, pool=True), 1, Tile("implicit", 128, 64, 64)),
    "more channels than the tile's": (Layer(4, 5, 48, 16), 1, Tile("implicit", 32, 16, 32)),
    "many blocks": (Layer(11, 9, 16, 40, kernel=1, padding=0), 4, SMALL),
    "one pixel": (Layer(1, 1, 32, 16), 3, SMALL),
    "1x1 stride 2": (Layer(7, 6, 32, 16, kernel=1, stride=2, padding=0), 2, SMALL),
    "2x2": (Layer(5, 6, 16, 16, kernel=2, padding=1), 2, SMALL),
    "3x3 stride 2": (Layer(7, 8, 16, 16, stride=2, relu=True), 2, SMALL),
    "3x3 without padding, pool": (Layer(7, 6, 16, 16, padding=0, pool=True), 2, SMALL),
    "5x5": (Layer(6, 7, 16, 16, kernel=5, padding=2, relu=True), 2, SMALL),
    "6x6 stride 2, pool": (Layer(13, 9, 16, 16, kernel=6, stride=2, padding=4, pool=True), 2, SMALL),
    "7x7 stride 2": (Layer(9, 11, 16, 16, kernel=7, stride=2, padding=3), 2, SMALL),
    "dense": (Layer(1, 1, 96, 7, kernel=1, padding=0), 5, Tile("implicit", 32, 16, 64)),
}


def computed(case, descriptor=False, tile=SMALL, weight=None):
    weight = pack(case.weight, case.precision) if weight is None else weight
    return implicit.launch(
        case.input,
        weight,
        case.bias,
        case.layer,
        tile._replace(descriptor=descriptor),
        case.precision,
        output=case.output,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_layer_in_every_precision(case, name, precision):
    layer, batch, tile = CASES[name]
    one = case(layer, batch, precision)
    one.check(computed(one, tile=tile))


@pytest.mark.parametrize("name", CASES)
def test_nothing_beyond_the_tensors_is_read_or_written(case, fence, name):
    layer, batch, tile = CASES[name]
    one = case(layer, batch, "float16")
    weight = pack(one.weight, "float16")
    fence(one.input, weight, one.bias, one.output)
    one.check(computed(one, False, tile, weight))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["borders", "pool of odd sides", "more channels than the tile's", "dense"])
def test_weights_by_descriptor_make_the_same_numbers(case, name, precision):
    layer, batch, tile = CASES[name]
    by_pointer, by_descriptor = case(layer, batch, precision), case(layer, batch, precision)
    computed(by_pointer, tile=tile)
    by_descriptor.check(computed(by_descriptor, descriptor=True, tile=tile))
    assert torch.equal(by_descriptor.output, by_pointer.output)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["borders", "pool of odd sides", "7x7 stride 2", "dense"])
def test_the_twin_computes_the_same(case, name, precision):
    layer, batch, tile = CASES[name]
    one = case(layer, batch, precision)
    twin = convolution(one.input, pack(one.weight, precision), one.bias, layer, precision)
    assert one.error(twin) <= one.bound
    computed(one, tile=tile)
    assert (twin.double() - one.output.double()).abs().max() <= 2 * one.bound * one.expected.abs().max()


@pytest.mark.parametrize("pool", [False, True])
def test_no_nan_and_no_infinity_gets_lost(case, pool):
    one = case(Layer(6, 6, 16, 16, relu=True, pool=pool), 2, "tf32")
    one.input[0, 3, 1, 1] = torch.nan
    one.input[1, 5, 4, 4] = torch.inf
    twin = convolution(one.input, pack(one.weight, "tf32"), one.bias, one.layer, "tf32")
    computed(one)
    assert torch.equal(one.output.isnan(), twin.isnan()) and one.output.isnan().any()
    assert torch.equal(one.output.isinf(), twin.isinf()) and one.output.isinf().any()


@pytest.mark.parametrize("relu", [False, True])
def test_tf32_rounds_what_the_next_layer_would_cut_off(case, relu):
    one = case(Layer(6, 6, 16, 16, relu=relu), 1, "tf32")
    output = computed(one)
    assert torch.equal(output, round_to_tf32(output)) is relu


def test_without_an_output_a_new_one_is_made(case):
    one = case(Layer(5, 4, 16, 16, pool=True), 2, "bfloat16")
    weight = pack(one.weight, "bfloat16")
    output = implicit.launch(one.input, weight, one.bias, one.layer, SMALL, "bfloat16")
    assert one.error(output) <= one.bound


def test_split_images_are_the_twins_parts_to_the_bit():
    images = torch.randn(3, 48, 5, 7).contiguous(memory_format=torch.channels_last)
    parts = split_input(images)
    assert parts.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(parts, split(images, dim=1))
