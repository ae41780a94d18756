"""The train command as a user types it: tracked, found again, continued after kill -9, refused with words."""

from __future__ import annotations

import json
import signal
import time
import uuid
from pathlib import Path

import pytest

from fer_lab.tracking.record import read_events

TINY = (
    "data.source.train=112",
    "data.source.validation=42",
    "data.source.test=42",
    "data.size=32",
    "data.batch_size=28",
    "trainer.accelerator=cpu",
    "threads=1",
)
"""A training run of seconds: drawn faces, one thread."""


def metrics(folder: Path) -> dict[str, dict[int, float]]:
    """{name: {epoch: value}}; a step that stands twice is a failure."""
    found: dict[str, dict[int, float]] = {}
    for event, _ in read_events(folder):
        if event["event"] == "metrics":
            for name, value in event["values"].items():
                assert event["step"] not in found.setdefault(name, {}), f"{name} twice at {event['step']}"
                found[name][event["step"]] = value
    return found


def only_run(runs: Path) -> Path:
    (folder,) = (path for path in runs.iterdir() if path.is_dir() and not path.name.startswith("."))
    return folder


@pytest.fixture(scope="module")
def mlflow_client():
    from mlflow import MlflowClient

    return MlflowClient


def test_a_run_is_trained_judged_tracked_and_found_again(command, tmp_path, mlflow_client):
    done = command("train", *TINY, "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path / "runs")
    assert f"run {folder.name}" in done.stdout.splitlines()[-1]
    assert f"fer_lab.evaluate run={folder.name}" in done.stdout.splitlines()[-1]

    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("fer_lab").experiment_id])
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/accuracy")] == [0, 1]
    assert run.data.params["optimizer.lr"] == "0.08"
    assert {"train", "validation", "test"} <= {
        tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags
    }
    kept = {item.path for part in ("", "figures") for item in client.list_artifacts(run.info.run_id, part)}
    assert {"best.pt", "config.yaml", "split.json", "figures/curves.png", "figures/faces.png"} <= kept
    assert {
        "figures/test_confusion_matrix.png",
        "figures/test_mistakes.png",
        "figures/test_per_class.png",
    } <= kept

    again = command("train", *TINY, "trainer.max_epochs=2")
    assert "trained before" in again.stdout
    assert only_run(tmp_path / "runs") == folder

    judged = command(
        "evaluate", f"run={run.info.run_id}", "tracking.uri=sqlite:///" + str(tmp_path / "mlflow.db")
    )
    assert judged.returncode == 0, judged.stderr
    (place,) = (folder / "evaluations").iterdir()
    for usage in ("validation", "test"):
        first, second = (
            json.loads((where / f"{usage}.json").read_text()) for where in (folder / "figures", place)
        )
        assert first["scores"] == pytest.approx(second["scores"], rel=1e-6)


def test_a_run_killed_with_9_goes_on_as_if_nothing_had_happened(command, tmp_path, mlflow_client):
    words = (
        *TINY,
        "trainer.max_epochs=6",
        "model.dropout=0.2",
        "ema=0.9",
        "augment=standard",
        "scheduler=cosine",
    )
    started = command("train", *words, wait=False)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and started.poll() is None:
        if any("val/loss" in name for name in epochs_so_far(tmp_path / "runs", at_least=2)):
            break
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    folder = only_run(tmp_path / "runs")
    killed_after = len(metrics(folder)["val/loss"])
    assert 2 <= killed_after < 6

    resumed = command("train", *words)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing run" in resumed.stdout
    whole = command("train", *words, f"runs_dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    assert metrics(folder) == metrics(only_run(tmp_path / "whole"))

    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("fer_lab").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        assert [point.step for point in client.get_metric_history(run.info.run_id, "val/loss")] == list(
            range(6)
        )


def epochs_so_far(runs: Path, at_least: int) -> list[str]:
    return [
        name
        for spool in runs.glob("*/spool.jsonl")
        for name, values in metrics(spool.parent).items()
        if len(values) >= at_least
    ]


def test_a_loss_that_is_no_number_ends_the_run_as_diverged(command, tmp_path, mlflow_client):
    words = (*TINY, "trainer.max_epochs=3", "optimizer=sgd", "optimizer.lr=1e20", "scheduler=none")
    done = command("train", *words)
    assert done.returncode == 1
    assert "training loss is" in done.stderr and "step" in done.stderr and "SGD" in done.stderr
    assert "Traceback" not in done.stderr
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("fer_lab").experiment_id])
    assert (run.info.status, run.data.tags["fer.state"]) == ("FAILED", "diverged")
    again = command("train", *words)
    assert again.returncode == 2 and "diverged with exactly these settings" in again.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("modl=small", "optimizr.lr=1", "data=jafe"), ("did you mean model", "did you mean optimizer.lr", "did you mean jaffe")),
        (("data.batch_size=many", "optimizer.lr=fast"), ("data.batch_size=many: expected a whole number", "optimizer.lr=fast: expected a number")),
        (("data=jaffe",), ("data.root is not set", "fer_lab.data.draw jaffe")),
        (("model=vgg19", "model.weights=/nowhere.pt"), ("/nowhere.pt", "runs:/ID or null")),
        (("split=kfold", "split.fold=9"), ("expected 0..4",)),
        (("monitor=val/acc", "data.limit=70"), ("monitor=val/acc is not logged; choices: train/loss", "val/accuracy")),
        (("trainer.precision=17",), ("trainer: Precision", "bf16-mixed")),
        (("optimizer.lr=-1",), ("optimizer or scheduler: lr=-1",)),
        (("model.net._target_=os.system",), ("os.system is not part of fer_lab",)),
        (("views=tne", "data.limit=many", "patience=x"), ("views=tne: expected none, flip", "data.limit=many", "patience=x")),
        (("model.weights=5",), ("no weights at 5", "runs:/ID or null")),
        (("model.freeze=all",), ("model.freeze=all is not none, backbone",)),
        (("task.weights=heavy",), ("task.weights: class weights 'heavy'",)),
    ],
)  # fmt: skip
def test_usage_errors_are_sentences_with_the_choices_and_exit_2(command, words, expected):
    drawn = TINY[:3] if "data=jaffe" not in words else ()
    done = command("train", *drawn, *words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in expected:
        assert part in done.stderr


def test_help_lists_groups_and_choices_at_once(command):
    done = command("train", "--help", store=False)
    assert done.returncode == 0
    for line in ("model: basic1, basic2, densenet121", "split: holdout, kfold", "recipe: "):
        assert line in done.stdout


def test_a_run_lends_its_weights_and_is_judged_on_other_data(command, tmp_path):
    from fer_lab.data import draw

    first = command("train", *TINY, "trainer.max_epochs=1")
    assert first.returncode == 0, first.stderr
    folder = only_run(tmp_path / "runs")
    second = command(
        "train", *TINY, "trainer.max_epochs=1", f"model.weights=runs:/{folder.name}", "name=second"
    )
    assert second.returncode == 0, second.stderr
    before, after = (metrics(next((tmp_path / "runs").glob(f"{name}*"))) for name in (folder.name, "second"))
    assert after["train/loss"][0] < before["train/loss"][0]

    draw.write_fer2013_folders(tmp_path / "fer2013", {"train": 28, "validation": 14, "test": 21})
    places = [f"{key}={tmp_path}/{name}" for key, name in (("runs_dir", "runs"), ("cache_dir", "cache"))]
    words = [f"run={folder.name}", "data=fer2013", f"data.root={tmp_path}/fer2013"]
    judged = command("evaluate", *words, *places, store=False)
    assert judged.returncode == 0, judged.stderr
    (place,) = (folder / "evaluations").glob("fer2013-*")
    assert json.loads((place / "test.json").read_text())["count"] == 21


def test_a_tracking_server_that_is_down_changes_nothing_and_sync_makes_up_for_it(
    command, tmp_path, mlflow_client
):
    secret = uuid.uuid4().hex
    dead = f"tracking.uri=http://ann:{secret}@127.0.0.1:9"
    done = command("train", *TINY, "trainer.max_epochs=1", f"runs_dir={tmp_path}/runs", dead)
    assert done.returncode == 0, done.stderr
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not [path for path in kept if secret.encode() in path.read_bytes()]
    assert "fer_lab.sync" in done.stdout + done.stderr
    store = f"sqlite:///{tmp_path}/later.db"
    sent = command("sync", f"runs={tmp_path}/runs", f"uri={store}", store=False)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    client = mlflow_client(store)
    (run,) = client.search_runs([client.get_experiment_by_name("fer_lab").experiment_id])
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/loss")] == [0]


def test_bad_files_are_told_together_and_can_be_skipped(command, tmp_path):
    from fer_lab.data import draw

    root = draw.write_folder(tmp_path / "faces", {"train": 70, "validation": 28, "test": 28})
    good = sorted(
        path for path in root.rglob("*") if path.is_file() and path.suffix in (".png", ".jpg", ".bmp")
    )
    good[0].write_bytes(b"")
    good[1].write_bytes(good[1].read_bytes()[:200])
    words = (
        "data=folder",
        f"data.root={root}",
        "split=official",
        "data.size=32",
        "trainer=smoke",
        "trainer.accelerator=cpu",
    )
    refused = command("train", *words)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    for part in (good[0].name, good[1].name, "data.bad=skip"):
        assert part in refused.stderr
    skipped = command("train", *words, "data.bad=skip")
    assert skipped.returncode == 0, skipped.stderr
    assert (
        sum(
            len(names)
            for names in json.loads((only_run(tmp_path / "runs") / "split.json").read_text()).values()
        )
        == 124
    )


def test_patience_stops_early_and_the_best_epoch_is_what_is_judged(command, tmp_path):
    words = (
        *TINY,
        "trainer.max_epochs=40",
        "patience=2",
        "optimizer.lr=0.01",
        "trainer.gradient_clip_val=1.0",
    )
    done = command("train", *words)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path / "runs")
    facts, found = json.loads((folder / "fit.json").read_text()), metrics(folder)
    accuracies = list(found["val/accuracy"].values())
    assert facts["epochs"] == len(accuracies) < 40
    assert facts["best_epoch"] == accuracies.index(max(accuracies)) == len(accuracies) - 3
    judged = found["final/validation_accuracy"][facts["best_epoch"]]
    assert judged == pytest.approx(facts["best_score"]) == pytest.approx(max(accuracies))

    again = command("train", *words, "rerun=true")
    assert again.returncode == 0, again.stderr
    second = next(path for path in (tmp_path / "runs").iterdir() if path.name == f"{folder.name}-2")
    assert metrics(second) == found, "one seed, one result"


def test_mixed_precision_and_clipping_go_together_with_the_fused_default_optimizer(command, tmp_path):
    words = (
        "trainer.precision=bf16-mixed",
        "trainer.gradient_clip_val=0.1",
        "trainer.max_epochs=1",
        "augment=none",
    )
    few = ("data.source.train=56", "data.source.validation=21", "data.source.test=21")
    done = command("train", *TINY, *few, *words, "model=vgg16", "model.weights=null")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "runs")
    moved = command(
        "evaluate",
        f"run={run.name}",
        "split=kfold",
        f"runs_dir={tmp_path}/runs",
        f"cache_dir={tmp_path}/cache",
        store=False,
    )
    assert moved.returncode == 0, moved.stderr
    assert "faces trained this run" in moved.stdout
