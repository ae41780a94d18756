"""The drawer: repeatable, learnable but not from single pixels, and JAFFE's layout to the letter."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hydra.utils import get_object
from omegaconf import OmegaConf
from PIL import Image
from sklearn.linear_model import RidgeClassifier

from fer_lab.cli import CONF
from fer_lab.data import portrait
from fer_lab.data.draw import draw, main
from fer_lab.data.faces import EXPRESSIONS, DataError
from fer_lab.data.layouts import LAYOUTS
from fer_lab.data.synthetic import Synthetic


def test_the_same_arguments_draw_the_same_face() -> None:
    face = draw(3, 1, 2, "fear")
    assert np.array_equal(face.pixels, draw(3, 1, 2, "fear").pixels)
    for other in (
        draw(4, 1, 2, "fear"),
        draw(3, 2, 2, "fear"),
        draw(3, 1, 3, "fear"),
        draw(3, 1, 2, "anger"),
    ):
        assert not np.array_equal(face.pixels, other.pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_face_looks_alike_at_every_size(channels: int) -> None:
    small = draw(0, 5, 9, "surprise", 48, channels).pixels
    large = draw(0, 5, 9, "surprise", 192, channels).pixels
    assert large.shape == ((192, 192) if channels == 1 else (192, 192, 3)) and large.dtype == np.uint8
    shrunk = np.asarray(Image.fromarray(large).resize((48, 48), Image.Resampling.BOX))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.97


def test_people_stay_themselves_from_picture_to_picture() -> None:
    first, second = (portrait.identity(np.random.default_rng((0, 0, 7))) for _ in range(2))
    assert first == second != portrait.identity(np.random.default_rng((0, 0, 8)))


def test_valence_and_arousal_follow_from_the_expression() -> None:
    faces = {shown: [draw(0, n, n, shown, 8) for n in range(60)] for shown in EXPRESSIONS}
    valence = {shown: np.mean([face.valence for face in some]) for shown, some in faces.items()}
    arousal = {shown: np.mean([face.arousal for face in some]) for shown, some in faces.items()}
    assert max(valence, key=valence.__getitem__) == "happiness"
    assert min(valence["neutral"], valence["surprise"]) > max(
        valence[shown] for shown in ("sadness", "fear", "disgust", "anger", "contempt")
    )
    assert min(arousal["surprise"], arousal["fear"], arousal["anger"]) > 0.4 > abs(arousal["neutral"])
    assert arousal["sadness"] < 0
    assert all(
        -1 <= face.valence <= 1 and -1 <= face.arousal <= 1 for some in faces.values() for face in some
    )


def test_a_linear_model_sees_something_but_not_all() -> None:
    source = Synthetic(train=1400, validation=0, test=350)
    items = source.items()
    pixels = np.stack([source.pixels(item)[::2, ::2].ravel() / 255.0 for item in items])
    labels = np.array([item.label for item in items])
    model = RidgeClassifier(alpha=30.0).fit(pixels[:1400], labels[:1400])
    accuracy = model.score(pixels[1400:], labels[1400:])
    assert 2 / 7 < accuracy < 0.65


def test_synthetic_people_never_cross_usages_and_classes_are_balanced() -> None:
    items = Synthetic(train=140, validation=35, test=35, per_person=15).items()
    people = {usage: {item.subject for item in items if item.usage == usage} for usage in ("train", "test")}
    assert len(items) == 210 == len({item.name for item in items})
    assert not people["train"] & people["test"]
    assert set(Counter(item.label for item in items if item.usage == "train").values()) == {20}
    assert Synthetic(seed=1).stamp() != Synthetic().stamp() == Synthetic().stamp()


def test_contempt_is_drawn_when_asked_for() -> None:
    assert Synthetic(classes=8).classes == EXPRESSIONS
    with pytest.raises(DataError, match=r"classes=9 .* expected 2 to 8"):
        Synthetic(classes=9)


def test_jaffe_has_the_official_counts_and_names(drawn_jaffe: Path) -> None:
    names = sorted(path.stem for path in drawn_jaffe.glob("*.tiff"))
    parts = [name.split(".") for name in names]
    assert Counter(part[0] for part in parts) == {
        "KA": 23, "KL": 22, "KM": 22, "KR": 20, "MK": 21, "NA": 21, "NM": 20, "TM": 21, "UY": 21, "YM": 22,
    }  # fmt: skip
    assert Counter(part[1][:2] for part in parts) == {
        "AN": 30, "DI": 29, "FE": 32, "HA": 31, "NE": 30, "SA": 31, "SU": 30,
    }  # fmt: skip
    serials = {int(part[2]) for part in parts}
    assert len(serials) == 213 and serials < set(range(1, 220))
    assert "KA.AN1.39" in names
    digits: dict[str, list[int]] = {}
    for part in parts:
        digits.setdefault(part[0] + part[1][:2], []).append(int(part[1][2]))
    assert any(max(some) > len(some) for some in digits.values()), "no repetition digit is skipped"
    assert (drawn_jaffe / "README").is_file() and (drawn_jaffe / ".DS_Store").is_file()


def test_jaffe_files_are_big_endian_grey_and_little_endian_palette(drawn_jaffe: Path) -> None:
    kinds: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for path in drawn_jaffe.glob("*.tiff"):
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            kinds[tiff.byteorder, page.photometric.name, page.shape] += 1
            is_palette = page.photometric.name == "PALETTE"
        assert is_palette == (path.name.startswith("KM") or path.stem == "KA.AN1.39")
        assert path.read_bytes()[:2] == (b"II" if is_palette else b"MM")
    assert kinds == {(">", "MINISBLACK", (256, 256)): 190, ("<", "PALETTE", (256, 256)): 23}


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README").write_text("The real JAFFE")
    (tmp_path / "KA.AN1.39.tiff").write_text("real")
    assert main(["jaffe", str(tmp_path)]) == 2
    assert "holds files that this program did not draw; name a new or empty folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["KA.AN1.39.tiff", "README"]
    assert (tmp_path / "KA.AN1.39.tiff").read_text() == "real"


def test_the_command_draws_the_same_again_and_says_what_comes_next(drawn_jaffe: Path, tmp_path: Path) -> None:
    code = "import sys; from fer_lab.data.draw import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "jaffe", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = f"python -m fer_lab.train model=vgg19 data=jaffe data.root={tmp_path}/new model.weights=null"
    assert said in done.stdout
    assert done.stdout.endswith("False\n"), "torch was imported"
    for path in drawn_jaffe.iterdir():
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()


@pytest.mark.filterwarnings("ignore:.*(results will not compare|faces left out)")
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "jaffe"])
def test_every_layout_is_drawn_by_name_and_read_by_the_data_set_of_that_name(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([layout, str(tmp_path), "--faces", "22"]) == 0
    said = capsys.readouterr().out
    assert f"python -m fer_lab.train data={layout} data.root={tmp_path}\n" in said
    count = int(said.split()[0])
    settings = OmegaConf.load(CONF / f"data/{layout}.yaml")
    target = get_object(settings.source._target_)
    items = target(str(tmp_path)).items()
    assert 22 < count <= 33 and 0.6 * count < len(items) <= count
    assert {"train", "test"} <= {item.usage for item in items}
