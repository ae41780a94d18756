"""A trained net by any of its names: a run, a registered model and exported files tell the same of the same pixels."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import nn

from fer_lab import nets
from fer_lab.cli import UsageError
from fer_lab.data.cache import open_cache
from fer_lab.data.draw import write_fer2013_csv
from fer_lab.data.fer2013 import Fer2013
from fer_lab.evaluation.calibration import Temperature, save_temperature, scaled
from fer_lab.exporting import program
from fer_lab.exporting.facts import Facts, FileError
from fer_lab.exporting.predictor import Predictor
from fer_lab.framing import FILE
from fer_lab.learning.tasks import Emotion
from fer_lab.models.preprocess import Preprocess
from fer_lab.models.small import Small
from fer_lab.tracking.record import TrackingError

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
TEMPERATURE = 0.2  # of a net that hardly prefers any: it shows


class Trained(NamedTuple):
    """A run of `python -m fer_lab.train` on drawn faces that are gone; `pixels` (N, 1, 48, 48) are of its validation part,
    `told` (N, 7) what the run wrote of them, before any temperature."""

    home: Path
    run: Path
    uri: str
    pixels: NDArray[np.uint8]
    told: NDArray[np.float64]

    def load(self, spec: str | Path):
        return nets.load(str(spec), self.home / "runs", self.uri)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A second one waits for its turns by asking all the time, which on busy machines takes longer than the nets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, preloaded, empty_store) -> Trained:
    home = tmp_path_factory.mktemp("any_net")
    uri = f"sqlite:///{home}/mlflow.db"
    shutil.copy(empty_store, home / "mlflow.db")
    places = (f"runs_dir={home}/runs", f"cache_dir={home}/cache", f"tracking.uri={uri}")
    data = write_fer2013_csv(home / "data", {"train": 70, "validation": 21, "test": 7})

    def typed(entry: str, *words: str) -> None:
        done = preloaded(
            [sys.executable, "-m", f"fer_lab.{entry}", *places, *words], cwd=ROOT, env=environment()
        )
        assert done.returncode == 0, done.stdout + done.stderr

    typed(
        *("train", "trainer=smoke", "trainer.accelerator=cpu", "threads=1", "views=flip", "augment=none"),
        *("data=fer2013", f"data.root={data}", "data.batch_size=35"),
    )
    (run,) = (path.parent for path in home.glob("runs/*/best.pt"))
    save_temperature(run, Temperature(TEMPERATURE, 21, {}, {}))
    typed("export", f"run={run.name}", "formats=[pt2,onnx]", "swap=float16")
    cache = open_cache(Fer2013(str(data)), 48, 1, home / "cache", progress=False)
    shutil.rmtree(data)
    with (run / "figures/validation_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    place = {name: row for row, name in enumerate(cache.index.names)}
    pixels = cache.images[np.array([place[row["name"]] for row in rows])]
    told = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    return Trained(home, run, uri, pixels, told)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def registered(trained) -> str:
    """A version of `quick`, with the alias champion; of its files nothing is needed but whose run it is."""
    from fer_lab.tracking.store import open_client

    (known,) = json.loads((trained.run / "forwarded.json").read_text()).values()
    client = open_client(trained.uri)
    client.create_registered_model("quick")
    version = client.create_model_version("quick", f"{trained.home}/champion", known["run_id"]).version
    client.set_registered_model_alias("quick", "champion", version)
    return str(version)


@pytest.fixture
def copied(trained, tmp_path):
    """Makes another run of the trained one, with keys of its config.yaml set to other values."""

    def make(name: str, **values: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(trained.run, folder, ignore=shutil.ignore_patterns("export"))
        config = OmegaConf.load(folder / "config.yaml")
        for key, value in values.items():
            OmegaConf.update(config, key.replace("__", "."), value, merge=False, force_add=True)
        OmegaConf.save(config, folder / "config.yaml")
        return folder

    return make


def test_every_name_of_a_net_tells_what_the_run_told_of_its_cached_faces_calibrated(trained, registered):
    name, expected = trained.run.name, scaled(trained.told, TEMPERATURE)
    assert np.abs(expected - trained.told).max() > 0.01, "the temperature would not show"
    for spec in (
        *(name, name[:-2], trained.run, "models:/quick@champion", f"models:/quick/{registered}"),
        *(trained.run / f"export/{name}.pt2", trained.run / f"export/{name}.onnx"),
    ):
        net = trained.load(spec)
        assert (net.classes, net.size, net.channels, net.affect) == (CLASSES, 48, 1, False)
        assert net.name == (
            spec if str(spec).startswith("models:/") else name + Path(spec).suffix * ("." in str(spec))
        )
        found = net.tell(trained.pixels)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0, err_msg=str(spec))
        one = trained.pixels[3:4]
        one.flags.writeable = False
        np.testing.assert_allclose(net.tell(one), expected[3:4], atol=1e-4, rtol=0)


def test_mirrored_faces_are_averaged_before_the_temperature_as_evaluate_does(trained, copied):
    """The run itself averaged views=flip; this one does not."""
    folder = copied("unmirrored", views="none")
    expected = scaled(trained.told, TEMPERATURE)
    net = nets.load(str(folder), trained.home, trained.uri, flip=True)
    np.testing.assert_allclose(net.tell(trained.pixels), expected, atol=1e-4, rtol=0)
    assert np.abs(trained.load(folder).tell(trained.pixels) - expected).max() > 1e-3


def test_a_swapped_file_tells_the_same_on_a_cpu(trained):
    net = trained.load(trained.run / f"export/{trained.run.name}.float16.pt2")
    np.testing.assert_allclose(net.tell(trained.pixels), scaled(trained.told, TEMPERATURE), atol=5e-3, rtol=0)


def test_a_run_that_only_the_store_has_is_fetched_whole(trained, registered, tmp_path):
    net = nets.load(
        "models:/quick@champion", tmp_path / "runs", trained.uri
    )  # no report sent the temperature there
    np.testing.assert_allclose(net.tell(trained.pixels), trained.told, atol=1e-4, rtol=0)
    assert next((tmp_path / "runs").iterdir()).name.startswith(trained.run.name)


def test_a_folder_of_export_will_do_where_one_file_is_meant(trained, tmp_path):
    export = trained.run / "export"
    for files, meant in ((["pt2", "onnx"], ".pt2"), (["onnx"], ".onnx")):
        folder = tmp_path / meant[1:]
        folder.mkdir()
        for suffix in files:
            shutil.copy(export / f"{trained.run.name}.{suffix}", folder)
        assert trained.load(folder).name == trained.run.name + meant
    with pytest.raises(UsageError, match=r"export holds .*float16\.pt2, .*\.pt2: name one of them"):
        trained.load(export)


def test_the_framing_of_whole_pictures_goes_with_the_run_and_its_files(trained, copied):
    kept = json.loads((trained.run / FILE).read_text())
    assert kept["looked"] == 70 and kept["found"] >= 40 and 0 < kept["margin"] < 0.3
    for spec in (trained.run, *trained.run.glob("export/*")):
        net = trained.load(spec)
        assert (net.margin, net.guessed) == (kept["margin"], False)
    unseen = copied("unseen")
    (unseen / FILE).unlink()  # and the pictures that trained it are gone
    net = trained.load(unseen)
    assert (net.margin, net.guessed) == (0.0, True) and not (unseen / FILE).exists()
    (unseen / FILE).write_text(json.dumps(kept | {"found": 19}))
    assert trained.load(unseen).guessed
    boxed = copied("boxed", data__crop="box", data__margin=0.4)
    net = trained.load(boxed)
    assert (net.margin, net.guessed) == (kept["margin"], False)
    (boxed / FILE).unlink()
    net = trained.load(boxed)
    assert (net.margin, net.guessed) == (0.4, True), "the data set's boxes are not the detector's"
    net = trained.load(copied("cropped", data__crop="haar", data__margin=0.4))
    assert (net.margin, net.guessed) == (0.4, False)


def test_a_net_trained_on_centre_crops_takes_whole_squares_and_maps_their_middle(trained, copied):
    """The same weights as a net of 40 pixels see the middle of 48."""
    folder = copied("middle", augment__crop=40, size=40)
    small = copied("small", data__size=40, size=40)
    cropped, direct = trained.load(folder), trained.load(small)
    assert (cropped.size, direct.size) == (48, 40)
    middle = np.ascontiguousarray(trained.pixels[..., 4:44, 4:44])
    np.testing.assert_allclose(cropped.tell(trained.pixels), direct.tell(middle), atol=1e-6)
    explain = nets.explainer(str(folder), trained.home)
    assert explain is not None
    found, method = explain(trained.pixels[:1])
    assert (found.shape, found.dtype, method) == ((48, 48), np.float32, "Grad-CAM")
    border = np.ones((48, 48), bool)
    border[4:44, 4:44] = False
    assert not found[border].any() and found.max() == pytest.approx(1.0) and found.min() >= 0


@pytest.mark.parametrize(
    ("task", "outputs", "classes"),
    [("Joint", 9, CLASSES), ("ValenceArousal", 2, ())],
    ids=["joint", "affect"],
)
def test_valence_and_arousal_are_told_and_no_temperature_touches_them(
    trained, copied, task, outputs, classes
):
    settings = {"_target_": f"fer_lab.learning.tasks.{task}"}
    folder = copied(task, model__net__classes=outputs)
    config = OmegaConf.load(folder / "config.yaml")
    config.task = settings | ({"classes": list(classes)} if classes else {})
    OmegaConf.save(config, folder / "config.yaml")
    torch.manual_seed(0)
    torch.save(Small(classes=outputs, size=48).state_dict(), folder / "best.pt")
    net, raw = trained.load(folder), nets.open_run(folder)
    assert (net.classes, net.affect) == (classes, True)
    found = net.tell(trained.pixels)
    with torch.inference_mode():
        plain = raw.predict(torch.from_numpy(trained.pixels)).numpy()
    assert found.shape == plain.shape == (21, outputs)
    np.testing.assert_array_equal(found[:, -2:], plain[:, -2:])
    assert np.abs(found[:, -2:]).max() <= 1
    if classes:
        np.testing.assert_allclose(found[:, :7], scaled(plain[:, :7], TEMPERATURE), atol=1e-6)
    else:
        assert nets.explainer(str(folder), trained.home) is None


class Corner(nn.Module):
    """Brighter upper right corners are class 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = images[..., :8, -8:].mean((1, 2, 3))
        return torch.stack([0.5 - seen, seen - 0.5], 1)


@pytest.fixture(scope="module")
def corner() -> program.Program:
    facts = Facts("corner", "Corner", ("neutral", "happiness"), 24, 1)
    predictor = Predictor(Corner(), Preprocess(1, [0.0], [1.0]), "flip", None)
    return program.Program(program.trace(predictor, facts), facts)


def test_an_exported_file_is_explained_by_what_happens_when_a_part_is_hidden(corner, tmp_path):
    program.save(corner.exported, tmp_path / "corner.pt2", corner.facts)
    explain = nets.explainer(str(tmp_path / "corner.pt2"), tmp_path)
    assert explain is not None
    face = np.random.default_rng(0).integers(60, 90, (1, 1, 24, 24), dtype=np.uint8)
    face[..., :8, :8] = face[..., :8, -8:] = 230  # both corners: the mirrored face is looked at, too
    found, method = explain(face)
    assert (method, found.shape, found.max()) == ("occlusion", (24, 24), 1.0)
    assert found[:8, :8].mean() > 0.4 and found[:8, -8:].mean() > 0.4 and found[12:].max() < 0.01
    with torch.no_grad():
        assert nets.load(str(tmp_path / "corner.pt2"), tmp_path).tell(face).argmax() == 1


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"classes": ("neutral", "happiness", "anger")}, r"1x24x24.*, 3 outputs\): it tells 2 numbers"),
        ({"classes": (1, 2)}, "2 outputs.*: no net for faces is like this"),
        ({"size": 10**9}, "1x1000000000x1000000000.*: no net for faces is like this"),
        ({"size": "24"}, "'<=' not supported"),
        ({"channels": 3}, r"3x24x24.*: \S+"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"margin": 1e6}, "margin 1000000.0"),
    ],
)
def test_a_file_that_is_not_what_it_says_of_itself_is_refused(corner, tmp_path, said, message):
    facts = replace(corner.facts, **said)
    program.save(corner.exported, tmp_path / "corner.pt2", facts)
    with pytest.raises(FileError, match=f"corner.pt2 is not what it says of itself .*{message}"):
        nets.load(str(tmp_path / "corner.pt2"), tmp_path)


def test_a_net_without_convolutions_has_no_map_of_its_own(corner):
    net = nets.Rebuilt(Corner(), Preprocess(1, [0.0], [1.0]), Emotion(corner.facts.classes))
    assert nets.grad_cam_of(net, corner.facts) is None


def test_without_captum_there_is_no_explanation(trained, monkeypatch):
    monkeypatch.setattr(nets, "find_spec", lambda name: None)
    assert nets.explainer(str(trained.run), trained.home) is None


def broken(folder: Path, name: str, content: str | bytes | None) -> Path:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "best.pt",
            None,
            "has no config.yaml and best.pt: the run finished no epoch, or is a trial of a sweep",
        ),
        (
            "best.pt",
            b"PK\x03\x04 half",
            r"best\.pt is not a file of plain tensors .*; copy the run's folder once more",
        ),
        ("config.yaml", "a: [", r"config\.yaml is not the config of a run: .*; copy it once more, or train"),
        (
            "config.yaml",
            "seed: 1",
            r"is not the config of a run: it has no model\.net, model\.preprocess, task, aug",
        ),
        ("config.yaml", "- 1", "is not the config of a run: .*; copy it once more"),
        (
            "folds.json",
            '{"folds": [{"run": "a"}, {"run": "b"}]}',
            "is a cross-validation, .*; name one of them: a, b",
        ),
    ],
)
def test_a_run_without_a_net_is_told_in_a_sentence(trained, copied, name, content, message):
    folder = broken(copied("run"), name, content)
    with pytest.raises(UsageError, match=message) as caught:
        trained.load(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_net_and_a_config_that_names_code_are_refused(trained, copied):
    with pytest.raises(UsageError, match=r"best\.pt is not of the net in .*size mismatch for head"):
        trained.load(copied("wider", model__net__classes=8))
    with pytest.raises(UsageError, match=r"_target_: os\.system is not part of fer_lab"):
        trained.load(copied("code", model__net___target_="os.system"))


def test_what_is_no_net_is_told_in_a_sentence(trained, registered, tmp_path):
    weights = trained.run / "best.pt"
    (tmp_path / "half.pt2").write_bytes((trained.run / f"export/{trained.run.name}.pt2").read_bytes()[:5000])
    (tmp_path / "half.onnx").write_bytes(b"\x08\x07 no net")
    (tmp_path / "face.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/net.json").write_text("{}")
    for spec, message in {
        str(
            weights
        ): rf"is a file of weights alone; name their run \({trained.run}\), or a .pt2 or .onnx file",
        str(tmp_path / "face.jpg"): "is a file of no net; name a run, or a .pt2 or .onnx",
        str(tmp_path / "half.pt2"): "is no program that torch",
        str(tmp_path / "half.onnx"): "is no ONNX file that ONNX Runtime reads",
        str(tmp_path / "none.pt2"): "there is no program at .*; python -m fer_lab.export run=ID writes one",
        str(tmp_path / "text"): "holds text weights: python -m fer_lab.export text=.* makes a .pt2 of them",
        "nothing-like-it": "run=nothing-like-it is not in",
        "models:/quick": "expected models:/NAME@ALIAS or models:/NAME/VERSION",
        "models:/quick@winner": r"cannot be had from sqlite.*winner.*; registered there: models:/quick@champion",
        "models:/quick/7": r"cannot be had from sqlite.*; registered there: models:/quick@champion",
    }.items():
        with pytest.raises((UsageError, FileError, TrackingError), match=message) as caught:
            trained.load(spec)
        assert "\n" not in str(caught.value)
