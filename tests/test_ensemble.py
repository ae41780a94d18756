"""Several runs judged as one: the mean of what they say of the same faces, and words where that cannot be."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fer_lab.build import build_data
from fer_lab.cli import UsageError
from fer_lab.evaluate import evaluate
from fer_lab.evaluation.audits import Audit, Group, folder_of, write_audit
from fer_lab.evaluation.predictions import read_predictions
from fer_lab.folds import FoldJob
from fer_lab.models.small import Small
from fer_lab.tracking.forward import settle
from fer_lab.train import train
from tests.composing import composed

DRAWN = ("data.source.train=56", "data.source.validation=14", "data.source.test=28")
TINY = ("data.batch_size=28", "trainer.accelerator=cpu", "trainer.max_epochs=4", "threads=1", "augment=none")


def trained(place: Path, *words: str) -> Path:
    result = train(composed("train", place, *TINY, *words), FoldJob("member", parent=""))
    return place / "runs" / result.run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path):
    folder = tmp_path_factory.mktemp("ensemble")
    shutil.copy(empty_store, folder / "mlflow.db")
    yield folder
    settle()


@pytest.fixture(scope="module")
def runs(place: Path) -> list[Path]:
    """A grey net on small faces, and one of three channels on larger ones that looks at mirror images, too."""
    wide = ("data.size=40", "data.channels=3", "model.channels=3", "model.preprocess.mean=[0,0,0]")
    return [
        trained(place, *DRAWN, "data.size=24", "seed=1"),
        trained(place, *DRAWN, *wide, "model.preprocess.std=[1,1,1]", "views=flip", "seed=2"),
    ]


def by_hand(folder: Path, usage: str) -> np.ndarray:
    """Probabilities of a run, with nothing of ours but the layers of the net and the cached pixels."""
    saved = OmegaConf.load(folder / "config.yaml")
    data = build_data(saved)
    images = torch.from_numpy(data.cache.images[getattr(data.split, usage)]).float() / 255
    net = Small(classes=7, size=saved.data.size, channels=saved.data.channels).eval()
    net.load_state_dict(torch.load(folder / "best.pt", weights_only=True))
    views = [images, images.flip(-1)] if saved.views == "flip" else [images]
    found = []
    for view in views:
        flat = view.flatten(1)
        centred = (view - flat.mean(1)[:, None, None, None]) / flat.std(1)[:, None, None, None].clamp_min(
            0.04
        )
        with torch.no_grad():
            found.append(net(centred).softmax(1))
    return torch.stack(found).mean(0).numpy()


def audited(run: Path) -> tuple[str, str]:
    """An audit of the run's faces that calls a face of train and one of test copies: their names."""
    saved = OmegaConf.load(run / "config.yaml")
    data = build_data(saved)
    names = data.index.names[data.split.train[0]], data.index.names[data.split.test[0]]
    found = Audit(data.index.name, data.index.digest, 0.74, (Group(names, ("fear", "fear"), 1.0),), {}, [])
    write_audit(found, {}, folder_of(data.index, saved.cache_dir))
    return names


def test_the_mean_of_two_runs_of_other_sizes_and_channels(place, runs, capsys):
    copied = audited(runs[1])
    scores = evaluate(composed("evaluate", place, f"run=[{runs[0].name},{runs[1].name}]"))
    (folder,) = (place / "runs/ensembles").iterdir()
    written = read_predictions(folder / "test_predictions.csv")
    each = [by_hand(run, "test") for run in runs]
    np.testing.assert_allclose(written.values, np.mean(each, axis=0), atol=2e-5)
    labels = np.array([written.classes.index(label) for label in written.labels])
    assert scores["test"]["accuracy"] == pytest.approx((np.mean(each, axis=0).argmax(1) == labels).mean())
    assert set(scores) == {"validation", "test"}

    right = [name not in copied for name in written.names]
    kept = json.loads((folder / "test_clean.json").read_text())
    assert kept["count"] == sum(right) == 27
    hits = np.mean(each, axis=0).argmax(1) == labels
    assert kept["scores"]["accuracy"] == pytest.approx(hits[right].mean())
    assert [len((run / "looks.jsonl").read_text().splitlines()) for run in runs] == [1, 1]

    gain = json.loads((folder / "ensemble.json").read_text())["gain"]["test"]
    rates = [(one.argmax(1) == labels).mean() for one in each]
    assert list(gain["accuracies"].values()) == pytest.approx(rates)
    assert gain["gain"] == pytest.approx(scores["test"]["accuracy"] - max(rates), abs=1e-6)
    assert gain["interval_95"][0] <= gain["gain"] <= gain["interval_95"][1]
    assert "gain over the best of them" in capsys.readouterr().out


def test_what_cannot_be_one_is_refused_with_words(place, runs):
    first = runs[0].name
    other_faces = trained(
        place, "data.source.train=56", "data.source.validation=14", "data.source.test=42", "data.size=24"
    )
    more_classes = trained(place, *DRAWN, "data.size=24", "+data.source.classes=8")
    for words, message in [
        (f"[{first}]", "needs two runs or more"),
        (f"[{first},{first}]", "none of them twice"),
        (f"[{first},{other_faces.name}]", r"judge other test faces \(28 and 42, "),
        (f"[{first},{more_classes.name}]", "needs the same classes in the same order"),
    ]:
        with pytest.raises(UsageError, match=message):
            evaluate(composed("evaluate", place, f"run={words}"))


def test_faces_that_trained_a_member_are_told(place, runs, capsys):
    whole = f"run=[{runs[0].name},{runs[1].name}]"
    evaluate(composed("evaluate", place, whole, "split=holdout", "split.validation=0.5"))
    assert capsys.readouterr().out.count("faces trained this run") == 2


def cross_validation(place: Path, model: Path, name: str, values: np.ndarray, order: np.ndarray) -> Path:
    """The folder that `split.fold=all` leaves behind, of the faces in any order."""
    folder = place / "runs" / name
    (folder / "figures").mkdir(parents=True)
    saved = OmegaConf.load(model / "config.yaml")
    saved.split = {"_target_": "fer_lab.data.splits.KFold", "folds": 3, "fold": "all"}
    OmegaConf.save(saved, folder / "config.yaml")
    (folder / "folds.json").write_text(json.dumps({"folds": []}))
    (folder / "figures/test.json").write_text(json.dumps({"inference_ms": 1.5}))
    names = json.loads((model / "split.json").read_text())
    faces = sorted(name for part in names.values() for name in part)
    classes = list(saved.classes)
    with (folder / "figures/test_predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "label", "predicted", *(f"p_{one}" for one in classes)])
        for row in order:
            label = classes[int(faces[row].rsplit("/", 1)[1]) % 7]
            table.writerow(
                [faces[row], label, classes[values[row].argmax()], *(f"{v:.6f}" for v in values[row])]
            )
    return folder


def test_cross_validations_are_averaged_face_by_face(place, runs):
    generator = np.random.default_rng(0)
    each = [generator.dirichlet(np.ones(7), size=98) for _ in range(2)]
    orders = [np.arange(98), generator.permutation(98)]
    names = [cross_validation(place, runs[0], f"cv{one}", each[one], orders[one]).name for one in range(2)]
    shutil.rmtree(place / "runs/ensembles", ignore_errors=True)
    scores = evaluate(composed("evaluate", place, f"run=[{','.join(names)}]"))
    assert set(scores) == {"test"}
    (folder,) = (place / "runs/ensembles").iterdir()
    written = read_predictions(folder / "test_predictions.csv")
    assert len(written.names) == 98 and written.names == tuple(sorted(written.names))
    np.testing.assert_allclose(written.values, np.mean(each, axis=0), atol=2e-6)
    with pytest.raises(UsageError, match="cross-validation, judged as it was: leave out views"):
        evaluate(composed("evaluate", place, f"run=[{','.join(names)}]", "views=flip"))
