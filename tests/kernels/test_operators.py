"""The two operations as torch sees them: checked by torch itself, compiled, exported, refused; and the kernels in
Triton's interpreter behind them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kernels
from kernels import tiles, twin
from kernels.geometry import PRECISIONS, Layer
from kernels.packing import TYPES, round_to_tf32

ROOT = Path(__file__).resolve().parent.parent.parent
LAYERS = {
    "vgg": Layer(6, 5, 16, 24, relu=True, pool=True),
    "plain": Layer(5, 4, 32, 16),
    "stem": Layer(7, 6, 3, 32, relu=True),
    "downsampling": Layer(7, 7, 16, 16, kernel=1, stride=2, padding=0),
    "one pixel": Layer(1, 1, 16, 8, relu=True),
}
DENSE = Layer(1, 1, 48, 7, kernel=1, padding=0, relu=True)


def convolved(one):
    weight = kernels.pack(one.weight, one.precision)
    return lambda images: kernels.convolution(
        images,
        weight,
        one.bias,
        kernel=one.layer.kernel,
        stride=one.layer.stride,
        padding=one.layer.padding,
        relu=one.layer.relu,
        pool=one.layer.pool,
        precision=one.precision,
    )


def dense(one):
    weight = kernels.pack(one.weight, one.precision)
    return lambda rows: kernels.linear(rows, weight, one.bias, relu=True, precision=one.precision)


@pytest.fixture(params=["twin", "interpreter"])
def way(request, monkeypatch):
    """Gives by what to multiply the bounds: the interpreter cuts bits off where a GPU rounds to bfloat16."""
    interpreter = request.param == "interpreter"
    monkeypatch.setenv("FER_KERNELS_INTERPRET", "1" if interpreter else "0")
    return lambda precision: 1.5 if interpreter and precision == "bfloat16" else 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_against_float64(case, way, name, precision):
    one = case(LAYERS[name], 3, precision)
    assert one.error(convolved(one)(one.input)) <= one.bound * way(precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dense_layers_against_float64(case, way, precision):
    one = case(DENSE, 5, precision)
    result = dense(one)(one.input[:, :, 0, 0])
    assert result.shape == (5, 7) and result.is_contiguous()
    assert one.error(result[:, :, None, None]) <= one.bound * way(precision)


def test_the_interpreter_runs_only_where_it_is_asked_for(case, monkeypatch):
    one, launched = case(LAYERS["plain"], 1, "float16"), []

    def launch(input, weight, bias, layer, tile, precision):
        launched.append(layer)
        return twin.allocate(layer, len(input), precision, input.device)

    monkeypatch.setattr(tiles, "module", lambda kind: SimpleNamespace(launch=launch))
    convolved(one)(one.input)
    assert not launched
    monkeypatch.setenv("FER_KERNELS_INTERPRET", "1")
    convolved(one)(one.input)
    assert launched == [one.layer]


def shifted(tensor):
    """The same numbers from two bytes or four after a multiple of 16 on, in the same order."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    moved = memory[1:].as_strided(tensor.shape, tensor.stride())
    assert moved.copy_(tensor).data_ptr() % 16
    return moved


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_may_begin_anywhere(case, monkeypatch, precision):
    """Descriptors demand multiples of 16 bytes; kernels are compiled for them."""
    monkeypatch.setenv("FER_KERNELS_INTERPRET", "1")
    tile = tiles.Tile("implicit", 32, 16, 16, descriptor=True)
    monkeypatch.setattr(tiles, "choose", lambda *_: tile)
    one = case(LAYERS["plain"], 2, precision)
    weight, seen = kernels.pack(one.weight, precision), []
    module = tiles.module(tile.kind)

    def launch(input, weight, bias, *rest):
        seen.extend(operand.data_ptr() % 16 for operand in (input, weight, bias))
        assert input.is_contiguous(memory_format=torch.channels_last)
        return module.launch(input, weight, bias, *rest)

    monkeypatch.setattr(tiles, "module", lambda kind: SimpleNamespace(launch=launch))
    for images in (one.input, one.input.contiguous()):
        output = kernels.convolution(shifted(images), shifted(weight), shifted(one.bias), precision=precision)
        assert one.error(output) <= one.bound * (1.5 if precision == "bfloat16" else 1)
    assert seen == [0] * 6


@pytest.mark.parametrize("name", LAYERS)
def test_torch_finds_nothing_wrong_with_convolution(case, name):
    one = case(LAYERS[name], 2, "float16")
    layer = one.layer
    sizes = (layer.kernel, layer.stride, layer.padding, layer.relu, layer.pool, "float16")
    torch.library.opcheck(
        torch.ops.fer_kernels.convolution.default,
        (one.input, kernels.pack(one.weight, "float16"), one.bias, *sizes),
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_finds_nothing_wrong_with_linear(case, precision):
    one = case(DENSE, 2, precision)
    torch.library.opcheck(
        torch.ops.fer_kernels.linear.default,
        (one.input[:, :, 0, 0].contiguous(), kernels.pack(one.weight, precision), one.bias, True, precision),
    )


def test_in_a_compiled_function_with_any_batch(case):
    one = case(LAYERS["vgg"], 4, "float32")
    compiled = torch.compile(convolved(one), backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (4, 2, 3):
        images = one.input[:batch]
        assert torch.equal(compiled(images), convolved(one)(images))


class Two(torch.nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images):
        return self.second(self.first(images).flatten(1))


def test_in_an_exported_program_with_any_batch(case):
    one, last = (
        case(LAYERS["vgg"], 2, "float32"),
        case(Layer(1, 1, 144, 5, 1, padding=0, relu=True), 2, "float32"),
    )
    net = Two(convolved(one), dense(last))
    program = torch.export.export(net, (one.input,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 3):
        images = torch.randn(batch, 16, 6, 5)
        assert torch.equal(program.module()(images), net(images))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["vgg", "stem"])
def test_any_memory_format_is_taken_and_channels_last_given(case, way, name, memory):
    one = case(LAYERS[name], 2, "float32")
    assert one.error(convolved(one)(one.input.contiguous(memory_format=memory))) <= one.bound


def test_a_stem_takes_images_of_another_float_type(case, way):
    one = case(LAYERS["stem"], 2, "float16")
    result = convolved(one)(one.input.double())
    assert torch.equal(result, convolved(one)(one.input))


def test_rows_of_a_wider_table_are_taken(case, way):
    one = case(DENSE, 4, "float32")
    rows = one.input[:, :, 0, 0]
    wider = torch.full((4, 64), torch.nan)
    wider[:, :48] = rows
    assert torch.equal(dense(one)(wider[:, :48]), dense(one)(rows.contiguous()))


@pytest.mark.parametrize("relu", [True, False])
def test_in_tf32_a_layer_with_relu_stores_what_the_next_multiplies(case, way, relu):
    one = case(LAYERS["plain"]._replace(relu=relu), 1, "tf32")
    result = convolved(one)(one.input)
    assert torch.equal(result, round_to_tf32(result)) == relu


def test_no_images_give_no_images(case):
    one = case(LAYERS["vgg"], 1, "float16")
    assert convolved(one)(one.input[:0]).shape == (0, 24, 3, 2)
    assert kernels.linear(
        torch.zeros(0, 16), torch.zeros(8, 32), torch.zeros(8), precision="float32"
    ).shape == (0, 8)


def call(images=(1, 16, 8, 8), weight=(16, 144), bias=16, dtype=torch.float16, **options):
    return kernels.convolution(
        torch.zeros(images, dtype=dtype), torch.zeros(weight, dtype=dtype), torch.zeros(bias), **options
    )


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"images": (1, 24, 8, 8)}, kernels.Unsupported, r"24 input channels \(1..4, or a multiple of 16\)"),
        ({"kernel": 9, "padding": 4}, kernels.Unsupported, r"a kernel of 9 \(1..7\)"),
        ({"stride": 3}, kernels.Unsupported, r"stride 3 \(1..2\)"),
        ({"images": (1, 16, 1, 1), "pool": True}, kernels.Unsupported, "of which nothing is left"),
        ({"images": (16, 8, 8)}, kernels.Unsupported, r"an input of 3 dimensions \(4\)"),
        (
            {"weight": (16, 143)},
            ValueError,
            r"weight is torch.float16 \(16, 143\).*takes torch.float16 \(16, 144\)",
        ),
        ({"weight": (16, 144), "precision": "float32", "dtype": torch.float32}, ValueError, r"\(16, 288\)"),
        ({"bias": 15}, ValueError, r"bias is torch.float32 \(15,\)"),
        ({"dtype": torch.float32}, ValueError, "precision float16 takes torch.float16"),
        ({"precision": "float64"}, ValueError, "'float64'; choices: float16, bfloat16, tf32, float32"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, error, words):
    call()
    with pytest.raises(error, match=words):
        call(**wrong)


def test_a_batch_whose_numbers_cannot_be_counted_is_refused():
    images = torch.zeros(1, 16, 16, 16).half().expand(2**20, -1, -1, -1)
    with pytest.raises(kernels.Unsupported, match="split the batch"):
        kernels.convolution(images, torch.zeros(16, 144).half(), torch.zeros(16))


def test_a_linear_layer_of_three_dimensions_is_refused():
    with pytest.raises(kernels.Unsupported, match=r"3 dimensions \(2\)"):
        kernels.linear(torch.zeros(1, 2, 16).half(), torch.zeros(4, 16).half(), torch.zeros(4))


def test_everything_but_the_kernels_works_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch, kernels
net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU()).eval()
images = torch.randn(2, 3, 8, 8)
swapped, report = kernels.swap(torch.export.export(net, (images,)), "float32")
assert (swapped.module()(images) - net(images)).abs().max() < 1e-5
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "fine", done.stderr


def test_types_are_the_precisions():
    assert set(TYPES) == set(PRECISIONS)
