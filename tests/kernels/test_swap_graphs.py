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


def beyond_float16(net, x):
    """Numbers above 65504 behind kernels, in operations that mostly keep the kernels' type."""
    positive = (x[:, :1] > 0).long()
    y, large = net.a(x * 100).relu(), net.a(x * 3000).relu()
    parts = [
        (y + 7e4) - 7e4,
        torch.add(y, y, alpha=1e6) / 1e6,
        torch.cat([y, positive * 70000], 1) / 1e3,
        functional.avg_pool2d(large, (7, 9), divisor_override=1) / 1e3,
    ]
    return torch.cat([part.flatten(1) for part in parts], 1)


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
    beyond_float16: (2, ("relu",), None),
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


def test_what_the_kernels_do_not_take_is_kept_with_its_reason():
    layers = [layer for layer, _ in KEPT.values()]
    net = randomised(nn.Sequential(nn.Conv2d(3, 16, 3, padding="same"), nn.ReLU(), *copy.deepcopy(layers)))
    report = check(net, (3, 70, 40), "float16", batches=(3,))
    assert [kept.name for kept in report.kept] == [str(2 + number) for number in range(len(KEPT))]
    assert len(report.swapped) == 1
    for kept, (_, reason) in zip(report.kept, KEPT.values(), strict=True):
        assert re.search(reason, kept.reason) and kept.reason in str(report)


def test_channels_that_do_not_fit_are_kept():
    net = randomised(nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 16, 3), nn.Conv2d(16, 8, 3)))
    report = check(net, (3, 14, 13))
    assert [kept.name for kept in report.kept] == ["2"]
    assert "20 input channels (1..4, or a multiple of 16)" in report.kept[0].reason


class After(nn.Module):
    """A convolution to 16 channels and what comes behind it, functions of the net and the images."""

    def __init__(self, forwards) -> None:
        super().__init__()
        self.first, self.forwards = nn.Conv2d(3, 16, 3), forwards
        self.weight, self.matrix = nn.Parameter(torch.randn(16, 16, 3, 3) / 12), nn.Parameter(torch.eye(16))
        self.bias = nn.Parameter(torch.randn(16))
        self.register_buffer("integers", torch.ones(4, 16, 3, 3, dtype=torch.int64))

    def forward(self, images):
        results = [forward(self, self.first(images)) for forward, _ in self.forwards]
        return torch.cat([one.reshape(images.shape[0], -1) for one in results], 1)


def branches(net, x):
    return torch.cond(
        x.sum() > 0, lambda x: functional.conv2d(x, net.weight), lambda x: x[:, :, 2:, 2:] + 0, (x,)
    )


# What a net does with images of 16 channels, 7 x 7, that the kernels do not: the operation, and the reason.
UNUSUAL = {
    "weight": (
        lambda net, x: functional.conv2d(x, net.weight / net.weight.abs().amax()),
        ("conv2d", "its weight is computed by the program"),
    ),
    "bias": (
        lambda net, x: functional.conv2d(x, net.weight, net.bias * 2),
        ("conv2d", "its bias is computed by the program"),
    ),
    "dense bias": (
        lambda net, x: functional.linear(x[:, :, 0, 0], net.matrix, net.bias * 2),
        ("linear", "its bias is computed by the program"),
    ),
    "one output": (
        lambda net, x: functional.linear(x[:, :, 0, 0], net.bias),
        ("linear", r"a weight of 1 dimensions \(2\)"),
    ),
    "one dimension": (
        lambda net, x: functional.conv1d(x.flatten(2), net.bias[None, :, None]),
        ("conv1d", "two dimensions"),
    ),
    "three dimensions": (
        lambda net, x: functional.conv3d(x[:, None], net.bias.reshape(1, 1, 4, 2, 2)),
        ("conv3d", "two dimensions"),
    ),
    "transposed": (
        lambda net, x: functional.conv_transpose2d(x, net.weight, stride=2),
        ("conv_transpose2d", "transposed convolutions"),
    ),
    "product": (lambda net, x: x.mean((2, 3)) @ net.matrix, ("matmul", "a product of tensors")),
    "named product": (
        lambda net, x: torch.einsum("bchw,c->bhw", x, net.bias),
        ("einsum", "a product of tensors"),
    ),
    "integers": (
        lambda net, x: functional.conv2d(torch.ones_like(x, dtype=torch.int64), net.integers) / 100,
        ("conv2d", "an input of torch.int64"),
    ),
    "branches": (branches, ("conv2d", "in a graph inside the program")),
}


def test_unusual_layers_are_kept_with_their_reason():
    report = check(After(list(UNUSUAL.values())).eval(), (3, 9, 9), batches=(3,))
    assert len(report.swapped) == len(report.kept) == len(UNUSUAL)  # the first one is called each time
    for kept, (_, (operation, reason)) in zip(report.kept, UNUSUAL.values(), strict=True):
        assert kept.operation == operation and re.search(reason, kept.reason)


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
