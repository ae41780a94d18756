"""The stem in Triton's interpreter against torch in float64: as images come, in any memory format and type."""

from __future__ import annotations

import pytest
import torch

from kernels import stem
from kernels.geometry import PRECISIONS, Layer
from kernels.packing import pack
from kernels.tiles import Tile
from kernels.twin import convolution

TILE = Tile("stem", 32, 32, 16)
CASES = {
    "vgg": (Layer(9, 10, 3, 64, relu=True), 2, Tile("stem", 64, 64, 16)),
    "resnet": (Layer(13, 14, 3, 40, kernel=7, stride=2, padding=3, relu=True), 2, TILE),
    "gray, pool of odd sides": (Layer(7, 9, 1, 32, relu=True, pool=True), 3, TILE),
    "two channels, 5x5": (Layer(6, 7, 2, 20, kernel=5, padding=2), 1, TILE),
    "four channels, pool": (Layer(6, 7, 4, 16, padding=0, pool=True), 2, TILE),
    "1x1": (Layer(5, 3, 3, 16, kernel=1, padding=0), 2, TILE),
    "many blocks": (Layer(12, 12, 3, 48, kernel=1, padding=0), 3, Tile("stem", 32, 16, 16)),
}


def computed(case, tile=TILE, weight=None):
    weight = pack(case.weight, case.precision) if weight is None else weight
    return stem.launch(case.input, weight, case.bias, case.layer, tile, case.precision, output=case.output)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_stems_in_every_precision(case, name, precision):
    layer, batch, tile = CASES[name]
    one = case(layer, batch, precision)
    one.check(computed(one, tile))


@pytest.mark.parametrize("name", CASES)
def test_stems_read_and_write_nothing_beyond_the_tensors(case, fence, name):
    layer, batch, tile = CASES[name]
    one = case(layer, batch, "float16")
    weight = pack(one.weight, "float16")
    fence(one.input, weight, one.bias, one.output)
    one.check(computed(one, tile, weight))


MEMORY = {
    "NCHW": lambda images: images.contiguous(),
    "a part of wider images": lambda images: torch.cat([images, images], 3)[..., : images.shape[3]],
    "every second row": lambda images: images.repeat_interleave(2, 2)[:, :, ::2],
    "columns before rows": lambda images: images.mT.contiguous().mT,
}


@pytest.mark.parametrize("memory", MEMORY)
def test_images_are_read_as_they_lie(case, memory):
    one = case(Layer(7, 9, 3, 32, relu=True), 2, "float16")
    one.input = MEMORY[memory](one.input)
    one.check(computed(one))


def test_a_gray_image_may_stand_for_three_channels(case):
    one = case(Layer(7, 9, 3, 32), 2, "float32")
    gray = torch.randn(2, 1, 7, 9)
    one.input, one.expected = gray.expand(-1, 3, -1, -1), one.oracle(gray.double().expand(-1, 3, -1, -1))
    one.check(computed(one))


@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_of_another_type_are_cast_in_the_kernel(case, given, precision):
    one = case(Layer(5, 6, 3, 16), 1, precision)
    images = torch.randint(0, 256, (1, 3, 5, 6), generator=torch.Generator().manual_seed(1))
    one.input, one.expected = images.to(given), one.oracle(images.double())
    one.check(computed(one))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_twin_of_a_stem_computes_the_same(case, precision):
    one = case(Layer(9, 10, 3, 24, relu=True, pool=True), 2, precision)
    twin = convolution(one.input, pack(one.weight, precision), one.bias, one.layer, precision)
    assert one.error(twin) <= one.bound
    difference = twin.double() - computed(one).double()
    assert difference.abs().max() <= 2 * one.bound * one.expected.abs().max()


def test_a_nan_spoils_the_windows_that_see_it_and_no_other(case):
    one = case(Layer(9, 10, 3, 16), 2, "float32")
    one.input[0, :, 4, 5] = torch.nan
    seen = torch.zeros(2, 9, 10, dtype=torch.bool)
    seen[0, 3:6, 4:7] = True
    assert torch.equal(computed(one).isnan(), seen[:, None].expand(-1, 16, -1, -1))
