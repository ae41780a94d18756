"""A sweep of real training runs: what it leaves in MLflow, what its winner is good for, and what an outage changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SMALL = (
    "data.source.train=112",
    "data.source.validation=42",
    "data.source.test=42",
    "data.size=32",
    "data.batch_size=28",
    "trainer.max_epochs=2",
    "hydra.sweeper.n_trials=3",
    "hydra.sweeper.pruner=none",
    "hydra.sweeper.confirm={top: 1, seeds: 2}",
    "hydra.sweeper.name=small",
    "hydra.sweeper.workers=1",  # several: the toys of tests/search, and the README's first sweep
)


@pytest.fixture
def client(tmp_path: Path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return lambda: MlflowClient(uri, registry_uri=uri)


def runs(client):
    experiment = client.get_experiment_by_name("fer_lab").experiment_id
    return {run.info.run_name: run for run in client.search_runs([experiment], max_results=100)}


def test_a_sweep_leaves_a_parent_with_its_trials_and_a_champion(command, tmp_path, client, monkeypatch):
    done = command("sweep", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    found = runs(client())
    parent = found["small"]
    children = {name: run for name, run in found.items() if name != "small"}
    assert set(children) == {
        "small 0000",
        "small 0001",
        "small 0002",
        "small confirm 0000",
        "small confirm 0001",
    }
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert parent.data.tags["mlflow.note.content"].startswith("# Sweep small")
    assert {"best", "score", "confirmed", "test/accuracy"} <= set(parent.data.metrics)
    kept = {item.path for item in client().list_artifacts(parent.info.run_id)}
    assert {"report.md", "figures", "recipe"} <= kept
    tested = [name for name, run in children.items() if any("test" in metric for metric in run.data.metrics)]
    assert len(tested) == 1, "one run was judged on the test faces: the winner's"
    for name, run in children.items():
        assert "hydra.mode=RUN" in run.data.tags["command"], name

    import mlflow.pytorch
    import numpy as np
    import torch

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    net = mlflow.pytorch.load_model("models:/small@champion")
    found = net(torch.from_numpy(np.zeros((3, 1, 32, 32), dtype=np.uint8)))
    assert found.shape == (3, 7) and torch.allclose(found.sum(1), torch.ones(3))

    folder = tmp_path / "runs/small"
    places = (f"runs_dir={tmp_path}/runs", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    winner = command("train", "--config-dir", str(folder), "recipe=best", *places, store=False)
    assert winner.returncode == 0, winner.stderr
    repeated = command("sweep", "rerun", "0", "small", "--check", f"runs_dir={tmp_path}/runs", store=False)
    assert repeated.returncode == 0 and "the same to the last digit" in repeated.stdout, repeated.stdout


def test_an_outage_of_the_tracker_changes_nothing_but_the_time_of_its_knowledge(command, tmp_path, client):
    nobody = "tracking.uri=http://127.0.0.1:9"
    done = command("sweep", *SMALL, nobody)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/small/trials.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines if line["study"] == "small"] == ["COMPLETE"] * 3
    sent = command("sync", f"runs={tmp_path}/runs", f"uri=sqlite:///{tmp_path}/mlflow.db", store=False)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    found = runs(client())
    parent = found.pop("small")
    assert len(found) == 5
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
