"""Oracles: parameter counts published by Keras, the papers and kuangliu/pytorch-cifar; torchvision's own nets."""

import copy

import pytest
import torch
import torchvision

from fer_lab.models.resnet import ResNet18
from fer_lab.models.small import Small
from fer_lab.models.vgg import Vgg
from fer_lab.models.vgg_fer import VggFer

NETS = {
    "vgg16": (lambda size: Vgg(depth=16, classes=7, size=size), 3, 32),
    "vgg19_bn": (lambda size: Vgg(depth=19, batch_norm=True, classes=7, size=size), 3, 64),
    "vgg_fer": (lambda size: VggFer(classes=7, size=size, hidden=256), 1, 40),
    "resnet18": (lambda size: ResNet18(classes=7, size=size), 1, 33),
    "small": (lambda size: Small(classes=7, size=size), 1, 48),
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NETS)
def test_forward_is_the_head_after_the_backbone_and_every_parameter_learns(name):
    make, channels, size = NETS[name]
    torch.manual_seed(0)
    net = make(size)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(
                layer.weight
            )  # a norm that starts at 0 keeps gradients from what is before it
    images = torch.randn(4, channels, size, size)
    loss = torch.nn.functional.cross_entropy(net(images), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(bool(parameter.grad.any()) for parameter in net.parameters())
    net.eval()
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (4, 7)
        assert torch.equal(net.head(net.backbone(images)), logits)
        assert torch.equal(copy.deepcopy(net)(images), logits)


@pytest.mark.parametrize(
    ("depth", "published"), [(16, 14_714_688), (19, 20_024_384)]
)  # keras.applications, include_top=False
@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_has_torchvisions_layers_and_r0s_head(depth, published, batch_norm):
    with torch.device("meta"):
        net = Vgg(depth=depth, batch_norm=batch_norm, classes=7, size=224)
        theirs = getattr(
            torchvision.models, f"vgg{depth}{'_bn' if batch_norm else ''}"
        )().features.state_dict()
    ours = net.backbone.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }
    if not batch_norm:
        assert parameters(net.backbone) == published
    dense = [tuple(layer.weight.shape) for layer in net.head if isinstance(layer, torch.nn.Linear)]
    assert dense == [(512, 25088), (7, 512)]  # R0: Flatten(25088), Dense 512, Dense 7


@pytest.mark.parametrize(("size", "inputs"), [(32, 512), (48, 512), (64, 2048), (96, 4608)])
def test_vggs_head_fits_the_side(size, inputs):
    with torch.device("meta"):
        net = Vgg(depth=16, classes=8, size=size, hidden=64)
        assert net.head[1].in_features == inputs
        assert net(torch.empty(2, 3, size, size)).shape == (2, 8)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"depth": 17}, "depth 17 does not exist here; choices: 16, 19"),
        ({"depth": 16, "channels": 1}, "sees 3 channels, not 1.*model.channels=3"),
        ({"depth": 16, "size": 31}, "31 pixels.*must be >= 32"),
    ],
)
def test_vgg_refuses_what_it_cannot_be(settings, text):
    with pytest.raises(ValueError, match=text):
        Vgg(**{"classes": 7, "size": 48, **settings})


def test_vgg_fer_is_the_papers():
    with torch.device("meta"):
        net = VggFer(classes=7)
        assert net.backbone(torch.empty(1, 1, 40, 40)).shape == (1, 512, 2, 2)
    convolutions = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)
    ]  # fmt: skip
    dense = [
        (layer.in_features, layer.out_features)
        for layer in net.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    assert dense == [(2048, 4096), (4096, 4096), (4096, 7)]
    norms = [layer.num_features for layer in net.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms == [64, 64, 128, 128, 256, 256, 512, 512]
    assert {layer.p for layer in net.modules() if isinstance(layer, torch.nn.Dropout)} == {0.2}
    with pytest.raises(ValueError, match=r"15 pixels.*must be >= 16"):
        VggFer(classes=7, size=15)


def test_resnet18_with_cifar_stem_has_the_known_size_and_keeps_the_resolution():
    with torch.device("meta"):
        net = ResNet18(classes=10, size=32, channels=3)
        assert parameters(net) == 11_173_962  # kuangliu/pytorch-cifar's ResNet18 for CIFAR-10
        last = torch.nn.Sequential(*list(net.backbone.children())[:-2])
        assert last(torch.empty(1, 3, 48, 48)).shape == (1, 512, 6, 6)


def test_small_is_small_and_takes_any_side_from_8():
    assert parameters(Small(classes=7, size=48)) <= 400_000
    with pytest.raises(ValueError, match="the side must be >= 8"):
        Small(classes=7, size=7)
