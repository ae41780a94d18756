"""Every way weights can arrive or fail to, on real files; the network is made unreachable by a dead proxy."""

import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn

from fer_lab.models.small import Small
from fer_lab.models.vgg import Vgg
from fer_lab.models.weights import Loaded, WeightsError, freeze, hold_frozen, load_weights


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty torch hub on a machine whose network is dead."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub_home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib remembers the proxies of its first call
    return tmp_path / "hub_home" / "hub" / "checkpoints"


def vgg16(**settings):
    return Vgg(**{"depth": 16, "classes": 7, "size": 32, "hidden": 16, **settings})


def torchvision_file(net):
    """What torchvision's file for this net would hold, under torchvision's names (its dense layers cut short)."""
    state = {f"features.{name}": torch.randn_like(value) for name, value in net.backbone.state_dict().items()}
    return {**state, "classifier.0.weight": torch.zeros(4, 4), "classifier.0.bias": torch.zeros(4)}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def saved(state, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def test_null_loads_nothing():
    net = Small(classes=7, size=48)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert load_weights(net, None) == Loaded()
    assert same(net.state_dict(), before)


def test_without_network_imagenet_says_the_choices_and_the_file_to_place(torch_home):
    with pytest.raises(WeightsError) as error:
        load_weights(vgg16(), "imagenet")
    for part in ("Vgg", "vgg16-397923af.pth", str(torch_home), "TORCH_HOME", "PATH", "runs:/ID", "null"):
        assert part in str(error.value)


def test_a_broken_file_in_the_torch_hub_is_refused_by_name(torch_home):
    torch_home.mkdir(parents=True)
    (torch_home / "vgg16-397923af.pth").write_bytes(b"PK\x03\x04 half a download")
    with pytest.raises(WeightsError, match=r"vgg16-397923af\.pth"):
        load_weights(vgg16(), "imagenet")


@pytest.mark.parametrize("by_path", [False, True])
def test_torchvisions_file_fills_the_backbone(torch_home, by_path):
    net = vgg16()
    state = torchvision_file(net)
    path = saved(state, torch_home / "vgg16-397923af.pth")
    report = load_weights(net, path if by_path else "imagenet")
    expected = {name[9:]: value for name, value in state.items() if name.startswith("features.")}
    assert same(net.backbone.state_dict(), expected)
    assert report.dropped == ("classifier.0.weight", "classifier.0.bias")
    assert report.missing == ("head.1.weight", "head.1.bias", "head.4.weight", "head.4.bias")
    assert len(report.loaded) == 26


def test_nets_without_imagenet_weights_say_so():
    with pytest.raises(WeightsError, match=r"Small has no ImageNet weights.*PATH.*runs:/ID or null"):
        load_weights(Small(classes=7, size=48), "imagenet")


@pytest.mark.parametrize("kind", ["state_dict", "checkpoint", "checkpoint with average"])
def test_a_saved_net_comes_back_whole(tmp_path, kind):
    source, net, other = (Small(classes=7, size=48) for _ in range(3))
    content = source.state_dict()
    if kind != "state_dict":
        judged, live = (source, other) if "average" in kind else (other, source)
        content = {f"net.{name}": value for name, value in live.state_dict().items()}
        if "average" in kind:
            content |= {f"net.{name}": value for name, value in live.state_dict().items()}
            content |= {f"average.module.{name}": value for name, value in judged.state_dict().items()}
            content["average.n_averaged"] = torch.tensor(3)
        content = {
            "state_dict": {**content, "task.class_weights": torch.ones(7)},
            "epoch": 3,
            "loops": {"fit_loop": {}},
        }
    report = load_weights(net, str(saved(content, tmp_path / "best.ckpt")))
    assert same(net.state_dict(), source.state_dict())
    assert (report.dropped, report.missing) == ((), ())


def test_a_head_of_other_classes_is_dropped_whole_and_named(tmp_path):
    source, net = vgg16(classes=8), vgg16()
    head = {name: value.clone() for name, value in net.head.state_dict().items()}
    report = load_weights(net, saved(source.state_dict(), tmp_path / "eight.pt"))
    assert same(net.backbone.state_dict(), source.backbone.state_dict())
    assert same(net.head.state_dict(), head)
    assert report.dropped == report.missing == tuple(f"head.{name}" for name in head)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            lambda: Small(classes=7, size=48).state_dict(),
            r"fits 0 of the 26 .*backbone\.0\.weight.*shape \(32, 1, 5, 5\)",
        ),
        (
            lambda: vgg16(batch_norm=True).state_dict(),
            r"fits 6 of the 26 .*backbone\.2\.weight.*but is absent",
        ),
        (
            lambda: {"backbone.0.weight": torch.zeros(64, 1, 3, 3)},
            r"shape \(64, 3, 3, 3\) but is of shape \(64, 1, 3, 3\)",
        ),
        (dict, r"fits 0 of the 26"),
        (lambda: [1, 2], "holds no state_dict"),
        (lambda: {"a": 1}, "holds no state_dict"),
    ],
)
def test_a_file_of_something_else_is_refused_and_changes_nothing(tmp_path, content, text):
    net = vgg16()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(WeightsError, match=text):
        load_weights(net, saved(content(), tmp_path / "other.pt"))
    assert same(net.state_dict(), before)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickled_object_is_refused_and_never_run(tmp_path, monkeypatch, torch_home):
    monkeypatch.chdir(tmp_path)
    for content in (Bomb(), {"state_dict": Bomb()}, Small(classes=7, size=48)):
        with pytest.raises(WeightsError, match=r"not a file of plain tensors.*state_dict\(\)"):
            load_weights(Small(classes=7, size=48), saved(content, tmp_path / "object.pt"))
    saved(Bomb(), torch_home / "vgg16-397923af.pth")
    with pytest.raises(WeightsError, match=r"vgg16-397923af\.pth"):
        load_weights(vgg16(), "imagenet")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"broken\.pth"):
        load_weights(Small(classes=7, size=48), path)


def test_a_truncated_file_is_refused(tmp_path):
    path = saved(Small(classes=7, size=48).state_dict(), tmp_path / "cut.pt")
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"cut\.pt"):
        load_weights(Small(classes=7, size=48), path)


@pytest.mark.parametrize("spec", ["nowhere/best.pt", "runs:/abc", "imagnet", "."])
def test_a_missing_file_lists_the_choices(spec):
    with pytest.raises(
        WeightsError, match=rf"no weights at {spec.split(':')[0]}.*imagenet.*PATH.*runs:/ID or null"
    ):
        load_weights(Small(classes=7, size=48), spec)


def test_freeze_names_what_it_freezes():
    net = vgg16()
    assert freeze(net, "none") == () and all(parameter.requires_grad for parameter in net.parameters())
    assert freeze(net, 2) == ("backbone.0", "backbone.2")  # the ReLU between has no parameters
    still = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert still == {"backbone.0.weight", "backbone.0.bias", "backbone.2.weight", "backbone.2.bias"}
    assert freeze(net, "backbone") == ("backbone",)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        f"head.{n}" for n, _ in net.head.named_parameters()
    }


@pytest.mark.parametrize("what", ["head", -1, 14, True, 1.5, None])
def test_freezing_something_else_lists_the_choices(what):
    with pytest.raises(
        ValueError,
        match=rf"model\.freeze={what} is not none, backbone or a number in 0\.\.13 \(backbone\.0, ",
    ):
        freeze(vgg16(), what)


@pytest.mark.parametrize("what", ["backbone", 2])
def test_frozen_parts_stay_bit_for_bit_through_training(what):
    torch.manual_seed(0)
    net = Small(classes=3, size=16, dropout=0.5)
    frozen = freeze(net, what)
    parts = [net.get_submodule(name) for name in frozen]
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    statistics = net.backbone[3].first_norm.running_mean.clone()
    net.train()
    hold_frozen(net)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.randn(8, 1, 16, 16) + 3), torch.arange(8) % 3).backward()
        optimizer.step()
    assert all(same(part.state_dict(), state) for part, state in zip(parts, before, strict=True))
    assert torch.equal(net.backbone[3].first_norm.running_mean, statistics) == (what == "backbone")
    assert net.head.training
