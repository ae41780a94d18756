"""Sizes, floors and refusals, and weights as the kernels read them: against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kernels.geometry import LARGEST_TENSOR, Layer, Unsupported, check
from kernels.packing import pack, round_to_tf32, split, unpack

VGG19 = ((3, 64), (64, 64), (), (64, 128), (128, 128), (), (128, 256), *[(256, 256)] * 3, ())
VGG19 = (*VGG19, (256, 512), *[(512, 512)] * 3, (), *[(512, 512)] * 4, ())


def vgg19(size: int) -> list[Layer]:
    """R0's net: its convolutions, those before a pool with it, and the dense layers 512 and 7."""
    layers: list[Layer] = []
    for step in VGG19:
        if step:
            layers.append(Layer(size, size, *step, relu=True))
        else:
            layers[-1], size = layers[-1]._replace(pool=True), size // 2
    dense = Layer(1, 1, 512 * 49, 512, kernel=1, padding=0, relu=True)
    return [*layers, dense, dense._replace(channels=512, filters=7, relu=False)]


@pytest.mark.parametrize(
    ("layer", "rows", "output"),
    [
        (Layer(48, 48, 64, 64), 48, (48, 48)),
        (Layer(7, 9, 64, 64, pool=True), 7, (3, 4)),
        (Layer(224, 224, 3, 64, kernel=7, stride=2, padding=3), 112, (112, 112)),
        (Layer(56, 56, 64, 128, kernel=1, stride=2, padding=0), 28, (28, 28)),
        (Layer(5, 5, 16, 16, kernel=3, stride=2, padding=0), 2, (2, 2)),
        (Layer(6, 6, 16, 16, kernel=5, padding=0), 2, (2, 2)),
        (Layer(1, 1, 512, 7, kernel=1, padding=0), 1, (1, 1)),
    ],
)
def test_sides_of_the_output(layer, rows, output):
    assert (layer.rows, layer.output) == (rows, output)


def test_a_whole_vgg19_costs_what_the_survey_worked_out():
    assert sum(layer.flops(1) for layer in vgg19(224)) == pytest.approx(39.04e9, rel=1e-3)
    assert sum(layer.flops(3) for layer in vgg19(48)[:16]) == pytest.approx(3 * 1.79e9, rel=2e-3)


@pytest.mark.parametrize(
    ("position", "batch", "microseconds"),
    [(0, 1, 2.2), (0, 32, 71.7), (1, 1, 4.7), (1, 32, 149.9), (12, 1, 1.7), (16, 1, 8.6)],
)
def test_floors_of_single_layers_are_the_surveys(position, batch, microseconds):
    layer = vgg19(224)[position]
    assert 1e6 * layer.seconds(batch, "float16", 790e12, 3.0e12) == pytest.approx(microseconds, rel=0.03)


def test_bytes_count_input_weights_bias_and_pooled_output_once():
    layer = Layer(4, 6, 16, 32, pool=True)
    assert layer.bytes(2, "float16") == 2 * (2 * 4 * 6 * 16 + 32 * 9 * 16 + 2 * 2 * 3 * 32) + 4 * 32
    assert layer.bytes(2, "tf32") == 2 * layer.bytes(2, "float16") - 4 * 32


@pytest.mark.parametrize(
    ("changes", "batch", "words"),
    [
        ({"channels": 24}, 1, ["24 input channels (1..4, or a multiple of 16)"]),
        ({"channels": 0, "filters": 0}, 1, ["0 input channels", "0 filters (1 or more)"]),
        ({"kernel": 9}, 1, ["a kernel of 9 (1..7)"]),
        ({"stride": 3, "padding": 3}, 1, ["stride 3 (1..2)", "padding 3 (less than the kernel, 3)"]),
        ({"stride": 0, "kernel": 0}, 1, ["stride 0", "a kernel of 0"]),
        ({"height": 1, "pool": True}, 1, ["images of 1x8, of which nothing is left"]),
        ({}, 0, ["a batch of 0"]),
        (
            {"height": 2048, "width": 2048},
            32,
            [f"a batch of 32, with tensors of {2**31} elements", "split the batch"],
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name_all_at_once(changes, batch, words):
    with pytest.raises(Unsupported) as refusal:
        check(Layer(8, 8, 16, 16)._replace(**changes), batch)
    assert all(word in str(refusal.value) for word in words)


def test_offsets_of_two_parts_must_fit_in_32_bits_too():
    layer = Layer(1024, 1024, 16, 16)
    largest = LARGEST_TENSOR // (1024 * 1024 * 16)
    check(layer, largest)
    check(layer, largest // 2, "float32")
    with pytest.raises(Unsupported, match="split the batch"):
        check(layer, largest // 2 + 1, "float32")


def test_terms_of_a_filter_lie_tap_by_tap_and_channel_by_channel():
    weight = torch.arange(2 * 16 * 9.0).reshape(2, 16, 3, 3)
    terms = pack(weight, "float16")
    assert terms.shape == (2, 144) and terms.dtype == torch.float16 and terms.is_contiguous()
    assert terms[0, 5 * 16 + 3] == weight[0, 3, 1, 2] == 3 * 9 + 5
    assert torch.equal(unpack(terms, 16, 3, "float16"), weight.half())


def test_a_stems_terms_are_filled_up_with_zeros():
    weight = torch.arange(1.0, 2 * 27 + 1).reshape(2, 3, 3, 3)
    for precision in ("float16", "float32"):
        terms = pack(weight, precision)
        assert terms.shape == (2, 32)
        assert terms[1, 27:].eq(0).all() and terms[1, :3].tolist() == [28.0, 37.0, 46.0]
        assert torch.equal(unpack(terms, 3, 3, precision).float(), weight)


def test_in_float32_each_tap_has_high_then_low_parts():
    weight = torch.zeros(1, 16, 1, 2 - 1)
    weight[0, 4] = 1 + 2.0**-12
    terms = pack(weight, "float32")
    assert terms.shape == (1, 32)
    assert terms[0, 4] == 1 and terms[0, 20] == 2.0**-12
    assert torch.equal(unpack(terms, 16, 1, "float32"), weight)


STEP = 2.0**-10  # between tf32 numbers from 1 on


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1 + 0.49 * STEP, 1),
        (1 + 0.51 * STEP, 1 + STEP),
        (1 + 0.5 * STEP, 1 + STEP),
        (1 + 1.5 * STEP, 1 + 2 * STEP),
        (-1 - 1.5 * STEP, -1 - 2 * STEP),
        (2 - 0.1 * STEP, 2),
        (0.0, 0.0),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
    ],
)
def test_tf32_is_the_nearest_number_halves_away_from_zero(value, rounded):
    assert round_to_tf32(torch.tensor([value])).item() == rounded


def test_no_nan_gets_lost_in_rounding():
    every_bit = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert round_to_tf32(every_bit).isnan().all()


def test_two_parts_keep_21_bits():
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    parts = split(values[:, None], dim=1)
    assert torch.equal(parts, round_to_tf32(parts))
    error = (parts.double().sum(1) - values).abs() / values.abs()
    assert 0 < error.max() <= 2.0**-22
