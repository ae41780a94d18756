"""Nets on faces of other data sets: labels by name, a class too many dropped, what trained it told."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from fer_lab import matrix
from fer_lab.build import build_data, build_module, load_data
from fer_lab.cli import UsageError
from fer_lab.data import draw
from fer_lab.data.faces import EXPRESSIONS
from fer_lab.evaluate import predict
from fer_lab.lineage import ancestors, copies
from fer_lab.ours import composed
from fer_lab.tracking.record import open_run


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
    with open_run(place / "runs", name) as record:
        for part in load_data(config).parts:
            record.dataset(data.index.name, part.digest, part.usage, part.counts)
    folder = record.folder
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


def column(choice: str, root: object) -> matrix.Column:
    return matrix.Column(choice, {"root": str(root)})


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
    cell = matrix.judge(place / "runs/eight", run, "x", column("fer2013", place / "fer2013"))
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
    cell = matrix.judge(place / "runs/eight", run, "folder", column("folder", root))
    assert "official test part" in cell.notes
    assert any(note.startswith("LEAK: 32 of its faces trained it, pixel for pixel") for note in cell.notes)
    assert '"how": "matrix"' in (place / "runs/eight/looks.jsonl").read_text()  # a report counts it


def test_two_folders_stay_two_and_only_its_own_faces_are_its_own(place) -> None:
    """One layout, other faces, in a place whose name Hydra would not take unquoted."""
    root = place / "other, (1) {x}=y"
    draw.write_folder(root, {"train": 8, "validation": 8, "test": 24}, classes=EXPRESSIONS, size=32, seed=5)
    untrained(
        place, "other", "data=folder", "data.root='" + str(root) + "'", "data.channels=1", "split=official"
    )
    runs = {name: matrix.saved_config(place / "runs" / name, asked(place)) for name in ("eight", "other")}
    columns = matrix.wanted_data(asked(place), [*runs.values(), runs["eight"]])
    assert list(columns) == ["folder eight", f"folder {root.name}"]
    notes = {
        (name, title): matrix.faces_of(place / "runs" / name, run, one).notes[0]
        for name, run in runs.items()
        for title, one in columns.items()
    }
    own, official = "its own data, test part", "official test part"
    assert list(notes.values()) == [own, official, official, own]
    said = {"mine": {"data": "folder", "root": "/a"}, "theirs": {"data": "folder", "root": "/b"}}
    assert matrix.wanted_data(asked(place, **said), []) == {
        "mine": column("folder", "/a"),
        "theirs": column("folder", "/b"),
    }


def test_where_nobody_could_look_for_copies_is_told(place) -> None:
    run = matrix.saved_config(place / "runs/eight", asked(place))
    loaded = load_data(run)

    def told(**changed) -> list[str]:
        one = OmegaConf.merge(run, changed)
        return list(copies(place / "runs/eight", one, loaded, run.data, loaded.split.train))

    trained = f"LEAK: {len(loaded.split.train)} of its faces trained it, pixel for pixel"
    assert told() == [trained]
    nobody = "is not at hand: nobody looked for copies"
    for weights in ("runs:/gone", f"{place}/gone/best.pt"):
        assert told(model={"weights": weights}) == [
            trained,
            f"the net that it started from ({weights}) {nobody}",
        ]
    assert told(data={"crop": "haar"}) == [
        "the faces that trained it were cut out otherwise: nobody looked for copies"
    ]
    path = f"{place}/runs/seven/best.pt"
    started = OmegaConf.merge(run, {"model": {"weights": path}})
    lines = [(at.name, words) for at, _, words in ancestors(place / "runs/eight", started)]
    assert lines == [("eight", "trained it"), ("seven", "trained the net that it started from")]
    larger = OmegaConf.merge(run, {"data": {"size": 48, "source": {"root": run.data.root}}})
    assert list(copies(place / "runs/eight", larger, loaded, run.data, loaded.split.train)) == [trained]


def test_of_one_person_only_the_pictures_are_drawn_again(place) -> None:
    index = load_data(matrix.saved_config(place / "runs/seven", asked(place))).cache.index
    rows = np.arange(len(index))
    assert matrix.people_of(index, rows) is None
    for people in (["A"], ["A", "B"]):
        known = replace(index, subjects=tuple(people[row % len(people)] for row in rows))
        assert (matrix.people_of(known, rows) is None) == (len(people) == 1)


def test_what_cannot_be_judged_is_refused(place) -> None:
    with pytest.raises(UsageError, match=r"matrix_data names jafe; choices: .*jaffe"):
        matrix.matrix(asked(place, "seven", jafe="x"))
    (place / "runs/cv").mkdir(exist_ok=True)
    (place / "runs/cv/config.yaml").write_text("name: cv")
    with pytest.raises(UsageError, match=r"no config\.yaml and best\.pt"):
        matrix.matrix(asked(place, "cv"))
    run = matrix.saved_config(place / "runs/seven", asked(place))
    (name,) = found = matrix.wanted_data(asked(place, "seven"), [run])
    assert name == found[name].choice == "fer2013" and found[name].settings["root"] == f"{place}/fer2013"
