"""Nets on faces of other data sets: labels by name, a class too many dropped, what trained it told."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from fer_lab import matrix
from fer_lab.build import build_data, build_module
from fer_lab.cli import UsageError
from fer_lab.data import draw
from fer_lab.data.faces import EXPRESSIONS
from fer_lab.evaluate import predict
from fer_lab.ours import composed


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """FER2013's layout with 42 faces, and a folder of eight expressions with 64."""
    place = tmp_path_factory.mktemp("matrix")
    draw.write_fer2013_folders(place / "fer2013", {"train": 28, "validation": 14, "test": 42})
    draw.write_folder(
        place / "eight", {"train": 32, "validation": 16, "test": 64}, classes=EXPRESSIONS, size=32
    )
    untrained(place, "seven", "data=fer2013", f"data.root={place}/fer2013")
    untrained(place, "eight", "data=folder", f"data.root={place}/eight", "data.channels=1", "split=official")
    return place


def untrained(place: Path, name: str, *words: str) -> None:
    """A run's folder with the net's first weights: judging does not ask how good they are."""
    config = composed(None, *words, "data.size=32", f"cache_dir={place}/cache", "trainer.accelerator=cpu")
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    config.name = name
    data = build_data(config)
    module = build_module(config, data, weights=None)
    folder = place / "runs" / name
    folder.mkdir(parents=True)
    torch.nn.init.normal_(module.net.head[-1].weight)
    with torch.inference_mode():  # no class is ahead of the others, so that it says more than one thing
        (faces,) = data.evaluation(data.split.train, "none", module.device)
        module.net.head[-1].bias -= module.eval()(faces).mean((0, 1))
    torch.save(module.judged.state_dict(), folder / "best.pt")
    OmegaConf.save(OmegaConf.to_container(config, resolve=True), folder / "config.yaml")
    (folder / "split.json").write_text(json.dumps(data.split.manifest(data.index)))


def asked(place: Path, *runs: str, **data) -> DictConfig:
    return OmegaConf.create(
        {"matrix": list(runs), "matrix_data": data, "runs_dir": f"{place}/runs", "cache_dir": f"{place}/cache",
         "threads": 1, "tracking": {"uri": None}, "output": f"{place}/out"}
    )  # fmt: skip


def test_every_run_on_every_data_set(place, capsys) -> None:
    data = {"fer2013": f"{place}/fer2013", "folder": {"root": f"{place}/eight"}}
    page = matrix.matrix(asked(place, "seven", "eight", **data))
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"the matrix is in {page}")
    lines = {(line["run"], line["data"]): line for line in csv.DictReader(page.with_suffix(".csv").open())}
    assert {key: line["faces"] for key, line in lines.items()} == {
        ("seven", "fer2013"): "42 DRAWN", ("seven", "folder"): "56 DRAWN",
        ("eight", "fer2013"): "42 DRAWN", ("eight", "folder"): "64 DRAWN",
    }  # fmt: skip
    assert lines["seven", "fer2013"]["to know"] == "its own data, test part"
    assert "8 faces of contempt left out" in lines["seven", "folder"]["to know"]
    assert "the probability of contempt is dropped" in lines["eight", "fer2013"]["to know"]
    assert (page.parent / "matrix.png").stat().st_size > 5000


def test_a_cell_is_what_the_net_says_of_these_faces(place) -> None:
    """By hand: predictions in the run's order of classes, matched by name, contempt's column taken out."""
    run = matrix.saved_config(place / "runs/eight", asked(place))
    assert tuple(run.classes) == EXPRESSIONS
    cell = matrix.judge(place / "runs/eight", run, "fer2013", {"root": f"{place}/fer2013"})
    config = composed(
        None, "data=fer2013", f"data.root={place}/fer2013", "data.size=32", f"cache_dir={place}/cache"
    )
    data = build_data(config)
    module = build_module(run, data, weights=None)
    module.judged.load_state_dict(torch.load(place / "runs/eight/best.pt", weights_only=True))
    told = predict(module, data, data.split.test, "none")
    told[:, EXPRESSIONS.index("contempt")] = -1
    names = np.array(EXPRESSIONS)[told.argmax(1)]
    true = np.array(data.index.classes)[data.index.labels[data.split.test]]
    assert len(set(names)) > 1 and cell.accuracy == pytest.approx((names == true).mean())
    recalls = [(names == true)[true == one].mean() for one in set(true)]
    assert cell.balanced == pytest.approx(np.mean(recalls)) and cell.count == len(true)


def test_faces_that_trained_it_are_told(place) -> None:
    """The test faces of a copy of its data in which every test face is one that trained it."""
    root = place / "copied"
    draw.write_folder(root, {"train": 32, "validation": 16, "test": 64}, classes=EXPRESSIONS, size=32)
    for kept, taken in zip(sorted(root.glob("train/*/*")), sorted(root.glob("test/*/*")), strict=False):
        taken.unlink()
        taken.with_name(f"{taken.stem}x{kept.suffix}").write_bytes(kept.read_bytes())
    run = matrix.saved_config(place / "runs/eight", asked(place))
    cell = matrix.judge(place / "runs/eight", run, "folder", {"root": str(root)})
    assert any(note.startswith("LEAK: 32 of its faces trained it, pixel for pixel") for note in cell.notes)

    started = OmegaConf.merge(run, {"model": {"weights": "runs:/seven"}})
    lines = [words for _, words in matrix.ancestors(place / "runs/eight", started)]
    assert lines == ["trained it", "trained the net that it started from"]


def test_what_cannot_be_judged_is_refused(place) -> None:
    with pytest.raises(UsageError, match=r"matrix_data names jafe; choices: .*jaffe"):
        matrix.matrix(asked(place, "seven", jafe="x"))
    (place / "runs/cv").mkdir(exist_ok=True)
    (place / "runs/cv/config.yaml").write_text("name: cv")
    with pytest.raises(UsageError, match=r"no config\.yaml and best\.pt"):
        matrix.matrix(asked(place, "cv"))
    run = matrix.saved_config(place / "runs/seven", asked(place))
    assert matrix.wanted_data(asked(place, "seven"), [run]) == {"fer2013": {"root": f"{place}/fer2013"}}
