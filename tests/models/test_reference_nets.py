"""The reference systems' nets, layer for layer. Oracles: the sizes at which R1 flattens (8464, 6400, 84672), counts of
weights worked out by hand, keras.applications' and torchvision's published counts, and Keras's list of layers."""

import pytest
import torch
import torchvision
from torch import nn

from fer_lab.models.densenet import DenseNet
from fer_lab.models.reference import Basic1, Basic2, NewBase, Webcam
from fer_lab.models.resnet import ResNet50
from fer_lab.models.sepcnn import SepCnn
from fer_lab.models.vgg import Vgg
from fer_lab.models.weights import freeze, hold_frozen, load_weights

NETS = {
    "basic1": (lambda: Basic1(classes=8, size=25), 3, 25),
    "basic2": (lambda: Basic2(classes=8, size=76, dropout=0.0), 3, 76),
    "newbase": (lambda: NewBase(classes=8, size=41, dropout=0.0), 3, 41),
    "webcam": (lambda: Webcam(classes=8, size=4), 1, 4),
    "sepcnn": (lambda: SepCnn(classes=8, size=16, dropout=0.0), 1, 16),
    "densenet121": (lambda: DenseNet(depth=121, classes=8, size=32, channels=1), 1, 32),
    "resnet50": (lambda: ResNet50(classes=8, size=32, dropout=0.0), 3, 32),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def layers(module):
    """What a reader sees: the kind of each layer with its numbers, in order."""
    short = {
        nn.Conv2d: lambda layer: ("conv", layer.in_channels, layer.out_channels, layer.kernel_size[0]),
        nn.MaxPool2d: lambda layer: ("pool", layer.kernel_size),
        nn.Dropout: lambda layer: ("dropout", layer.p),
        nn.Linear: lambda layer: ("dense", layer.in_features, layer.out_features),
        nn.ReLU: lambda layer: "relu",
        nn.Flatten: lambda layer: "flatten",
    }
    return [short[type(layer)](layer) for layer in module.modules() if type(layer) in short]


@pytest.mark.parametrize("name", NETS)
def test_the_smallest_side_works_and_every_parameter_learns(name):
    make, channels, side = NETS[name]
    torch.manual_seed(0)
    net = make()
    images = torch.randn(4, channels, side, side)
    loss = nn.functional.cross_entropy(net(images), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.eval()
    with torch.no_grad():
        outputs = net(images)
        assert outputs.shape == (4, 8) and torch.equal(net.head(net.backbone(images)), outputs)
        with pytest.raises(ValueError, match=rf"{side - 1} (pixels vanish|of)|not \d of {side - 1}"):
            type(net)(**{"classes": 8, "size": side - 1} | ({"depth": 121} if "dense" in name else {}))


def test_basic_1_is_r1s():
    with torch.device("meta"):
        net = Basic1(classes=8, size=224)
        assert net.backbone(torch.empty(1, 3, 224, 224)).shape == (1, 8464)
        assert net(torch.empty(1, 3, 224, 224)).shape == (1, 8)
    assert layers(net) == [
        ("conv", 3, 6, 5), "relu", ("pool", 3), ("conv", 6, 16, 5), "relu", ("pool", 3), "flatten",
        ("dropout", 0.0), ("dense", 8464, 120), "relu", ("dense", 120, 84), "relu", ("dense", 84, 8),
    ]  # fmt: skip
    # 6*(3*25+1) + 16*(6*25+1) + 120*8465 + 84*121 + 8*85
    assert count(net) == 456 + 2_416 + 1_015_800 + 10_164 + 680 == 1_029_516


def test_basic_2_is_r1s_with_either_head():
    with torch.device("meta"):
        net = Basic2(classes=8, size=224)
        earlier = Basic2(classes=8, size=224, hidden=None, dropout=0.0)
        assert net.backbone(torch.empty(1, 3, 224, 224)).shape == (1, 6400)
        assert earlier(torch.empty(1, 3, 224, 224)).shape == (1, 8)
    assert layers(net) == [
        ("conv", 3, 64, 5), "relu", ("pool", 2), ("conv", 64, 64, 5), "relu", ("pool", 2),
        ("conv", 64, 64, 5), "relu", ("pool", 2), ("dropout", 0.5), ("conv", 64, 64, 5), "relu", ("pool", 2),
        ("dropout", 0.5), "flatten", ("dense", 6400, 512), ("dense", 512, 8),
    ]  # fmt: skip
    convolutions = 4_864 + 3 * 102_464  # 64*(3*25+1), 64*(64*25+1)
    assert count(net) == convolutions + 512 * 6401 + 8 * 513 == 3_593_672
    assert count(earlier) == convolutions + 8 * 6401 == 363_464
    assert layers(earlier.head) == [("dense", 6400, 8)]


def test_new_base_is_r1s():
    with torch.device("meta"):
        net = NewBase(classes=8, size=224)
        assert net.backbone(torch.empty(1, 3, 224, 224)).shape == (1, 84672)
        assert net(torch.empty(1, 3, 224, 224)).shape == (1, 8)
    assert layers(net) == [
        ("conv", 3, 64, 5), "relu", ("conv", 64, 128, 5), "relu", ("pool", 3), ("dropout", 0.1),
        ("conv", 128, 192, 5), "relu", ("conv", 192, 192, 5), "relu", ("pool", 3), ("dropout", 0.1),
        "flatten", ("dense", 84672, 8),
    ]  # fmt: skip
    # 64*76 + 128*(64*25+1) + 192*(128*25+1) + 192*(192*25+1) + 8*84673
    assert count(net) == 4_864 + 204_928 + 614_592 + 921_792 + 677_384 == 2_423_560


def test_padding_would_not_give_r1s_sizes():
    with torch.device("meta"):
        padded = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2), nn.MaxPool2d(3), nn.Conv2d(6, 16, 5, padding=2), nn.MaxPool2d(3)
        )
        assert padded(torch.empty(1, 3, 224, 224)).flatten(1).shape[1] == 16 * 24 * 24 != 8464


def test_a_summed_loss_is_a_mean_at_batch_times_the_rate():
    """R1's Mod 1 as its recipe says it."""
    torch.manual_seed(0)
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    ends = []
    for reduction, rate in (("sum", 1e-3), ("mean", 6e-3)):
        torch.manual_seed(1)
        net = Webcam(classes=8, size=8)
        optimizer = torch.optim.SGD(net.parameters(), lr=rate)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels, reduction=reduction).backward()
            optimizer.step()
        ends.append(torch.cat([weight.detach().flatten() for weight in net.parameters()]))
    torch.testing.assert_close(*ends)


def test_r3s_net_is_one_convolution_and_one_dense_layer():
    with torch.device("meta"):
        net = Webcam(classes=7, size=48)
        assert net(torch.empty(1, 1, 48, 48)).shape == (1, 7)
    assert layers(net) == [
        ("conv", 1, 32, 3), "relu", ("pool", 2), "flatten",
        ("dense", 16928, 128), "relu", ("dropout", 0.0), ("dense", 128, 7),
    ]  # fmt: skip
    assert count(net) == 32 * 10 + 128 * (32 * 23 * 23 + 1) + 7 * 129


def test_the_separable_net_has_017_million_parameters():
    with torch.device("meta"):
        net = SepCnn(classes=7, size=48)
        assert net.backbone(torch.empty(2, 1, 48, 48)).shape == (2, 192, 3, 3)
    # separable(a, b) has 9a + ab weights and 2b of its norm; the 1x1 convolution 7 * 193
    pairs = [(1, 96), (96, 96), (96, 96), (96, 96), (96, 192), (192, 192), (192, 192), (192, 192)]
    assert count(net) == sum(9 * a + a * b + 2 * b for a, b in pairs) + 7 * 193 == 169_072
    with torch.device("meta"):
        assert count(SepCnn(classes=7, size=48, widths=(48, 48, 96, 96))) == 45_376  # the other reading


@pytest.mark.parametrize(
    ("depth", "features", "published"), [(121, 1024, 7_978_856), (161, 2208, 28_681_000)]
)
def test_densenets_are_torchvisions_under_one_linear_layer(depth, features, published):
    with torch.device("meta"):
        net = DenseNet(depth=depth, classes=10, size=224)
        assert net.backbone.eval()(torch.empty(1, 3, 224, 224)).shape == (1, features)
    assert layers(net.head) == [("dropout", 0.0), ("dense", features, 10)]
    assert count(net.backbone) == published - 1000 * (
        features + 1
    )  # torchvision's table, without its classes
    growth = {121: 32, 161: 48}[depth]
    blocks = [getattr(net.backbone, f"denseblock{place}") for place in (1, 2, 3, 4)]
    assert [len(block) for block in blocks] == {121: [6, 12, 24, 16], 161: [6, 12, 36, 24]}[depth]
    assert blocks[0].denselayer1.conv2.out_channels == growth
    assert blocks[0].denselayer1.conv1.out_channels == 4 * growth  # bottleneck
    halved = net.backbone.transition1.conv
    assert halved.out_channels == halved.in_channels // 2  # compression
    with pytest.raises(ValueError, match="depth 169 does not exist here; choices: 121, 161"):
        DenseNet(depth=169, classes=8, size=32)


def test_one_linear_layer_is_two_heads():
    """R4's: expressions and valence/arousal, each from the same features."""
    torch.manual_seed(0)
    features, net = torch.randn(5, 1024), nn.Linear(1024, 10)
    expressions, affect = nn.Linear(1024, 8), nn.Linear(1024, 2)
    expressions.load_state_dict({"weight": net.weight[:8], "bias": net.bias[:8]})
    affect.load_state_dict({"weight": net.weight[8:], "bias": net.bias[8:]})
    torch.testing.assert_close(net(features), torch.cat([expressions(features), affect(features)], dim=1))


def keras_resnet50():
    """The layers of keras.applications.ResNet50(include_top=False), in its order."""
    names = ["input", "conv1_pad", "conv1_conv", "conv1_bn", "conv1_relu", "pool1_pad", "pool1_pool"]
    main = ["1_conv", "1_bn", "1_relu", "2_conv", "2_bn", "2_relu", "3_conv", "3_bn", "add", "out"]
    for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for block in range(1, blocks + 1):
            shortcut = ["0_conv", "0_bn"] if block == 1 else []
            names += [f"conv{stage}_block{block}_{part}" for part in [*main[:6], *shortcut, *main[6:]]]
    return names


def test_r2s_first_165_layers_are_all_before_layer4_2():
    names = keras_resnet50()
    assert len(names) == 175 and names[164] == "conv5_block2_out" and names[165] == "conv5_block3_1_conv"
    with torch.device("meta"):
        net = ResNet50(classes=7, size=48)
    assert count(net.backbone) == 25_557_032 - 2_049_000  # torchvision's table, without its classes
    frozen = freeze(net, "layer4.2")
    stages = tuple(f"backbone.{name}" for name in ("conv1", "bn1", "layer1", "layer2", "layer3"))
    assert frozen == (*stages, "backbone.layer4.0", "backbone.layer4.1")
    theirs = [name for name in names[165:] if name.endswith("_conv")]
    assert theirs == [f"conv5_block3_{place}_conv" for place in (1, 2, 3)]
    layers = net.backbone.named_modules()
    ours = [name for name, layer in layers if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad]
    assert ours == [f"layer4.2.conv{place}" for place in (1, 2, 3)]
    hold_frozen(net.train())
    assert net.backbone.layer4[2].bn1.training and not net.backbone.layer4[1].bn1.training


def test_r2s_dense_layers():
    torch.manual_seed(0)
    net = ResNet50(classes=7, size=48, hidden=(64, 32))
    kinds = [type(layer).__name__ for layer in net.head]
    assert kinds == [*("Linear", "BatchNorm1d", "ReLU", "Dropout") * 2, "Linear"]
    bound = (6 / 2048) ** 0.5  # He-uniform: sqrt(6 / inputs)
    weights = net.head[0].weight.detach()
    assert bound * 0.99 < float(weights.abs().max()) <= bound and not net.head[0].bias.any()
    assert {layer.p for layer in net.head if isinstance(layer, nn.Dropout)} == {0.5}
    with torch.device("meta"):
        vgg = Vgg(depth=16, classes=7, size=48, hidden=[512, 256], dropout=0.3)
    assert layers(vgg.head) == [
        "flatten", ("dense", 512, 512), "relu", ("dropout", 0.3),
        ("dense", 512, 256), "relu", ("dropout", 0.3), ("dense", 256, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "theirs"),
    [
        (lambda: ResNet50(classes=7, size=32), lambda: torchvision.models.resnet50()),
        (lambda: DenseNet(depth=121, classes=7, size=32), lambda: torchvision.models.densenet121()),
    ],
    ids=["resnet50", "densenet121"],
)
def test_torchvisions_file_gives_torchvisions_features(tmp_path, make, theirs):
    net, other = make().eval(), theirs().eval()
    state = other.state_dict()
    if "densenet" in type(other).__name__.lower():  # as the file on torchvision's server has it
        state = {
            name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")
            .replace("conv1.", "conv.1.").replace("conv2.", "conv.2."): value
            for name, value in state.items()
        }  # fmt: skip
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "theirs.pth")
    report = load_weights(net, tmp_path / "theirs.pth")
    assert len(report.loaded) == len(net.backbone.state_dict())
    images, seen = torch.randn(2, 3, 64, 64), []
    classifier = other.fc if hasattr(other, "fc") else other.classifier
    classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        other(images)
        torch.testing.assert_close(net.backbone(images), seen[0])


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda: Basic2(classes=8, size=224), 8),
        (lambda: NewBase(classes=8, size=224), 8),
        (lambda: DenseNet(depth=161, classes=10, size=224), 10),
        (lambda: ResNet50(classes=7, size=224), 7),
    ],
    ids=["basic2", "newbase", "densenet161", "resnet50"],
)
def test_a_step_at_the_true_size(make, outputs):
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    loss = nn.functional.cross_entropy(net(torch.randn(4, 3, 224, 224)), torch.arange(4) % outputs)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
