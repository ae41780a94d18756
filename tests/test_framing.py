"""How training pictures stand about the faces in them, measured where it is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from fer_lab.data.crop import cascade, cut, largest_face
from fer_lab.data.draw import draw
from fer_lab.data.faces import EXPRESSIONS, Item
from fer_lab.data.synthetic import Synthetic
from fer_lab.exporting.facts import Facts
from fer_lab.framing import FILE, framing_of, measured

TRAIN = 40


def drawn_squares(margin: float) -> list[NDArray[np.uint8]]:
    """What the detector finds in large drawn portraits, cut with this margin."""
    portraits = (draw(5, person, person, EXPRESSIONS[person % 7], size=160).pixels for person in range(14))
    wide = [np.pad(one, 40, mode="reflect") for one in portraits]
    return [cut(one, box, margin) for one in wide if (box := largest_face(one)) is not None]


@pytest.mark.parametrize("margin", [-0.05, 0.0, 0.2])
def test_the_measured_margin_is_the_one_that_pictures_were_cut_with(margin):
    pictures = drawn_squares(margin)
    found = measured(iter(pictures))
    assert found.looked == len(pictures) >= 8 and found.found >= 0.6 * len(pictures)
    assert found.margin == pytest.approx(margin, abs=0.04)
    assert max(abs(found.across), abs(found.down)) < 0.03


def test_faces_beside_the_middle_are_not_what_a_picture_was_cut_for():
    face = drawn_squares(0.0)[1]
    room = len(face) * 3 // 2
    corner, middle = (np.pad(face, rooms, mode="edge") for rooms in ((0, room), (room // 2, room // 2)))
    assert [measured(iter([one])).found for one in (corner, middle)] == [0, 1]


@pytest.fixture
def run(tmp_path) -> tuple[Path, DictConfig]:
    """A folder of a run on drawn faces, as far as its framing needs one."""
    names = [item.name for item in Synthetic(train=TRAIN).items()[:TRAIN]]
    (tmp_path / "split.json").write_text(json.dumps({"train": names}))
    source = {"_target_": "fer_lab.data.synthetic.Synthetic", "train": TRAIN}
    return tmp_path, OmegaConf.create({"data": {"source": source}})


def test_a_run_is_looked_at_once(run):
    folder, config = run
    found = framing_of(folder, config)
    assert found is not None and found.looked == TRAIN and found.found > TRAIN / 2
    kept = json.loads((folder / FILE).read_text())
    assert kept == found._asdict()
    assert {path.name for path in folder.iterdir()} == {"split.json", FILE}
    (folder / FILE).write_text(json.dumps(kept | {"margin": 0.5}))
    again = framing_of(folder, OmegaConf.create({"data": {}}))  # the data are not asked for
    assert again == found._replace(margin=0.5)
    (folder / FILE).write_text(json.dumps(kept | {"found": 19}))
    assert framing_of(folder, config) is None


class Boxed:
    """Portraits with boxes that are a tenth wider on each side than the detector's squares."""

    def __init__(self) -> None:
        portraits = (
            draw(5, person, person, EXPRESSIONS[person % 7], size=160).pixels for person in range(30)
        )
        self.wide = {str(place): np.pad(one, 80, mode="reflect") for place, one in enumerate(portraits)}

    def items(self) -> list[Item]:
        found = {name: largest_face(one[40:-40, 40:-40]) for name, one in self.wide.items()}
        return [Item(name, 0, box=wider(box)) for name, box in found.items() if box is not None]

    def pixels(self, item: Item) -> NDArray[np.uint8]:
        return self.wide[item.name]


def wider(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    left, top, side, _ = box
    more = round(0.1 * side)
    return left + 40 - more, top + 40 - more, side + 2 * more, side + 2 * more


def test_of_the_boxes_of_a_data_set_what_was_cut_out_is_measured(tmp_path, monkeypatch):
    source = Boxed()
    monkeypatch.setattr("fer_lab.build.instantiate", lambda _: source)
    (tmp_path / "split.json").write_text(json.dumps({"train": list(source.wide)}))
    data = {"source": {}, "crop": "box", "margin": 0.1}
    found = framing_of(tmp_path, OmegaConf.create({"data": data}))
    assert found is not None and found.margin == pytest.approx(0.22, abs=0.04)


def test_without_opencv_nobody_looks(run, monkeypatch):
    folder, config = run
    cascade.cache_clear()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "cv2", None)
        assert framing_of(folder, config) is None
    cascade.cache_clear()
    assert not (folder / FILE).exists()


@pytest.mark.parametrize(
    "source",
    [
        {"_target_": "fer_lab.data.folder.Folder", "root": "/nowhere"},
        {"_target_": "fer_lab.data.synthetic.Synthetic", "train": TRAIN, "root": "no such setting"},
        {"_target_": "fer_lab.data.synthetic.Synthetic", "train": 0},
        {"_target_": "os.system", "command": "true"},
        {"_target_": "somebody.elses.Source"},
    ],
    ids=("gone", "other settings", "other pictures", "code", "not installed"),
)
def test_without_the_data_of_a_run_its_framing_is_unknown(run, source):
    folder, _ = run
    assert framing_of(folder, OmegaConf.create({"data": {"source": source}})) is None
    assert not (folder / FILE).exists()


def test_a_file_from_before_the_framing_was_measured_does_not_know_it():
    facts = Facts("run", "net", EXPRESSIONS, 48, 1, margin=0.1, framed=50)
    assert Facts.of_text(facts.as_text(), "here") == facts
    older = Facts.of_text({name: text for name, text in facts.as_text().items() if name != "framed"}, "here")
    assert older.framed == 0
