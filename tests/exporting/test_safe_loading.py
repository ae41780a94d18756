"""A .pt2 that would run code is not read: each way that torch.export.load of 2.11 and 2.13 was seen to take."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from fer_lab.exporting.facts import Facts, FileError
from fer_lab.exporting.predictor import Predictor
from fer_lab.exporting.program import load, save, trace
from fer_lab.models.preprocess import Preprocess

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
Records = dict[str, bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A whole program, views and all, whose shapes are arithmetic on the batch."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
    predictor = Predictor(net.requires_grad_(False), Preprocess(1, [0.5], [0.25]), "flip", None)
    facts = Facts(run="r", net="n", classes=("a", "b", "c"), size=8, channels=1, views="flip")
    path = tmp_path_factory.mktemp("good") / "good.pt2"
    save(trace(predictor, facts), path, facts)
    return path


def records(path: Path) -> Records:
    archive = PT2ArchiveReader(str(path))
    return {name: archive.read_bytes(name) for name in archive.get_file_names()}


def write(path: Path, content: Records) -> Path:
    with PT2ArchiveWriter(str(path)) as archive:
        for name, one in content.items():
            if name not in ("byteorder", "version") and not name.startswith(
                ".data"
            ):  # those write themselves
                archive.write_bytes(name, one)
    return path


def test_a_good_file_is_read_whatever_its_batch(good):
    program, pixels = load(good), torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert program.facts.views == "flip" and program(pixels).shape == (5, 3)
    torch.testing.assert_close(program(pixels), torch.export.load(good).module()(pixels))
    torch.testing.assert_close(program(pixels), program(pixels.flip(-1)))


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def replaced(content: Records, name: str, change: Callable[[dict], object]) -> None:
    tree = json.loads(content[name])
    change(tree)
    content[name] = json.dumps(tree).encode()


def pickled_weight(content: Records, trace: Path) -> None:
    def change(tree: dict) -> None:
        one = next(iter(tree["config"].values()))
        one["use_pickle"] = True
        content[f"data/weights/{one['path_name']}"] = pickle.dumps(Bomb(trace))

    replaced(content, WEIGHTS, change)


def pickled_examples(content: Records, trace: Path) -> None:
    content["data/sample_inputs/model.pt"] = pickle.dumps(Bomb(trace))


def opaque_object(content: Records, trace: Path) -> None:
    one = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    replaced(content, "data/constants/model_constants_config.json", lambda tree: tree["config"].update(x=one))
    content["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(trace))


def legacy_weights(content: Records, trace: Path) -> None:
    content["data/weights/model.pt"] = pickle.dumps(Bomb(trace))


def native_library(content: Records, trace: Path) -> None:
    content["data/aotinductor/model/evil.so"] = b"ELF"


def second_model(content: Records, trace: Path) -> None:
    content["models/other.json"] = content[MODEL]


def shape_that_is_python(content: Records, trace: Path) -> None:
    text = content[MODEL].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    content[MODEL] = f"{text[:start]}__import__('os').mkdir('{trace}') or 2{text[end:]}".encode()


def shape_out_of_letters(content: Records, trace: Path) -> None:
    text = content[MODEL].decode()
    content[MODEL] = text.replace("integer=True", "integer=exit()").encode()


def operator_of_torch(content: Records, trace: Path) -> None:
    replaced(
        content, MODEL, lambda tree: tree["graph_module"]["graph"]["nodes"][1].update(target="torch.os.mkdir")
    )


def operator_that_opens_a_file(content: Records, trace: Path) -> None:
    evil = "torch.ops.aten.from_file.default"
    replaced(content, MODEL, lambda tree: tree["graph_module"]["graph"]["nodes"][1].update(target=evil))


def name_that_is_python(content: Records, trace: Path) -> None:
    name = json.loads(content[MODEL])["graph_module"]["graph"]["nodes"][1]["outputs"][0]["as_tensor"]["name"]
    evil = json.dumps(f"__import__('os').mkdir('{trace}'); {name}")
    content[MODEL] = content[MODEL].decode().replace(f'"{name}"', evil).encode()


def module_to_import(content: Records, trace: Path) -> None:
    def change(tree: dict) -> None:
        signature = tree["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["in_spec"])
        spec[1]["context"] = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
        signature["in_spec"] = json.dumps(spec)

    replaced(content, MODEL, change)


@pytest.mark.parametrize(
    ("attack", "fault"),
    [
        (pickled_weight, "weights 'net.0.weight' are pickled"),
        (pickled_examples, "example inputs are no plain tensors"),
        (opaque_object, "it has a part 'data/constants/opaque_obj_0'"),
        (legacy_weights, "it has a part 'data/weights/model.pt'"),
        (native_library, "it has a part 'data/aotinductor/model/evil.so'"),
        (second_model, "it has a part 'models/other.json'"),
        (shape_that_is_python, "is no expr_str that we write"),
        (shape_out_of_letters, "is no expr_str that we write"),
        (operator_of_torch, "'torch.os.mkdir' is no target that we write"),
        (operator_that_opens_a_file, "'torch.ops.aten.from_file.default' is no target that we write"),
        (name_that_is_python, "is no name that we write"),
        (module_to_import, "is no in_spec that we write"),
    ],
)  # fmt: skip
def test_a_file_that_would_run_something_is_refused_by_what_is_in_it(good, tmp_path, attack, fault):
    content, trace = records(good), tmp_path / "it_ran"
    attack(content, trace)
    bad = write(tmp_path / "bad.pt2", content)
    with pytest.raises(FileError) as caught:
        load(bad)
    assert f"{bad} is not read: " in str(caught.value) and fault in str(caught.value)
    assert not trace.exists()


def test_guards_are_source_and_are_dropped(good, tmp_path):
    content, trace = records(good), tmp_path / "it_ran"
    guard = f"__import__('os').mkdir('{trace}') is None"
    replaced(content, MODEL, lambda tree: tree.update(guards_code=[guard]))
    load(write(tmp_path / "bad.pt2", content))(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert not trace.exists()


def test_files_of_others_and_broken_ones_are_told_apart(good, tmp_path):
    other = records(good)
    del other["extra/facts.json"]
    (tmp_path / "half.pt2").write_bytes(good.read_bytes()[:5000])
    for path, fault in (
        (tmp_path / "none.pt2", "there is no program at"),
        (tmp_path / "half.pt2", "is no program that torch"),
        (write(tmp_path / "other.pt2", other), "python -m fer_lab.export did not write it"),
    ):
        with pytest.raises(FileError, match=fault):
            load(path)
