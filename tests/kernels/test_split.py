"""The split kernel in Triton's interpreter against float64 torch: few pixels, dense layers, sums shared by programs."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from itertools import product
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from kernels.geometry import LARGEST_TENSOR, PRECISIONS, Layer, Precision, Unsupported
from kernels.packing import pack, round_to_tf32
from kernels.tickets import STEP, TicketStore, draw
from kernels.tiles import Tile

split = pytest.importorskip("kernels.split", reason="no triton here", exc_type=ImportError)

ROOT = Path(__file__).resolve().parents[2]
GUARD = 64
"""NaN before and after the workspace, that must stay."""
CUT_OFF = 7e-3
"""Bound for bfloat16: Triton's interpreter does not round what it stores, it cuts bits off."""


def a_tile(
    pixels: int = 16, filters: int = 32, channels: int = 16, splits: int = 3, descriptor: bool = False
) -> Tile:
    return Tile("split", pixels, filters, channels, splits=splits, descriptor=descriptor)


def launched(case, tile: Tile) -> Tensor:
    """The kernel's output, written over NaN and with sums kept in NaN; around all of which there still is NaN."""
    shape = split.workspace_shape(case.layer, tile, len(case.input))
    whole = torch.full((prod(shape) + 2 * GUARD,), torch.nan)
    workspace, tickets = whole[GUARD:-GUARD].view(shape), torch.zeros(shape[0], dtype=torch.int32)
    case.output.fill_(torch.nan)
    case.bound = CUT_OFF if case.precision == "bfloat16" else case.bound
    operands = (case.input, pack(case.weight, case.precision), case.bias)
    output = split.launch(*operands, case.layer, tile, case.precision, case.output, workspace, tickets)
    case.check(output)
    assert (tickets == 0).all()
    assert whole.isfinite().sum() == (0 if tile.splits == 1 else workspace.numel())
    assert workspace.isfinite().all() or tile.splits == 1
    return output.clone()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pool", [False, True])
def test_maps_of_few_pixels(case, precision: Precision, pool: bool):
    layer = Layer(6, 6, 48, 64, relu=True, pool=pool)
    launched(case(layer, 2, precision), a_tile(pixels=32, filters=64, splits=4))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dense_layers(case, precision: Precision):
    layer = Layer(1, 1, 512, 7, kernel=1, padding=0)
    launched(case(layer, 3, precision), a_tile(filters=16, channels=64))


def test_the_first_dense_layer_of_vgg19(case):
    layer = Layer(1, 1, 25088, 512, kernel=1, padding=0, relu=True)
    launched(case(layer, 1, "float16"), Tile("split", 16, 128, 128, splits=16))


@pytest.mark.parametrize(
    ("side", "batch", "pixels"), [(14, 1, 32), (7, 2, 64), (3, 1, 16), (3, 5, 16), (2, 3, 16)]
)
@pytest.mark.parametrize("pool", [False, True])
def test_tiles_that_are_not_full_of_pixels(case, side: int, batch: int, pixels: int, pool: bool):
    layer = Layer(side, side, 16, 16, relu=True, pool=pool)
    launched(case(layer, batch, "float16"), a_tile(pixels, filters=16, splits=2))


@pytest.mark.parametrize("filters", [1, 7, 31, 33, 80])
@pytest.mark.parametrize("splits", [1, 2])
def test_any_number_of_filters(case, filters: int, splits: int):
    launched(case(Layer(4, 4, 16, filters), 1, "float16"), a_tile(splits=splits))


@pytest.mark.parametrize(("kernel", "stride"), list(product(range(1, 8), (1, 2))))
def test_every_kernel_and_stride(case, kernel: int, stride: int):
    for padding in {0, kernel // 2, kernel - 1}:
        layer = Layer(8, 9, 16, 16, kernel, stride, padding, pool=padding == kernel // 2)
        launched(case(layer, 1, "float16"), a_tile(pixels=64, filters=16, splits=2))


@pytest.mark.parametrize("splits", range(1, 17))
def test_steps_that_splits_do_not_divide(case, splits: int):
    """18 steps; and 4, of which 16 splits leave 12 programs nothing to do."""
    launched(case(Layer(3, 3, 32, 16), 1, "float16"), a_tile(filters=16, splits=splits))
    launched(case(Layer(1, 1, 64, 16, kernel=1, padding=0), 1, "tf32"), a_tile(filters=16, splits=splits))


def test_channels_that_a_block_does_not_divide(case):
    launched(case(Layer(3, 3, 48, 32), 1, "float16"), a_tile(channels=32, splits=5))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_by_descriptor(case, precision: Precision):
    launched(case(Layer(4, 4, 48, 40), 1, precision), a_tile(descriptor=True))


def reorder_programs(monkeypatch: pytest.MonkeyPatch, order: str) -> list[tuple[int, ...]]:
    """The interpreter runs programs one after the other: from now on in this order. What it ran is in the list."""
    from triton.runtime.interpreter import interpreter_builder as builder

    set_index, ran = builder.set_grid_idx, []

    def set_another(*index: int) -> None:
        programs = list(product(*map(range, builder.grid_dim)))
        place = programs.index(index)
        if order == "backwards":
            programs.reverse()
        elif order == "split by split":
            programs.sort(key=lambda program: program[2])
        elif order == "random":
            random.Random(1).shuffle(programs)
        ran.append(programs[place])
        set_index(*programs[place])

    monkeypatch.setattr(builder, "set_grid_idx", set_another)
    return ran


def test_the_order_of_programs_changes_no_bit(case, monkeypatch):
    one = case(Layer(5, 5, 32, 64, relu=True), 1, "tf32")
    results, finishers = [], set()
    for order in ("forwards", "backwards", "split by split", "random"):
        with monkeypatch.context() as patch:
            ran = reorder_programs(patch, order)
            results.append(launched(one, a_tile(splits=6)))
        assert sorted(ran) == list(product(range(2), range(2), range(6)))
        finishers.add([program for program in ran if program[:2] == (0, 0)][-1])
    assert len(finishers) > 1
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_partial_sums_are_added_in_order_of_their_numbers(case):
    """Which gives other bits than any other order, or the test above would say nothing."""
    layer, tile = Layer(5, 5, 32, 64), a_tile(splits=6)
    one, workspace = case(layer, 1, "tf32"), torch.empty(split.workspace_shape(layer, tile, 1))
    output = split.launch(one.input, pack(one.weight, "tf32"), one.bias, layer, tile, "tf32", None, workspace)
    forwards, backwards = torch.zeros(4, 32, 16), torch.zeros(4, 32, 16)
    for part in range(6):
        forwards += workspace[:, part]
        backwards += workspace[:, 5 - part]
    assert not torch.equal(forwards, backwards)
    filters_by_pixels = forwards.view(2, 2, 32, 16).transpose(1, 2).reshape(64, 32)[:, :25]
    assert torch.equal(output[0].flatten(1), filters_by_pixels + one.bias[:, None])


def test_launches_follow_each_other_on_the_same_tickets(case):
    """As in a graph that is replayed, and as they may in one stream."""
    tickets, workspace = torch.zeros(16, dtype=torch.int32), torch.full((1 << 16,), torch.nan)
    for seed, splits in enumerate((3, 16, 2, 3)):
        layer = Layer(6, 6, 16, 32, relu=True)
        one = case(layer, 1, "float16", seed)
        operands = (one.input, pack(one.weight, "float16"), one.bias)
        one.check(
            split.launch(*operands, layer, a_tile(splits=splits), "float16", one.output, workspace, tickets)
        )
        assert (tickets == 0).all()


def test_launches_inside_a_store_take_its_tickets(case):
    layer, tile = Layer(6, 6, 16, 64), a_tile()  # 3 x 2 tiles
    one, store = case(layer, 1, "float16"), TicketStore(torch.device("cpu"), 3 * STEP)
    operands = (one.input, pack(one.weight, "float16"), one.bias)
    free = store._free
    with store:
        assert draw(STEP + 1, free.device).data_ptr() == free.data_ptr()
        inside = split.launch(*operands, layer, tile, "float16")
        assert len(store._free) == 0
        assert draw(1, free.device).item() == 0  # used up: zeroed for this launch
    assert (free == 0).all()
    assert torch.equal(inside, split.launch(*operands, layer, tile, "float16"))


def test_a_store_gives_no_ticket_twice_and_none_of_another_device():
    cpu = torch.device("cpu")
    store = TicketStore(cpu, 4 * STEP)
    first, second = store.take(3, cpu), store.take(STEP, cpu)
    assert second.data_ptr() - first.data_ptr() == 4 * STEP  # bytes: STEP tickets on
    assert store.take(2 * STEP + 1, cpu) is None
    assert store.take(1, torch.device("cuda", 0)) is None
    with store:
        assert draw(1, cpu).data_ptr() == second.data_ptr() + 4 * STEP
    outside = draw(1, cpu)
    assert outside.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("splits", [1, 2])
def test_nan_comes_through(case, pool: bool, splits: int):
    layer = Layer(6, 6, 16, 16, relu=True, pool=pool)
    one = case(layer, 1, "tf32")
    one.input[0, 3, 1, 1] = torch.nan
    expected = conv2d(one.input, torch.ones(16, 16, 3, 3), padding=1)
    expected = max_pool2d(expected, 2) if pool else expected
    output = split.launch(one.input, pack(one.weight, "tf32"), one.bias, layer, a_tile(splits=splits), "tf32")
    assert torch.equal(output.isnan(), expected.isnan())
    assert 0 < output.isnan().sum() < output.numel()


def test_what_a_tf32_layer_with_relu_stores_is_tf32(case):
    for relu in (True, False):
        output = launched(case(Layer(4, 4, 16, 16, relu=relu), 1, "tf32"), a_tile())
        assert torch.equal(output, round_to_tf32(output)) == relu


PRINT_ASSEMBLY = """
import triton
from kernels import compilation, split
from kernels.geometry import Layer
from kernels.tiles import Tile
layer = Layer(14, 14, 512, 512, relu=True, pool=True)
source = compilation.source(split, layer, Tile("split", 16, 64, 64, splits=5), "float16")
print(triton.compile(source, target=compilation.TARGETS["sm_90"]).asm["ptx"])
"""


@pytest.fixture(scope="module")
def assembly() -> str:
    """PTX: the interpreter runs one program at a time, and its maximum always keeps NaN."""
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PRINT_ASSEMBLY]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True).stdout


def test_partial_sums_are_written_before_the_ticket_is_drawn_and_read_after_it(assembly):
    pattern = r"^\s*(?:@%p\d+ )?((?:st|ld|atom)\.global[.\w]*|bar\.sync)"
    names = re.findall(pattern, assembly, re.MULTILINE)
    draw = names.index("atom.global.gpu.acq_rel.add.u32")
    assert names[draw - 1] == "bar.sync"  # all threads have written, one draws
    assert names[draw - 2].startswith("st.global.cg")
    assert names[draw + 1 : draw + 3] == ["bar.sync", "st.global.b32"]  # all wait for it; the ticket is reset
    assert all(name.startswith("ld.global.cg") for name in names[draw + 3 : draw + 13])


def test_the_compiled_maximum_keeps_nan(assembly):
    assert set(re.findall(r"max\.[.\w]*f32", assembly)) == {"max.NaN.f32"}


def refusal(layer: Layer, tile: Tile, batch: int = 1, precision: Precision = "float16") -> str:
    with pytest.raises(Unsupported) as raised:
        split.refuse(layer, tile, batch, precision)
    return str(raised.value)


def test_what_it_refuses():
    assert "a stem's 3 input channels (16 or more)" in refusal(Layer(8, 8, 3, 16), a_tile())
    wide = Layer(1, 1, 2**15, 2**15, kernel=1, padding=0)
    split.refuse(wide, a_tile(), 1, "float16")
    assert f"{2**31} weights (less than {LARGEST_TENSOR})" in refusal(wide, a_tile(), precision="float32")
    many = Layer(64, 64, 16, 512)
    split.refuse(many, a_tile(splits=1), 128, "float16")
    sums = f"{2**32} partial sums (less than {LARGEST_TENSOR}: fewer splits or images)"
    assert sums in refusal(many, a_tile(splits=16), 128)
