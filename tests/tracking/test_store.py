from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fer_lab.tracking.forward import sync, sync_run, tracked
from fer_lab.tracking.record import SPOOL, RunRecord, open_run, reconcile
from fer_lab.tracking.store import FORWARDED, Refused, Sender, connect, forwarded


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """A database used by all tests of this file: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def client(uri) -> MlflowClient:
    return MlflowClient(uri)


def recorded(runs_dir: Path, name: str, epochs: int, state: str | None = "finished") -> Path:
    with open_run(runs_dir, name, "sig") as record:
        record.start(experiment=name)
        for epoch in range(epochs):
            record.metrics({"loss": 1 / (epoch + 1)}, epoch)
        if state:
            record.close(state, "why")
    return runs_dir / name


def the_run(client: MlflowClient, folder: Path, uri: str):
    return client.get_run(forwarded(folder)[uri]["run_id"])


def history(client: MlflowClient, run_id: str, key: str = "loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def test_everything_a_run_says_arrives(tmp_path, uri, client):
    with open_run(tmp_path, "whole", "sig") as record, tracked(record, uri, "arrives") as forwarder:
        record.params({"long": "x" * 9000, "optimizer": {"lr": 0.1}, **{f"p{n}": n for n in range(150)}})
        record.tags({"mlflow.parentRunId": "f" * 32})
        record.metrics({f"metric {n}": n for n in range(1500)} | {"nan": math.nan, "top@5": 0.5}, 0)
        record.metrics({"nan": 1.0}, 1)
        record.dataset("jaffe", "d" * 64, "train", {"anger": 30, "fear": 32}, source="/data/jaffe")
        (record.folder / "plots").mkdir()
        (record.folder / "plots" / "loss.txt").write_text("curve")
        (record.folder / "config.yaml").write_text("seed: 1")
        record.artifact("plots/loss.txt")
        record.artifact("config.yaml")
        record.artifact("gone.txt")
    run = client.get_run(forwarder.mlflow_run_id)
    assert run.info.run_name == "whole"
    assert run.info.status == "FINISHED"
    assert run.data.tags["fer.state"] == "finished"
    assert run.data.tags["mlflow.parentRunId"] == "f" * 32
    assert run.data.params["long"] == "x" * 6000
    assert run.data.params["optimizer.lr"] == "0.1"
    assert len(run.data.params) == 152
    assert len(run.data.metrics) == 1502
    assert run.data.metrics["top_5"] == 0.5
    assert [math.isnan(m.value) for m in client.get_metric_history(run.info.run_id, "nan")] == [True, False]
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.tags[0].value) == ("jaffe", "d" * 36, "train")
    assert json.loads(given.dataset.profile)["faces"] == {"anger": 30, "fear": 32}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml", "plots"]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/loss.txt"]
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(
        Path(uri[10:]).parent / "mlruns"
    )


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("finished", "FINISHED"),
        ("pruned", "FINISHED"),
        ("failed", "FAILED"),
        ("diverged", "FAILED"),
        ("killed", "KILLED"),
    ],
)
def test_the_status_is_true(tmp_path, uri, client, state, status):
    folder = recorded(tmp_path, state, 1, state)
    assert sync_run(folder, uri).left == 0
    run = the_run(client, folder, uri)
    assert (run.info.status, run.data.tags["fer.state"], run.data.tags["fer.reason"]) == (
        status,
        state,
        "why",
    )


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("broken"), "failed"), (KeyboardInterrupt(), "killed"), (SystemExit(1), "killed")],
)
def test_an_exception_ends_the_run_and_passes_on(tmp_path, uri, client, error, state):
    with (
        pytest.raises(type(error)),
        open_run(tmp_path, "a", "sig") as record,
        tracked(record, uri, "errors") as it,
    ):
        raise error
    assert client.get_run(it.mlflow_run_id).data.tags["fer.state"] == state


def test_what_diverged_does_not_become_finished(tmp_path, uri, client):
    with open_run(tmp_path, "a", "sig") as record, tracked(record, uri, "errors") as forwarder:
        record.close("diverged", "loss is nan at step 7")
    assert client.get_run(forwarder.mlflow_run_id).info.status == "FAILED"


def test_a_bad_entry_does_not_hold_up_the_others(tmp_path, uri, client, caplog):
    with open_run(tmp_path, "a", "sig") as record, tracked(record, uri, "bad") as forwarder:
        record.metrics({"good": 1.0}, 0)
        record.metrics({"": 1.0}, 0)
        record.metrics({"good": 1.0}, 1)
    run = client.get_run(forwarder.mlflow_run_id)
    assert history(client, run.info.run_id, "good") == [0, 1]
    assert run.info.status == "FINISHED"
    assert "MLflow refuses a part of" in caplog.text


def test_points_sent_but_not_noted_are_not_doubled(tmp_path, monkeypatch):
    """On MLflow's file store, which, other than its databases, stores any line twice that it is sent twice."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = (tmp_path / "mlruns").as_uri()
    folder = recorded(tmp_path / "runs", "a", 5)
    sync_run(folder, address)
    noted = json.loads((folder / FORWARDED).read_text())
    run_id = noted[address]["run_id"]
    noted[address]["offset"] = 0
    (folder / FORWARDED).write_text(json.dumps(noted))
    assert sync_run(folder, address).left == 0
    assert history(MlflowClient(address), run_id) == [0, 1, 2, 3, 4]


def test_a_run_made_but_not_noted_is_found_again(tmp_path, uri, client):
    folder = recorded(tmp_path, "unnoted", 2)
    sync_run(folder, uri)
    before = forwarded(folder)[uri]["run_id"]
    (folder / FORWARDED).unlink()
    sync_run(folder, uri)
    assert forwarded(folder)[uri]["run_id"] == before
    assert history(client, before) == [0, 1]


def test_a_run_can_be_sent_to_a_second_store(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = recorded(tmp_path / "runs", "a", 2)
    for address in (uri, (tmp_path / "mlruns").as_uri()):
        assert [report.left for report in sync(tmp_path / "runs", address)] == [0]
        assert history(MlflowClient(address), forwarded(folder)[address]["run_id"]) == [0, 1]


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path, uri, client):
    folder = recorded(tmp_path, "resumed", 3, state=None)
    assert reconcile(tmp_path) == [folder]
    sync_run(folder, uri)
    killed = the_run(client, folder, uri)
    assert (killed.info.status, killed.data.tags["fer.state"]) == ("KILLED", "killed")
    with open_run(tmp_path, "resumed", "sig") as record, tracked(record, uri, "renamed") as forwarder:
        assert record.standing == "interrupted"
        for epoch in range(1, 5):
            record.metrics({"loss": 1.0}, epoch)
    finished = the_run(client, folder, uri)
    assert finished.info.run_id == killed.info.run_id == forwarder.mlflow_run_id
    assert finished.info.status == "FINISHED"
    assert history(client, finished.info.run_id) == [0, 1, 2, 3, 4]


def test_the_next_training_sends_what_its_neighbours_owe(tmp_path, uri, client):
    folder = recorded(tmp_path, "neighbour", 2, state=None)
    with open_run(tmp_path, "neighbour", "sig") as record:
        record.start(uri, "neighbours")
    with open_run(tmp_path, "next", "sig") as record, tracked(record, uri, "neighbours"):
        deadline = time.monotonic() + 30
        while not forwarded(folder) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert the_run(client, folder, uri).info.status == "KILLED"


def _race(uri: str, runs_dir: Path, number: int, barrier) -> None:
    barrier.wait()
    with open_run(runs_dir, f"r{number}", "sig") as record, tracked(record, uri, "race"):
        for epoch in range(3):
            record.metrics({"loss": 1.0}, epoch)


def test_four_processes_at_once_on_a_fresh_database(tmp_path, capfd):
    context = multiprocessing.get_context("forkserver")  # MLflow is imported once, and then four times there
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store"])
    barrier = context.Barrier(4)
    address = f"sqlite:///{tmp_path}/new/mlflow.db"
    jobs = [context.Process(target=_race, args=(address, tmp_path / "runs", n, barrier)) for n in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * 4
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("sending the rest")] == []  # nor a word of alembic's
    client = MlflowClient(address)
    experiments = client.search_experiments(filter_string="name = 'race'")
    runs = client.search_runs([experiments[0].experiment_id])
    assert len(experiments) == 1
    assert sorted(run.info.run_name for run in runs) == ["r0", "r1", "r2", "r3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(history(client, run.info.run_id) == [0, 1, 2] for run in runs)


STUBBORN = """
import sys
import time
from fer_lab.tracking.record import open_run, read_events
from fer_lab.tracking.forward import tracked
with open_run(sys.argv[1], "stubborn", "sig") as record, tracked(record, sys.argv[2], "stubborn"):
    steps = [event["step"] for event, _ in read_events(record.folder) if event["event"] == "metrics"]
    print("trains", flush=True)
    for epoch in range(max([3, *steps]) - 3, 400):
        record.metrics({"loss": epoch, "accuracy": 0.5}, epoch)
        time.sleep(0.01)
"""


@pytest.mark.long
def test_killed_again_and_again_every_point_arrives_once(tmp_path, uri, client):
    chance = random.Random(7)
    command = [sys.executable, "-c", STUBBORN, str(tmp_path), uri]
    for _ in range(12):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, 4))
            process.kill()
    assert subprocess.run(command, capture_output=True).returncode == 0
    run = the_run(client, tmp_path / "stubborn", uri)
    runs = client.search_runs([run.info.experiment_id])
    assert [len(runs), run.info.status] == [1, "FINISHED"]
    for key in ("loss", "accuracy"):
        assert history(client, run.info.run_id, key) == list(range(400))


def test_a_deleted_experiment_is_named_with_both_ways_out_and_the_run_goes_on(tmp_path, uri, client, caplog):
    client.delete_experiment(client.create_experiment("deleted"))
    with open_run(tmp_path, "a", "sig") as record, tracked(record, uri, "deleted"):
        record.metrics({"loss": 1.0}, 0)
    assert "mlflow experiments restore --experiment-id" in caplog.text
    assert "tracking.experiment=NAME" in caplog.text
    assert RunRecord(tmp_path / "a").state == "finished"
    assert "events of run a are kept" in caplog.text


def test_a_deleted_run_is_not_sent_to_a_new_one(tmp_path, uri, client):
    folder = recorded(tmp_path, "deleted_run", 1, state=None)
    sync_run(folder, uri)
    run_id = forwarded(folder)[uri]["run_id"]
    client.delete_run(run_id)
    with open_run(tmp_path, "deleted_run", "sig") as record:
        record.metrics({"loss": 1.0}, 7)
    with pytest.raises(Refused, match=f"mlflow runs restore --run-id {run_id}"):
        Sender(folder, uri, "deleted_run").send()
    client.restore_run(run_id)
    assert sync_run(folder, uri).left == 0
    assert history(client, run_id) == [0, 7]


def test_a_store_that_lost_its_database_gets_the_whole_run_again(tmp_path, uri, client):
    folder = recorded(tmp_path, "lost", 3)
    (folder / FORWARDED).write_text(
        json.dumps({uri: {"run_id": "f" * 32, "offset": (folder / SPOOL).stat().st_size}})
    )
    assert sync(tmp_path, uri) == []  # nothing new: the store is not even asked
    with open_run(tmp_path, "lost", "sig") as record:
        record.metrics({"loss": 1.0}, 3)
    assert [report.left for report in sync(tmp_path, uri)] == [0]
    assert history(client, forwarded(folder)[uri]["run_id"]) == [0, 1, 2, 3]


def test_a_file_that_its_store_does_not_take_holds_nothing_up_and_is_sent_later(
    tmp_path, uri, client, caplog
):
    client.create_experiment("late", artifact_location=(tmp_path / "blocked" / "files").as_uri())
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with open_run(tmp_path / "runs", "a", "sig") as record, tracked(record, uri, "late") as forwarder:
        (record.folder / "config.yaml").write_text("seed: 1")
        record.artifact("config.yaml")
        record.metrics({"loss": 1.0}, 0)
    assert history(client, forwarder.mlflow_run_id) == [0]
    assert "config.yaml of run a is sent later" in caplog.text
    assert "1 events of run a are kept" in caplog.text
    (tmp_path / "blocked").unlink()
    assert [report.left for report in sync(tmp_path / "runs", uri)] == [0]
    assert [file.path for file in client.list_artifacts(forwarder.mlflow_run_id)] == ["config.yaml"]
    assert sync(tmp_path / "runs", uri) == []


def test_importing_the_record_and_the_forwarder_imports_no_mlflow():
    code = (
        "import sys, fer_lab.tracking.forward, fer_lab.tracking.find, fer_lab.tracking.environment\n"
        "print([name for name in ('mlflow', 'torch', 'pytorch_lightning', 'hydra') if name in sys.modules])\n"
        "import mlflow.telemetry.utils as telemetry\n"
        "print(telemetry.is_telemetry_disabled())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["[]", "True"]


def test_a_process_killed_while_it_makes_the_database_leaves_nothing_in_the_way(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    line = [sys.executable, "-c", f"from fer_lab.tracking.store import connect; connect({uri!r}, 'first')"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (part := tmp_path / "mlflow.db.part").exists() or part.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()  # some tables are there, others are not
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert connect(uri, "second").experiment_id
