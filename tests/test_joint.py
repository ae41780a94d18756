"""Nets that tell valence and arousal, alone or beside expressions: trained on drawn faces, judged, exported."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats

from fer_lab import figures
from fer_lab.build import build_data
from fer_lab.cli import UsageError
from fer_lab.evaluate import evaluate
from fer_lab.export import export
from fer_lab.exporting.facts import CannotExport, Facts
from fer_lab.exporting.onnx import OnnxProgram
from fer_lab.exporting.program import load
from fer_lab.fit import result_of
from fer_lab.tracking.forward import settle
from fer_lab.tracking.record import RunRecord, read_events
from fer_lab.train import train
from tests.composing import composed

TINY = (
    "trainer.accelerator=cpu", "threads=1", "augment=none", "data.size=32", "data.batch_size=16",
    "data.source.validation=80", "data.source.test=80",
)  # fmt: skip
LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
COLUMNS = ["valence", "arousal", "true_valence", "true_arousal"]


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("joint")
    shutil.copy(empty_store, folder / "mlflow.db")
    yield folder
    settle()


def trained(home: Path, *words: str) -> tuple[Path, str]:
    """The folder of a run, and what it said."""
    with redirect_stdout(StringIO()) as said:
        result = train(composed("train", home, *TINY, *words))
    return home / "runs" / result.run, said.getvalue()


@pytest.fixture(scope="module")
def joint(home) -> tuple[Path, str]:
    return trained(home, "task=joint", "data.source.train=480", "trainer.max_epochs=5")


@pytest.fixture(scope="module")
def affect(home) -> tuple[Path, str]:
    return trained(home, "task=valence_arousal", "data.source.train=80", "trainer.max_epochs=2")


def predictions(folder: Path, usage: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """The head of the file, and its columns: numbers where they are numbers."""
    with (folder / f"figures/{usage}_predictions.csv").open() as file:
        head, *rows = csv.reader(file)
    words = {"name", "label", "predicted"}
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    return head, {name: np.array(of, str if name in words else float) for name, of in columns.items()}


def concordance(x: np.ndarray, y: np.ndarray) -> float:
    """Lin 1989, with moments divided by n."""
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def test_a_joint_net_learns_both_and_is_judged_by_both(joint):
    folder, said = joint
    assert "balanced_accuracy" in said and "ccc_valence" in said
    for usage in ("validation", "test"):
        scores = json.loads((folder / f"figures/{usage}.json").read_text())
        head, found = predictions(folder, usage)
        assert head == ["name", "label", "predicted", *(f"p_{name}" for name in LABELS), *COLUMNS]
        assert scores["scores"]["accuracy"] == pytest.approx(np.mean(found["label"] == found["predicted"]))
        for name in ("valence", "arousal"):
            x, y = found[name], found[f"true_{name}"]
            mine = {key: scores["scores"][f"{key}_{name}"] for key in ("ccc", "pcc", "rmse", "sagr")}
            assert mine["ccc"] == pytest.approx(concordance(x, y), abs=1e-5)
            assert mine["pcc"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-5)
            assert mine["rmse"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-5)
            assert mine["sagr"] == pytest.approx(np.mean(np.sign(x) == np.sign(y)), abs=1e-5)
            low, high = scores["intervals_95"][f"ccc_{name}"]
            assert low < mine["ccc"] < high
        assert scores["scores"]["ccc"] > 0.2
        assert scores["intervals_95"]["ccc"][0] > 0.1  # of people whom no epoch has seen
        assert set(scores["per_class"]) == set(LABELS)
        assert (folder / f"figures/{usage}_affect.png").stat().st_size > 10_000
        assert (folder / f"figures/{usage}_confusion_matrix.png").exists()


def test_the_scores_of_an_epoch_are_those_of_the_whole_split(joint):
    folder, _ = joint
    metrics = result_of(RunRecord(folder)).metrics
    scores = json.loads((folder / "figures/validation.json").read_text())["scores"]
    for name in ("accuracy", "ccc", "ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal"):
        assert metrics[f"val/{name}"] == pytest.approx(scores[name], abs=1e-5)
    assert "train/accuracy" in metrics
    final = [event["values"] for event, _ in read_events(folder) if event["event"] == "metrics"][-1]
    assert (
        final["final/test_ccc_valence_low"] < final["final/test_ccc_valence"] and "final/test_kappa" in final
    )


def test_a_net_of_valence_and_arousal_alone_has_only_their_figures(affect):
    folder, said = affect
    metrics = result_of(RunRecord(folder)).metrics
    assert not [name for name in metrics if "accuracy" in name]
    assert OmegaConf.load(folder / "config.yaml").monitor == "val/ccc"
    scores = json.loads((folder / "figures/test.json").read_text())
    assert {name.partition("_")[0] for name in scores["scores"]} == {"ccc", "pcc", "rmse", "sagr"}
    assert scores["per_class"] == {}
    assert predictions(folder, "test")[0] == ["name", "label", *COLUMNS]
    assert (folder / "figures/test_affect.png").exists()
    assert not (folder / "figures/test_confusion_matrix.png").exists()
    assert "ccc_valence" in said and "accuracy" not in said


@pytest.mark.parametrize(
    ("kind", "classes", "words"), [("joint", LABELS, ()), ("affect", (), ("formats=pt2",))]
)
def test_exported_nets_say_what_the_trained_ones_say(home, kind, classes, words, request, capsys):
    folder, _ = request.getfixturevalue(kind)
    paths = {path.suffix: path for path in export(composed("export", home, f"run={folder.name}", *words))}
    data = build_data(OmegaConf.load(folder / "config.yaml"))
    pixels = torch.from_numpy(data.cache.images[data.split.validation])
    _, said = predictions(folder, "validation")
    names = (*(f"p_{name}" for name in classes), "valence", "arousal")
    expected = torch.from_numpy(np.stack([said[name] for name in names], 1)).float()
    programs = [load(paths[".pt2"])]
    if not words:
        assert "no text: text weights are of nets that tell expressions alone" in capsys.readouterr().out
        programs.append(OnnxProgram(paths[".onnx"]))
        assert programs[1].session.get_outputs()[0].name == "predictions"
    for program in programs:
        assert (program.facts.classes, program.facts.affect) == (classes, True)
        for part in (slice(0, 1), slice(0, 40)):
            torch.testing.assert_close(program(pixels[part]), expected[part], atol=1e-5, rtol=1e-4)
    with pytest.raises(CannotExport, match="this one tells valence and arousal"):
        export(composed("export", home, f"run={folder.name}", "formats=[text]"))


def test_a_loss_that_is_not_of_expressions_alone_has_no_unit():
    history = {"train/loss": [(0, 1.0), (1, 0.7)], "val/loss": [(0, 0.9), (1, 0.8)]}
    for name, unit in (("val/kappa", "loss (nats)"), ("val/ccc", "loss")):
        figure = figures.curves({**history, name: [(0, 0.1), (1, 0.2)]})
        assert [axes.get_ylabel() for axes in figure.axes] == [unit]


def test_files_of_before_valence_and_arousal_are_still_read():
    before = {"run": "r", "net": "n", "classes": ["a", "b"], "size": 8, "channels": 1}
    assert Facts.of(before, "here").affect is False
    assert Facts.of_text(Facts.of({**before, "affect": True}, "here").as_text(), "there").affect is True


def test_data_without_valence_and_arousal_is_refused_with_those_that_have_them(home, joint, affect, tmp_path):
    from fer_lab.data.draw import write_fer2013_folders

    write_fer2013_folders(tmp_path / "fer2013", {"train": 42, "validation": 14, "test": 14})
    words = ("data=fer2013", f"data.root={tmp_path}/fer2013", "data.size=32")
    for task in ("joint", "valence_arousal"):
        with pytest.raises(
            UsageError, match="train faces of fer2013 do not have; choose a data set that has them"
        ):
            train(composed("train", home, *words, f"task={task}"))
    # a joint net's expressions can be judged on them, valence and arousal alone cannot
    scores = evaluate(composed("evaluate", home, f"run={joint[0].name}", *words))
    assert "accuracy" in scores["test"] and "ccc" not in scores["test"]
    with pytest.raises(UsageError, match="which fer2013 does not have; choose a data set that has them"):
        evaluate(composed("evaluate", home, f"run={affect[0].name}", *words))
