"""What a graph may look like, and what swapping makes of it: values used twice, changed in place, of other types."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from swapping import BOUNDS, check, error, exported, folded, randomised
from torch import nn
from torch.export import Dim, export
from torch.nn import functional

from kernels import NothingToSwap, swap


class Net(nn.Module):
    """Two convolutions, a dense layer and whatever `forward` a test gives it."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm, self.dense = nn.BatchNorm2d(32), nn.Linear(32, 16)
        self.body = forward
        randomised(self)

    def forward(self, images):
        return self.body(self, images)


def used_twice(net, x):
    x = net.a(x)
    return functional.relu(x) + x


def changed_under_its_other_user(net, x):
    x = net.a(x)
    before = x + 1
    x.relu_()
    return before * x.sum()


def changed_through_a_view(net, x):
    x = net.a(x)
    x.flatten(1).relu_()
    return net.b(x)


def relu_used_twice(net, x):
    x = functional.relu(net.a(x))
    return functional.max_pool2d(x, 2).sum((2, 3)) + x.sum((2, 3))


def norm_after_relu(net, x):
    return functional.max_pool2d(net.norm(net.a(x).relu()), 2)


def norm_of_a_value_used_twice(net, x):
    x = net.a(x)
    return net.norm(x) + x


def pool_before_relu(net, x):
    return functional.max_pool2d(net.a(x), 2).relu()


def overlapping_pool(net, x):
    return functional.max_pool2d(net.a(x).relu(), 3, 2, 1)


def pool_of_odd_sides_with_the_rest(net, x):
    return functional.max_pool2d(net.a(x), 2, ceil_mode=True)


def shared(net, x):
    return net.b(net.b(net.a(x)).relu())


def flattened_by_view(net, x):
    x = functional.adaptive_avg_pool2d(net.a(x), 1)
    return net.dense(x.view(x.size(0), -1)).relu()


def dense_of_three_dimensions(net, x):
    return net.dense(net.a(x).flatten(2).mT)


def dense_over_pixels(net, x):
    return net.dense(net.a(x).permute(0, 2, 3, 1).reshape(-1, 32))


def kept_flattening(net, x):
    return net.a(x).relu().flatten(1) * 2


def softmax_behind(net, x):
    return net.a(x).relu().mean((2, 3)).softmax(1)


def tanh_between(net, x):
    return net.b(net.a(x).tanh())


def large_before(net, x):
    return net.a((x * 1e6).relu() / 1e6)


CASES = {
    # how many layers are swapped, what is folded into the first, and what else is called
    used_twice: (1, (), {"relu", "add"}),
    changed_under_its_other_user: (1, (), {"relu", "add", "mul", "sum"}),
    changed_through_a_view: (2, (), None),
    relu_used_twice: (1, ("relu",), {"max_pool2d", "sum", "add"}),
    norm_after_relu: (1, ("relu",), {"batch_norm", "max_pool2d"}),
    norm_of_a_value_used_twice: (1, (), {"batch_norm", "add"}),
    pool_before_relu: (1, ("max_pool2d", "relu"), set()),
    overlapping_pool: (1, ("relu",), {"max_pool2d"}),
    pool_of_odd_sides_with_the_rest: (1, (), {"max_pool2d"}),
    shared: (3, (), set()),
    flattened_by_view: (2, (), {"adaptive_avg_pool2d"}),
    dense_of_three_dimensions: (1, (), None),
    dense_over_pixels: (2, (), None),
    kept_flattening: (1, ("relu",), None),
    softmax_behind: (1, ("relu",), {"mean", "softmax"}),
    large_before: (1, (), {"mul", "relu", "div"}),
    tanh_between: (2, (), {"tanh"}),
}


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_graphs(forward):
    layers, first, others = CASES[forward]
    report = check(Net(forward), (16, 7, 9), "float16")
    assert len(report.swapped) == layers
    assert folded(report)[0] == first
    if others is not None:
        assert set(report.others) - IDLE == others


IDLE = {"_to_copy", "flatten", "reshape", "sym_size", "permute"}


def test_shared_weights_stay_one(tmp_path):
    swapped, _ = swap(exported(Net(shared), (16, 8, 8)))
    assert len([name for name in swapped.state_dict if name.endswith("_weight")]) == 2


KEPT = {
    "groups": (nn.Conv2d(16, 16, 3, groups=4), r"groups 4 \(1\)"),
    "dilation": (nn.Conv2d(16, 16, 3, dilation=2), r"dilation 2 \(1\)"),
    "channels": (nn.Conv2d(16, 16, (3, 1)), r"a kernel of 3x1 \(square\)"),
    "stride": (nn.Conv2d(16, 16, 3, stride=(1, 2)), r"a stride of 1x2 \(square\)"),
    "large": (nn.Conv2d(16, 16, 9), r"a kernel of 9 \(1..7\)"),
    "far": (nn.Conv2d(16, 16, 3, stride=3), r"stride 3 \(1..2\)"),
    "lopsided": (nn.Conv2d(16, 16, 2, padding="same"), "padding 'same' of an even kernel"),
    "padded": (nn.Conv2d(16, 16, 1, padding=1), "padding 1"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_the_kernels_do_not_take_is_kept_with_its_reason(name):
    layer, reason = KEPT[name]
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding="same"), nn.ReLU(), copy.deepcopy(layer), nn.ReLU())
    )
    report = check(net, (3, 14, 13), "float16")
    assert [kept.name for kept in report.kept] == ["2"] and len(report.swapped) == 1
    assert re.search(reason, report.kept[0].reason)
    assert report.kept[0].reason in str(report)


def test_channels_that_do_not_fit_are_kept():
    net = randomised(nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 16, 3), nn.Conv2d(16, 8, 3)))
    report = check(net, (3, 14, 13))
    assert [kept.name for kept in report.kept] == ["2"]
    assert "20 input channels (1..4, or a multiple of 16)" in report.kept[0].reason


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)

    def forward(self, images):
        return functional.conv2d(self.first(images), self.weight / self.weight.abs().amax())


def test_weights_that_the_program_computes_are_kept():
    assert "computed by the program" in check(Computed().eval(), (3, 9, 9)).kept[0].reason


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), "the program has none"),
        (nn.Sequential(nn.Conv2d(6, 4, 3)), r"0, conv2d: .*6 input channels \(1..4, or a multiple of 16\)"),
    ],
)
def test_nothing_to_swap(net, words):
    with pytest.raises(NothingToSwap, match=words):
        swap(exported(net.eval(), (6, 8, 8)))


def test_a_decomposed_program_is_not_swapped():
    program = exported(Net(flattened_by_view), (16, 8, 8)).run_decompositions()
    with pytest.raises(
        NothingToSwap, match=r"convolution: decomposed; .*\n.*addmm: decomposed; swap the program as torch"
    ):
        swap(program)


def test_an_unknown_precision():
    with pytest.raises(ValueError, match="'float64'; choices: float16, bfloat16, tf32, float32"):
        swap(exported(Net(shared), (16, 8, 8)), "float64")


def test_dropout_is_dropped():
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(16, 4, 3))
    )
    report = check(net, (3, 9, 9))
    assert folded(report)[0] == ("relu",) and not report.others


def test_in_training_mode_batch_norm_is_not_folded():
    net = randomised(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())).train()
    swapped, report = swap(export(net, (torch.zeros(2, 3, 9, 9),)), "float32")
    assert folded(report) == [()]
    images = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(swapped.module()(images), copy.deepcopy(net)(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float16, "float16"),
        (torch.float16, "float32"),
        (torch.bfloat16, "float16"),
        (torch.float64, "bfloat16"),
        (torch.float64, "float32"),
    ],
)
def test_programs_of_another_type_keep_it(dtype, precision):
    net = Net(tanh_between).to(dtype)
    swapped, _ = swap(exported(net, (16, 8, 8), dtype), precision)
    bound = max(BOUNDS[precision], {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 0))
    assert error(swapped, net, torch.randn(3, 16, 8, 8).to(dtype)) < bound


class Preprocessed(nn.Module):
    """uint8 in, probabilities out, as exports for people have it; two inputs and a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(softmax_behind)
        self.stem = nn.Conv2d(3, 16, 1)

    def forward(self, pixels, *, scale):
        images = (pixels.float() / 255 - 0.5) * scale
        return {"probabilities": self.net(self.stem(images)), "mean": images.mean((1, 2, 3))}


def test_preprocessing_and_several_inputs_and_outputs_come_along():
    net = Preprocessed().eval()
    batch = Dim("batch")
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    program = export(
        net,
        (pixels,),
        {"scale": torch.ones(4, 1, 1, 1)},
        dynamic_shapes={"pixels": {0: batch}, "scale": {0: batch}},
    )
    swapped, report = swap(program, "float32")
    assert len(report.swapped) == 2
    for images in (1, 3):
        given = {"scale": torch.randn(images, 1, 1, 1)}
        torch.testing.assert_close(swapped.module()(pixels[:images], **given), net(pixels[:images], **given))


def test_the_limits_of_a_batch_are_kept():
    net = Net(shared)
    program = export(net, (torch.zeros(2, 16, 8, 8),), dynamic_shapes=({0: Dim("batch", min=2, max=4)},))
    swapped, _ = swap(program, "float32")
    swapped.module()(torch.zeros(4, 16, 8, 8))
    with pytest.raises(Exception, match="4"):
        swapped.module()(torch.zeros(5, 16, 8, 8))


def test_the_program_given_is_left_alone():
    net = Net(pool_before_relu)
    program = exported(net, (16, 8, 8))
    before, images = str(program.graph), torch.randn(2, 16, 8, 8)
    swap(program)
    assert str(program.graph) == before
    assert torch.equal(program.module()(images), net(images))
