"""Nets exported by torch with the kernels put in: against the same net in float64, saved, loaded, at any batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from swapping import check, exported, folded, randomised
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import cfgs

from fer_lab.models.vgg import Vgg
from kernels import swap

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """VGGs of a quarter of their width, up to the last convolution: test_parity has the whole one."""
    for letter in "DE":
        *plan, last, pool = cfgs[letter]
        monkeypatch.setitem(cfgs, letter, [one if one == "M" else one // 4 for one in plan] + [last, pool])


@pytest.mark.parametrize(
    ("depth", "batch_norm", "precision"),
    [(16, True, "float32"), (19, False, "tf32"), (19, True, "bfloat16")],
)
def test_r0s_vgg(depth, batch_norm, precision):
    net = randomised(Vgg(depth=depth, classes=7, size=32, batch_norm=batch_norm))
    report = check(net, precision=precision, batches=(2, 3))
    assert len(report.swapped) == depth - 3 + 2 and not report.kept
    assert sum("max_pool2d" in names for names in folded(report)) == 5
    assert sum("batch_norm" in names for names in folded(report)) == (depth - 3 if batch_norm else 0)


def torchvision_vgg(name: str = "vgg16") -> nn.Module:
    """With torchvision's own features and pooling, and a narrow head of the same layers (hundreds of MB otherwise)."""
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(weights=None, init_weights=False)
        net.classifier[0], net.classifier[3] = nn.Linear(512 * 49, 64), nn.Linear(64, 32)
        net.classifier[6] = nn.Linear(32, 7)
    return randomised(net.to_empty(device="cpu"))


def test_torchvisions_pooling_is_in_the_weights():
    size = (75, 53)
    report = check(torchvision_vgg(), (3, *size), batches=(1,))
    assert not report.kept and len(report.swapped) == 16
    dense = report.swapped[13].layer
    after = (size[0] // 32, size[1] // 32)
    assert dense.channels == 512 * after[0] * after[1]
    assert set(report.others) == {"permute", "flatten"}  # no old convolution is alive, no pooling, no dropout


def test_pooling_of_more_pixels_than_it_gives_is_kept():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 4))
    net = randomised(nn.Sequential(nn.Conv2d(3, 16, 3), *head))
    report = check(net, (3, 11, 14))
    assert report.others["adaptive_avg_pool2d"] == 1 and len(report.swapped) == 2


@pytest.mark.parametrize(("size", "output"), [((2, 3), 7), ((4, 5), (5, 7)), ((1, 1), 7), ((3, 4), (3, 4))])
def test_pooling_to_more_pixels_is_in_the_weights(size, output):
    outputs = output if isinstance(output, tuple) else (output, output)
    head = [nn.AdaptiveAvgPool2d(output), nn.Flatten(), nn.Linear(16 * outputs[0] * outputs[1], 4)]
    net = randomised(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *head))
    report = check(net, (3, *size))
    assert "adaptive_avg_pool2d" not in report.others
    assert report.swapped[1].layer.channels == 16 * size[0] * size[1]


def test_resnet18_is_swapped_whole():
    net = randomised(torchvision.models.resnet18(num_classes=7))
    report = check(net, (3, 40, 33), "float16", batches=(2,))
    assert len(report.swapped) == 21 and not report.kept
    assert all("batch_norm" in names for names in folded(report)[:-1])
    assert sum("relu" in names for names in folded(report)) == 9  # the others come after a sum
    assert report.others["add"] == 8 and report.others["relu"] == 8 and report.others["max_pool2d"] == 1
    # numbers stay in the kernels' type from the stem, which takes any, to the logits
    assert report.others["_to_copy"] == 1


def test_resnet50s_blocks_at_an_odd_size():
    net = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7, width_per_group=16)
    report = check(randomised(net), (3, 75, 53), batches=(1,))
    assert len(report.swapped) == 1 + 4 * 4 + 1 and not report.kept


LOADING = """
import sys, torch
try:
    torch.export.load(sys.argv[1])
except RuntimeError as error:
    assert "error when deserializing" in str(error), error
else:
    raise AssertionError("loaded without the operations")
import kernels
program = torch.export.load(sys.argv[1])
images, answers = torch.load(sys.argv[2])
for batch, answer in answers.items():  # another number of threads adds in another order: the last bit may differ
    allowed = 2e-3 * float(answer.abs().max())
    torch.testing.assert_close(program.module()(images[:batch]), answer, rtol=0, atol=allowed)
print("equal")
"""


def test_saved_and_loaded_in_another_process(tmp_path):
    body = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    net = randomised(nn.Sequential(*body, nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 169, 64)))
    program = exported(net)
    swapped, _ = swap(program, "float16")
    images = torch.randn(5, 3, 32, 32)
    original, saved, numbers = tmp_path / "original.pt2", tmp_path / "swapped.pt2", tmp_path / "images.pt"
    assert all(name.startswith("kernel_") for name in swapped.state_dict) and not swapped.constants
    torch.export.save(program, original)
    torch.export.save(swapped, saved)
    answers = {batch: swapped.module()(images[:batch]) for batch in (1, 3, 5)}
    torch.save((images, answers), numbers)
    assert saved.stat().st_size < 0.55 * original.stat().st_size  # half the bytes a number, and nothing twice
    line = [sys.executable, "-c", LOADING, str(saved), str(numbers)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr
    # What torch says without the import:
    assert "fer_kernels.convolution.default to an operator" in done.stderr


def test_the_report_is_a_table():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, groups=2), nn.Tanh()
    )
    _, report = swap(exported(randomised(net), (3, 12, 12)))
    assert str(report).splitlines() == [
        "1 layer in float16, 1 kept",
        "0  convolution 3x3, 3 -> 16, 12x12  + relu, max_pool2d",
        "3  conv2d                           kept: the kernels do not take groups 2 (1)",
        "other operations: 1 _to_copy, 1 conv2d, 1 tanh",
    ]
