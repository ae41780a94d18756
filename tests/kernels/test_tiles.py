"""Which tile is chosen: shared memory by hand, what fits, candidates, the model's choice; the tuner but for its timing."""

from __future__ import annotations

import json
import threading
import warnings

import pytest
import torch

from kernels import problem, roofline, runner, tickets, tiles, tune, twin
from kernels.geometry import PRECISIONS, Layer
from kernels.roofline import vgg19
from kernels.tiles import AMD, CHIPS, HOPPER, Key, Tile

VGG = vgg19(224)
SMALL = Layer(6, 5, 16, 32, relu=True)
RESNET = [
    Layer(224, 224, 3, 64, kernel=7, stride=2, padding=3, relu=True),
    Layer(56, 56, 64, 128, stride=2, relu=True),
    Layer(56, 56, 64, 256, kernel=1, padding=0),
    Layer(7, 7, 512, 48, kernel=1, padding=0),
    Layer(9, 9, 48, 80, kernel=5, padding=2),
]
DEVICES = [*CHIPS, (7, 5), (12, 0)]


@pytest.mark.parametrize(
    ("tile", "precision", "expected"),
    [
        (Tile("implicit", 128, 128, 64, stages=3), "float16", 3 * (128 * 64 + 128 * 64) * 2),  # 96 KB
        (Tile("implicit", 64, 256, 32, stages=4), "tf32", 4 * (64 * 32 + 256 * 32) * 4),
        (Tile("split", 16, 64, 64, stages=4, splits=8), "bfloat16", 4 * (16 * 64 + 64 * 64) * 2),
        (Tile("stem", 128, 64, 32, stages=3), "float32", 128 * 64 * 4),  # outputs
        (Tile("persistent", 128, 256, 64, 8, stages=4), "float16", 4 * (128 + 256) * 128),
        (Tile("halo", 128, 64, 64, 8, stages=2), "float16", 2 * (18 * 8 + 3 * 64) * 128),
    ],
)
def test_shared_memory_by_hand(tile, precision, expected):
    assert tiles.shared_bytes(tile, precision) == expected


@pytest.mark.parametrize(
    ("tile", "fitting"),
    [
        (
            Tile("implicit", 128, 256, 64, 8, 4),
            {HOPPER, (8, 0)},
        ),  # 196608 bytes, 147456 with a stage in registers
        (Tile("implicit", 128, 256, 64, 8, 3), {HOPPER, (8, 0), (8, 6), (8, 9)}),  # 147456, 98304
        (Tile("implicit", 128, 128, 64, 8, 3), set(DEVICES) - {(12, 0)}),  # 98304, 65536
        (Tile("implicit", 128, 128, 64, 8, 2), set(DEVICES)),  # 65536, 32768
        (Tile("implicit", 128, 128, 64, 8, 2, descriptor=True), {HOPPER, (12, 0)}),
        (Tile("implicit", 128, 256, 64, 4, 2), {AMD}),  # 256 sums per thread, 128 where a warp has 64
        (Tile("persistent", 128, 128, 64, 8, 4), {HOPPER}),
        (Tile("implicit", 128, 128, 128, 8, 1), set()),  # 64 channels
        (Tile("stem", 128, 64, 32), set()),
        (Tile("split", 16, 64, 64, splits=9), set(DEVICES)),
        (Tile("split", 16, 64, 64, splits=10), set()),  # 9 steps
    ],
)
def test_what_fits_where(tile, fitting):
    layer = Layer(28, 28, 64, 256, relu=True)
    assert {device for device in DEVICES if tiles.fits(tile, layer, "float16", device)} == fitting


def test_no_thread_has_more_sums_than_registers():
    short, long, layer = VGG["conv1_1"], RESNET[0], VGG["conv4_2"]
    large, small = Tile("stem", 256, 64, 32, 8, 1), Tile("stem", 128, 64, 32, 8, 1)  # 64 and 32 sums a thread
    assert tiles.fits(large, short, "float32", (8, 0))
    assert not tiles.fits(large, long, "float32", (8, 0))
    assert tiles.fits(small, long, "float32", (8, 0))
    shared_by = [Tile("split", 64, 128, 32, 4, 2, splits) for splits in (4, 6)]  # 32 sums of a lane of 64
    assert [tiles.fits(tile, layer, "float32", AMD) for tile in shared_by] == [True, False]
    assert all(tiles.fits(tile, layer, "float32", (8, 0)) for tile in shared_by)


def test_no_candidate_computes_twice_the_filters_there_are():
    for device in DEVICES:
        found = tiles.candidates(VGG["conv1_2"], 32, "float16", device)
        assert {tile.filters for tile in found} <= {16, 32, 64}
    assert {tile.filters for tile in tiles.candidates(VGG["fc2"], 1, "float16", HOPPER)} <= {16, 64}


def test_a_stem_is_computed_by_the_stem_alone():
    assert tiles.fits(Tile("stem", 128, 64, 32), VGG["conv1_1"], "float16", (8, 0))
    assert not tiles.fits(Tile("implicit", 128, 64, 16), VGG["conv1_1"], "float16", (8, 0))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_layer_has_candidates_that_fit_on_every_device(precision, device):
    for layer in [*dict.fromkeys(VGG.values()), *RESNET]:
        found = tiles.candidates(layer, 8, precision, device)
        assert found, layer
        assert len(found) == len(set(found)) <= 20
        assert all(tiles.fits(tile, layer, precision, device) for tile in found)
        guess = tiles.heuristic(layer, 8, precision, device)
        assert guess in found
        assert guess.kind not in tiles.HOPPER_ONLY


def test_candidates_have_the_best_of_each_kernel_and_are_in_the_models_order():
    found = tiles.candidates(VGG["conv3_2"], 32, "float16", HOPPER)
    kinds = [f"{tile.kind}{tile.descriptor:d}" for tile in found]
    assert all(
        kinds.count(kind) >= 2 for kind in ("implicit1", "implicit0", "split1", "persistent0", "halo0")
    )
    costs = [tiles.cost(tile, VGG["conv3_2"], 32, "float16", HOPPER) for tile in found]
    assert costs == sorted(costs)
    portable = {tile.kind for tile in tiles.candidates(VGG["conv3_2"], 32, "float16", (8, 0))}
    assert portable == {"implicit", "split"}


@pytest.mark.parametrize("name", ["conv4_2", "conv5_1", "fc1"])
def test_where_a_layer_has_few_pixels_the_sum_is_split_until_the_processors_have_work(name):
    tile = tiles.heuristic(VGG[name], 1, "float16", HOPPER)
    assert tile.kind == "split"
    assert tile.splits > 1
    assert tiles.programs(tile, VGG[name], 1) >= 132 * 3 // 4


@pytest.mark.parametrize("name", ["conv2_2", "conv3_2", "conv4_2"])
def test_where_it_has_many_tiles_are_large(name):
    tile = tiles.heuristic(VGG[name], 32, "float16", HOPPER)
    assert tile.kind == "implicit"
    assert tile.pixels * tile.filters >= 128 * 128


def test_programs_by_hand():
    pooled = Layer(7, 7, 64, 96, pool=True)  # 3x3 windows of 4 pixels; the last row and column are dropped
    assert tiles.programs(Tile("implicit", 64, 64, 64), pooled, 2) == 2 * 2  # 72 pixels, 96 filters
    assert tiles.programs(Tile("split", 16, 64, 64, splits=3), pooled._replace(pool=False), 1) == 4 * 2 * 3


def test_the_model_by_hand():
    layer = Layer(16, 16, 64, 128)  # two tiles an image
    tile, chip = Tile("implicit", 128, 128, 64, 8), CHIPS[8, 0]
    arithmetic = 128 * 128 * 9 * 64 * 2 * chip.processors / chip.flops
    reads = 9 * 256 * 64 * 2 * chip.processors / chip.cache
    for batch, processors, rounds, edges in ((1, 2, 1, 1), (1, 1, 2, 1), (3, 1, 6, 3), (3, 4, 2, 1)):
        computing = rounds * max(arithmetic, reads) + edges * tiles.EDGE  # two tiles share a processor
        memory = layer.bytes(batch, "float16") / chip.memory
        expected = max(computing, memory) + min(computing, memory) / 8
        assert tiles.cost(tile, layer, batch, "float16", (8, 0), processors) == pytest.approx(expected)


def test_without_a_gpu_choose_gives_tiles_for_the_interpreter():
    for layer in [*VGG.values(), *RESNET]:
        tile = tiles.choose(layer, 2, "float32", torch.device("cpu"))
        assert tiles.fits(tile, layer, "float32", (8, 0))
        assert not tile.descriptor


# --- what was tuned -----------------------------------------------------------------------------------------------

KEY = Key("NVIDIA H100 80GB HBM3", "3.6.0", "2.11.0", "float16", 8, SMALL)
BEST = Tile("implicit", 64, 32, 16, descriptor=True)
OTHER = Tile("split", 16, 64, 16, splits=4)


def keep(folder, key: Key, *trials: tune.Trial):
    return tune.write(folder, key, tune.entry(key, list(trials), OTHER))


def test_what_was_tuned_is_found_for_its_key_alone(tmp_path):
    keep(tmp_path, KEY, tune.Trial(BEST, 1e-5), tune.Trial(OTHER, 2e-5))
    known = tiles.tuned(tmp_path)
    assert tiles.lookup(known, KEY, HOPPER) == BEST
    for other in (
        {"device": "NVIDIA A100"},
        {"triton": "3.7.1"},
        {"torch": "2.13.0"},
        {"precision": "bfloat16"},
        {"batch": 7},
        {"layer": SMALL._replace(pool=True)},
    ):
        assert tiles.lookup(known, KEY._replace(**other), HOPPER) is None
    assert tiles.lookup(known, KEY, (8, 0)) is None, "weights by TMA, where there is none"


def test_a_devices_file_keeps_one_entry_a_key_and_says_what_was_measured(tmp_path):
    keep(tmp_path, KEY, tune.Trial(BEST, 1e-5), tune.Trial(OTHER, 2e-5))
    keep(tmp_path, KEY._replace(batch=1), tune.Trial(OTHER, 3e-6))
    path = keep(tmp_path, KEY, tune.Trial(OTHER, 8e-6), tune.Trial(BEST, 9e-6))
    assert list(tmp_path.iterdir()) == [tmp_path / "nvidia-h100-80gb-hbm3-triton3.6.0-torch2.11.0.json"]
    kept = {entry["batch"]: entry for entry in json.loads(path.read_text())["tiles"]}
    assert kept[8]["microseconds"] == kept[8]["microseconds_of_model"] == 8.0
    assert (kept[8]["candidates"], kept[1]["candidates"]) == (2, 1)
    assert tiles.tuned(tmp_path) == {KEY: OTHER, KEY._replace(batch=1): OTHER}


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"device": "", "triton": "", "torch": "", "tiles": [1]}']
)
def test_a_file_that_is_none_is_named_and_left_out(tmp_path, content):
    keep(tmp_path, KEY, tune.Trial(BEST, 1e-5))
    (tmp_path / "broken.json").write_text(content)
    with pytest.warns(UserWarning, match=r"broken\.json is not a file of kernels\.tune"):
        assert tiles.tuned(tmp_path) == {KEY: BEST}


def test_a_reader_never_sees_half_a_file(tmp_path):
    keep(tmp_path, KEY, tune.Trial(BEST, 1e-5))
    ended = threading.Event()

    def write():
        for batch in range(60):
            keep(tmp_path, KEY._replace(batch=batch), tune.Trial(BEST, 1e-5))
        ended.set()

    writer = threading.Thread(target=write)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.start()
        sizes = [len(tiles.tuned(tmp_path))]
        while not ended.is_set():
            sizes.append(len(tiles.tuned(tmp_path)))
    writer.join()
    assert sizes == sorted(sizes)
    assert len(tiles.tuned(tmp_path)) == 60
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_what_is_tuned_is_chosen_by_at_once(tmp_path):
    for tile in (BEST, OTHER):
        keep(tmp_path, KEY, tune.Trial(tile, 1e-5))
        assert tiles._tuned(tmp_path) == {KEY: tile}


def test_nothing_was_measured_yet_or_it_is_readable():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = tiles.tuned()
    assert all(isinstance(tile, Tile) for tile in known.values())


# --- the tuner, but for the timing --------------------------------------------------------------------------------


def test_the_quickest_comes_first_and_what_fails_is_told():
    times = {BEST: 2e-6, OTHER: 1e-6}

    def measure(tile: Tile) -> float:
        if tile not in times:
            raise RuntimeError("ptxas gave up\nand said more")
        return times[tile]

    failing = Tile("implicit", 256, 256, 64)
    trials = tune.tune([BEST, failing, OTHER], measure)
    assert [trial.tile for trial in trials] == [OTHER, BEST, failing]
    assert tune.report("3/7", KEY, trials).splitlines() == [
        "[3/7] float16 batch 8 6x5 16->32: split 16x64x16 w4 s3 /4 1.0 us of 3",
        "    implicit 256x256x64 w4 s3: ptxas gave up",
    ]
    assert "nothing works" in tune.report("1/1", KEY, tune.tune([failing], measure))


def test_an_interrupt_ends_the_tuning():
    def measure(tile: Tile) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune.tune([BEST, OTHER], measure)


def fake_seconds(launches) -> float:
    """In place of CUDA graphs and events: launches what would be timed."""
    inputs, weights, _, outputs = zip(*((*launch.args[:3], launch()) for launch in launches), strict=True)
    for tensors in (inputs, weights, outputs):
        assert len({tensor.data_ptr() for tensor in tensors}) == len(launches) == problem.INPUTS
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    return 1e-6


@pytest.mark.parametrize(("layer", "tile"), [(SMALL, Tile("implicit", 32, 32, 16)), (SMALL, OTHER)])
def test_a_tile_is_verified_before_it_is_timed(monkeypatch, layer, tile):
    monkeypatch.setattr(tune, "seconds", fake_seconds)
    measure = tune.measurer(layer, 1, "float16", torch.device("cpu"))
    assert measure(tile) == 1e-6
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["conv3_1", "conv4_2", "fc1"])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_weights_have_left_the_cache_before_they_are_read_again(name, batch):
    layer, cache = VGG[name], 50 << 20
    weight = layer.filters * layer.taps * layer.channels * 2
    inputs = problem.INPUTS * batch * layer.height * layer.width * layer.channels * 2
    count = tune.weight_copies(weight, inputs, cache)
    assert problem.INPUTS <= count <= tune.MOST_WEIGHTS
    assert (count - 1) * weight + inputs >= cache or (count == tune.MOST_WEIGHTS and weight < 1 << 20)
    assert count == problem.INPUTS or (count - 2) * weight + inputs < cache


def test_a_graph_that_is_timed_has_tickets_in_store_and_all_launches_in_turn(monkeypatch):
    """Without a GPU: graphs and events that do nothing, tickets on the CPU."""
    store, drawn = tickets.TicketStore(torch.device("cpu")), []

    class Nothing:
        def __init__(self, *_, **__): ...
        def __enter__(self): ...
        def __exit__(self, *_): ...
        def record(self): ...

        replay = synchronize = record

        def elapsed_time(self, _):
            return 60.0

    for name in ("CUDAGraph", "graph", "Event"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: drawn.clear())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tune, "TicketStore", lambda device: store)
    memory = store._free.untyped_storage().data_ptr()

    def draw(number):
        mine = tickets.draw(1, torch.device("cpu"))
        drawn.append((number, mine.untyped_storage().data_ptr() == memory))

    launches = [lambda number=number: draw(number) for number in range(20)]
    assert tune.seconds(launches) == pytest.approx(60e-3 / 20)
    assert drawn == [(number, True) for number in range(20)]
    assert tune.seconds(launches[:3]) == pytest.approx(60e-3 / 18)  # six turns


def test_the_twin_multiplies_all_bits_with_cudnn_in_use_whatever_is_allowed(monkeypatch):
    seen = []

    def settings():
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.allow_tf32, torch.get_float32_matmul_precision()

    def convolution(*arguments):
        seen.append(settings())
        return arguments[0]

    monkeypatch.setattr(twin, "convolution", convolution)
    before = settings()
    torch.set_float32_matmul_precision("high")
    try:
        problem.problem(SMALL, 1, "float32", torch.device("cpu"))
        assert settings() == (*before[:2], "high")
    finally:
        torch.set_float32_matmul_precision(before[2])
    assert seen == [(True, False, "highest")]


def test_by_default_all_is_tuned_that_is_timed_or_captured(monkeypatch, tmp_path, capsys):
    from kernels import bench

    machine = "GPU", "3.7.1", "2.13.0"
    asked = []
    for name, value in {"is_available": True, "current_device": 0, "get_device_name": machine[0]}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(tiles, "versions", lambda: machine[1:])
    monkeypatch.setattr(tune, "tune_all", lambda keys, device, folder: asked.extend(keys))
    assert tune.main(["--output", str(tmp_path)]) == 0
    for size in bench.GPU_CELLS["sizes"]:
        for layer in roofline.vgg19(size).values():
            for precision in bench.GPU_CELLS["precisions"]:
                for batch in {*bench.GPU_CELLS["batches"], *runner.BATCHES}:
                    assert Key(*machine, precision, batch, layer) in asked
    assert len(set(asked)) == len(asked)
    assert capsys.readouterr().out == f"GPU: {len(asked)} of {len(asked)} to measure\n"


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(tune, "seconds", fake_seconds)
    implicit = tiles.module("implicit")
    right = implicit.launch

    def wrong(*arguments):
        output = right(*arguments)
        output[0, 0] += 0.5
        return output

    monkeypatch.setattr(implicit, "launch", wrong)
    measure = tune.measurer(SMALL, 1, "float16", torch.device("cpu"))
    with pytest.raises(tune.Wrong, match=r"off by .*, more than 1e-03"):
        measure(Tile("implicit", 32, 32, 16))


def test_what_was_never_written_is_wrong(monkeypatch):
    """torch.empty gives back the memory of the last result, which is right."""
    monkeypatch.setattr(tune, "seconds", fake_seconds)
    empty = lambda *arguments: torch.empty(1, 32, 6, 5).half()  # noqa: E731
    monkeypatch.setattr(tiles.module("implicit"), "launch", empty)
    measure = tune.measurer(SMALL, 1, "float16", torch.device("cpu"))
    with pytest.raises(tune.Wrong, match="nan"):
        measure(Tile("implicit", 32, 32, 16))


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_a_gpu_there_is_nothing_to_tune(capsys):
    assert tune.main([]) == 2
    words = "no GPU to measure on; `python -m kernels.matrix` compiles without one\n"
    assert capsys.readouterr() == ("", words)
