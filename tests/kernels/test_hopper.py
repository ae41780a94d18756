"""Hopper's kernels without a Hopper: what they are compiled to, run on an imitation of the processor against float64
torch; how layers are cut into boxes, what is refused, and what the device is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import boxes, twin
from kernels.boxes import choose_box, faults, memory, tile_count
from kernels.geometry import Layer, Unsupported
from kernels.packing import pack
from kernels.tiles import Tile

hopper = pytest.importorskip("kernels.hopper", reason="no triton here")
ROOT = Path(__file__).resolve().parents[2]

PERSISTENT = Tile("persistent", 64, 64, 64, warps=4, stages=3)
HALO = Tile("halo", 64, 64, 64, warps=4, stages=2)
SMALL = Layer(8, 24, 64, 64, relu=True)
ERRORS = {"float16": 3e-4, "bfloat16": 2.4e-3, "tf32": 3e-4}
"""Relative, of outputs rounded once: half a unit in the last place at the most, less on average."""

RIGHT: dict[str, dict[str, Any]] = {
    "borders": {"layer": Layer(9, 10, 64, 128), "batch": 2, "tile": Tile("persistent", 128, 64, 64, 8, 2)},
    "parts": {"layer": Layer(9, 10, 64, 256), "tile": Tile("persistent", 128, 256, 64, 8, 4)},
    "parts share a slot": {
        "layer": Layer(6, 9, 64, 256, kernel=1, padding=0),
        "tile": Tile("persistent", 128, 256, 64, 8, 4),
        "programs": 1,
    },
    "many programs": {"layer": Layer(5, 17, 64, 128), "batch": 3, "tile": PERSISTENT, "programs": 12},
    "one program": {
        "layer": Layer(5, 17, 64, 128),
        "batch": 3,
        "tile": PERSISTENT._replace(stages=4),
        "programs": 1,
    },
    "pool": {
        "layer": Layer(4, 4, 64, 128, relu=True, pool=True),
        "batch": 9,
        "tile": Tile("persistent", 128, 128, 64, 8, 2),
        "precision": "bfloat16",
    },
    "pool of odd sides": {"layer": Layer(7, 11, 64, 64, pool=True), "batch": 3, "tile": PERSISTENT},
    "tiny images": {"layer": Layer(2, 2, 64, 64, pool=True), "batch": 70, "tile": PERSISTENT},
    "tf32": {
        "layer": Layer(9, 10, 64, 64, relu=True),
        "tile": Tile("persistent", 64, 64, 32, 4, 2),
        "precision": "tf32",
    },
    "dense": {"layer": Layer(1, 1, 256, 64, kernel=1, padding=0, relu=True), "batch": 67, "tile": PERSISTENT},
    "5x5": {"layer": Layer(9, 8, 64, 64, kernel=5, padding=2), "tile": PERSISTENT},
    "no padding": {"layer": Layer(9, 8, 64, 64, padding=0), "tile": PERSISTENT},
    "halo": {"layer": Layer(18, 11, 128, 64), "tile": Tile("halo", 128, 64, 64, 8, 3)},
    "halo, pool": {
        "layer": Layer(17, 18, 64, 128, relu=True, pool=True),
        "batch": 2,
        "tile": Tile("halo", 128, 128, 64, 4, 2),
        "precision": "bfloat16",
    },
    "halo, tf32": {
        "layer": Layer(9, 9, 64, 64, relu=True, pool=True),
        "tile": HALO._replace(channels=32),
        "precision": "tf32",
        "programs": 3,
    },
}
WRONG: dict[str, dict[str, Any]] = {
    "no fence": {"layer": SMALL, "tile": PERSISTENT, "changes": {"fence.proxy.async.shared::cta;": ""}},
    "no barrier": {"layer": SMALL, "tile": HALO, "changes": {"bar.sync \t0, 128;": ""}},
    "early release": {
        "layer": SMALL,
        "tile": PERSISTENT._replace(stages=2),
        "changes": {"wgmma.wait_group.sync.aligned 1;": "wgmma.wait_group.sync.aligned 3;"},
    },
    "no release": {
        "layer": SMALL,
        "tile": HALO,
        "changes": {"mbarrier.arrive.shared::cta.b64 _": "mov.b32 %r0, 0 //"},
    },
    "stores not waited for": {
        "layer": SMALL,
        "tile": PERSISTENT,
        "changes": {"cp.async.bulk.wait_group.read": "cp.async.bulk.wait_group.read 9 //"},
    },
}
"""Mistakes made in the compiled programs, as they could have been made in the kernels."""
LARGE: dict[str, dict[str, Any]] = {
    "conv4_2": {"layer": Layer(28, 28, 512, 512, relu=True), "tile": Tile("persistent", 128, 256, 64, 8, 4)},
    "conv1_2": {
        "layer": Layer(224, 224, 64, 64, relu=True, pool=True),
        "tile": Tile("halo", 256, 64, 64, 8, 3),
    },
}
"""Of VGG; only compiled."""
ALL = {**RIGHT, **WRONG, **LARGE}


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """What tests/kernels/compiled_hopper.py answers, in a process of its own: Triton interprets in this one."""
    lines = [
        json.dumps({"precision": "float16", "batch": 1, "programs": 0 if name in LARGE else 2, **case})
        for name, case in ALL.items()
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    answers = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiled_hopper.py")],
        input="\n".join(lines), env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert answers.returncode == 0, answers.stderr[-3000:]
    return dict(zip(ALL, map(json.loads, answers.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", RIGHT)
def test_the_compiled_kernels_compute_what_torch_does(compiled, name):
    assert "fault" not in compiled[name], compiled[name]
    assert compiled[name]["error"] <= ERRORS[RIGHT[name].get("precision", "float16")]


@pytest.mark.parametrize("name", WRONG)
def test_the_imitation_sees_mistakes(compiled, name):
    assert "fault" in compiled[name] or not compiled[name]["error"] <= 1e-2, compiled[name]


@pytest.mark.parametrize("name", ALL)
def test_the_compiled_kernels_fit_and_do_not_spill(compiled, name):
    case, found = ALL[name], compiled[name]
    planned = memory(case["layer"], case["tile"], case.get("precision", "float16"))
    assert found["spills"] == 0
    assert planned.bytes <= found["shared"] <= planned.bytes + boxes.SLACK
    assert planned.programs * (found["shared"] + boxes.RESERVED) <= boxes.PROCESSOR_SHARED
    assert found["shared"] <= boxes.SHARED_LIMIT


@pytest.mark.parametrize(("name", "products", "length"), [("conv4_2", 4, 55), ("conv1_2", 24, 130)])
def test_the_main_loop_is_short(compiled, name, products, length):
    """../shared/kernels.md, section 3, has 41 to 44, and 118 of 24 products."""
    loop = compiled[name]["loop"]
    assert loop["wgmma"] == products
    assert sum(loop.values()) <= length


# --- boxes, memory, refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "batch", "pixels", "pool", "used"),
    [
        (224, 1, 128, False, 1.0),
        (112, 1, 128, True, 1.0),
        (56, 2, 128, False, 1.0),
        (28, 8, 128, True, 1.0),
        (14, 32, 128, True, 1.0),
        (14, 8, 128, False, 0.875),
        (12, 32, 128, False, 1.0),
        (224, 1, 256, True, 1.0),
    ],
)
def test_boxes_waste_no_more_than_they_must(side, batch, pixels, pool, used):
    """Shares of ../shared/kernels.md, section 3."""
    layer, tile = Layer(side, side, 64, 64, pool=pool), Tile("persistent", pixels, 64, 64, 8)
    count = tile_count(layer, tile, choose_box(layer, tile, batch), batch)
    assert batch * side * side / (count * pixels) == pytest.approx(used)


def test_boxes_of_pooled_layers_hold_whole_windows_within_a_warp():
    for side in (2, 3, 5, 14, 28, 48, 224):
        for pixels in (64, 128, 256):
            for batch in (1, 3, 8, 100):
                layer = Layer(side, side, 64, 64, pool=True)
                box = choose_box(layer, Tile("persistent", pixels, 64, 64), batch)
                assert box.images * box.rows * box.columns == pixels
                assert box.rows >= 2 and box.columns in (2, 4, 8)


def test_every_pixel_and_filter_is_of_one_tile():
    layer, tile, batch = Layer(28, 20, 64, 256), Tile("persistent", 128, 128, 64, 8), 5
    box = choose_box(layer, tile, batch)
    constant = hopper.constants(layer, tile, "float16", batch)
    counts = [constant[name] for name in ("ROW_TILES", "COLUMN_TILES", "FILTER_TILES")]
    covered = torch.zeros(batch, layer.rows, layer.columns, layer.filters, dtype=torch.int32)
    for number in range(tile_count(layer, tile, box, batch)):
        image, row, column, filter = hopper.persistent.place.fn(number, *counts, *box, tile.filters)
        covered[
            image : image + box.images,
            row : row + box.rows,
            column : column + box.columns,
            filter : filter + tile.filters,
        ] += 1
    assert (covered == 1).all()


def test_what_does_not_fit_into_shared_memory_is_refused():
    layer = Layer(56, 56, 256, 256)
    most = Tile("persistent", 128, 256, 64, 8, 4)
    assert faults(layer, most, "float16") == []
    assert memory(layer, most, "float16").bytes <= boxes.SHARED_LIMIT - boxes.SLACK
    (fault,) = faults(layer, most._replace(stages=5), "float16")
    assert fault == "5 stages of 49152 bytes (232448 bytes in all)"


@pytest.mark.parametrize(
    ("layer", "changes", "precision", "message"),
    [
        (Layer(8, 8, 64, 64), {}, "float32", "float32 in full"),
        (Layer(8, 8, 64, 64, stride=2), {}, "float16", "stride 2 (1)"),
        (Layer(8, 8, 48, 64), {}, "float16", "48 input channels (a multiple of 64)"),
        (Layer(8, 8, 64, 96), {}, "float16", "96 filters in blocks of 64"),
        (Layer(8, 8, 64, 64), {"channels": 32}, "float16", "32 channels at a time (64)"),
        (Layer(8, 8, 64, 256), {"filters": 256, "warps": 8, "pixels": 256}, "float16", "more than 128 sums"),
        (Layer(8, 8, 64, 64), {"stages": 1}, "float16", "one stage"),
        (Layer(8, 8, 64, 64, kernel=5, padding=2), {"kind": "halo"}, "float16", "other than 3x3"),
        (Layer(8, 8, 64, 64), {"warps": 8}, "float16", "64 pixels for 8 warps"),
    ],
)
def test_layers_and_tiles_are_refused_by_name(layer, changes, precision, message):
    tile = PERSISTENT._replace(**changes)
    with pytest.raises(Unsupported) as refusal:
        hopper.constants(layer, tile, precision)
    assert message in str(refusal.value)


def test_a_grid_has_no_more_programs_than_tiles_or_places():
    layer = Layer(56, 56, 256, 256)
    assert hopper.grid(layer, Tile("persistent", 128, 256, 64, 8, 3), 1) == (28,)
    assert hopper.grid(layer, Tile("persistent", 128, 256, 64, 8, 3), 64) == (132,)
    assert hopper.grid(layer, Tile("persistent", 128, 64, 64, 8, 3), 64) == (2 * 132,)


# --- the check before use -----------------------------------------------------------------------------------------


def test_without_a_hopper_no_tile_passes_the_check():
    assert not hopper.selfcheck(Layer(8, 8, 64, 64), PERSISTENT, "float16")


@pytest.fixture
def device(monkeypatch):
    """This processor as if it were a Hopper; `run` is to be replaced."""
    monkeypatch.setattr(hopper, "is_hopper", lambda: True)
    monkeypatch.setattr(hopper, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(hopper, "_wait", lambda tile: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(hopper, "_verdicts", {})
    return monkeypatch


def computing(change: Any = lambda output: None) -> Any:
    def run(input, weight, bias, output, layer, tile, precision, box, programs):
        output.copy_(twin.convolution(input, weight, bias, layer, precision))
        change(output)

    return run


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "tf32"])
def test_a_kernel_that_computes_what_its_twin_does_passes_once_and_for_all(device, precision, recwarn):
    layer, tile = Layer(9, 7, 64, 64), PERSISTENT._replace(channels=32 if precision == "tf32" else 64)
    device.setattr(hopper, "run", computing())
    assert hopper.selfcheck(layer, tile, precision, batch=2)
    device.setattr(hopper, "run", None)
    assert hopper.selfcheck(layer, tile, precision, batch=3)  # the same boxes
    assert not recwarn
    device.setenv("FER_KERNELS_HOPPER", "0")
    assert not hopper.selfcheck(layer, tile, precision)


@pytest.mark.parametrize("factor", [1.02, torch.nan])
def test_one_wrong_or_missing_output_is_refused(device, factor):
    def spoil(output: torch.Tensor) -> None:
        output[output == output.max()] *= factor

    device.setattr(hopper, "run", computing(spoil))
    with pytest.warns(UserWarning, match="the halo kernel is wrong by"):
        assert not hopper.selfcheck(Layer(9, 7, 64, 64), HALO, "float16", batch=1)


def test_a_kernel_that_does_not_compile_is_refused_and_one_that_hangs_is_told(device):
    def fails(*arguments: Any) -> None:
        raise LookupError("no such instruction")

    device.setattr(hopper, "run", fails)
    with pytest.warns(UserWarning, match="does not run: LookupError"):
        assert not hopper.selfcheck(Layer(9, 7, 64, 64), HALO, "float16")

    def hangs(tile: Tile) -> None:
        raise hopper.Hung("the halo kernel hangs")

    device.setattr(hopper, "run", computing())
    device.setattr(hopper, "_wait", hangs)
    with pytest.raises(hopper.Hung):
        hopper.selfcheck(Layer(8, 8, 64, 64), HALO, "float16")


def test_while_a_graph_is_captured_nothing_is_checked_and_what_is_known_is_used(device, recwarn):
    layer = Layer(8, 8, 64, 64)
    device.setattr(hopper, "run", computing())
    device.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.warns(UserWarning, match="run once before"):
        assert not hopper.selfcheck(layer, HALO, "float16", batch=1)
    recwarn.clear()
    for capturing in (False, True):
        device.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert hopper.selfcheck(layer, HALO, "float16", batch=1)
    assert not recwarn


# --- what the device is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [PERSISTENT, HALO], ids=lambda tile: tile.kind)
def test_descriptors_are_of_the_numbers_in_the_order_of_the_kernel(case, tile, monkeypatch):
    """Of images of one pixel too, whose strides torch leaves as they come."""
    told: dict[str, Any] = {}

    class Kernel:
        arg_names = hopper.module(tile).KERNEL.arg_names

        def __getitem__(self, programs: tuple[int, ...]) -> Any:
            return told.update

    for layer, batch in ((Layer(12, 10, 64, 128, pool=True), 2), (Layer(1, 1, 128, 64), 3)):
        one = case(layer, batch, "float16")
        weight = pack(one.weight, "float16")
        monkeypatch.setattr(hopper.module(tile), "KERNEL", Kernel())
        box = choose_box(layer, tile, batch)
        hopper.run(one.input, weight, one.bias, one.output, layer, tile, "float16", box, (4,))
        assert set(told) == {*Kernel.arg_names, "num_warps", "maxnreg"}
        for name, tensor in (("input", one.input), ("output", one.output)):
            descriptor = told[f"{name}_descriptor"]
            seen = descriptor.base.as_strided(descriptor.shape, descriptor.strides)
            assert torch.equal(seen, tensor.permute(0, 2, 3, 1).view(seen.shape)) or name == "output"
            assert seen.shape == tensor.permute(0, 2, 3, 1).shape
            assert seen.data_ptr() == tensor.data_ptr() and seen.is_contiguous()
        assert told["weight_descriptor"].base is weight
        assert told["tiles"] == tile_count(layer, tile, box, batch)
