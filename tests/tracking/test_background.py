"""Short runs that end before the store has them: one thread sends them all, and nothing is lost when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from fer_lab.tracking import store
from fer_lab.tracking.forward import settle, sync, sync_run, tracked
from fer_lab.tracking.record import open_run
from fer_lab.tracking.store import FORWARD_LOCK, Sender, connect, forwarded, mlflow_run_id

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def uri(tmp_path) -> str:
    address = f"sqlite:///{tmp_path}/mlflow.db"
    connect(address, "trials")
    return address


def short_run(runs: Path, name: str, uri: str, **tags: str) -> None:
    with open_run(runs, name, "sig") as record:
        record.tags(tags)
        with tracked(record, uri, "trials", linger=True):
            record.metrics({"loss": 1.0}, 0)
            (record.folder / "config.yaml").write_text("seed: 1")
            record.artifact("config.yaml")
            record.metrics({"loss": 0.5}, 1)


def test_runs_that_linger_are_all_there_once_settled(tmp_path, uri):
    for number in range(5):
        short_run(tmp_path / "runs", f"run{number}", uri, **{"mlflow.runName": f"trial {number}"})
    settle()
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("trials").experiment_id])
    assert {run.info.run_name for run in found} == {f"trial {number}" for number in range(5)}
    for run in found:
        assert (run.info.status, run.data.tags["fer.state"]) == ("FINISHED", "finished")
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
            (0, 1.0),
            (1, 0.5),
        ]
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
    assert sync(tmp_path / "runs") == []


def test_a_silent_store_is_named_once_and_what_it_missed_can_be_sent_later(tmp_path, uri, caplog):
    for number in range(3):
        short_run(tmp_path / "runs", f"run{number}", DEAD)
    settle()
    assert caplog.text.count("does not take the record") == 1
    assert f"the records of 3 runs are kept in {tmp_path}/runs; send them with" in caplog.text
    assert [report.left for report in sync(tmp_path / "runs", uri)] == [0, 0, 0]


def test_the_parents_run_is_made_before_the_parent_itself_is_sent_and_only_once(tmp_path, uri):
    with open_run(tmp_path / "runs", "sweep", "sig") as parent:
        parent.start()
    short_run(tmp_path / "runs", "one", uri, **{"fer.parent": "sweep"})
    settle()
    made = mlflow_run_id(tmp_path / "runs/sweep", uri)
    with FileLock(tmp_path / "runs/sweep" / FORWARD_LOCK):  # as by the controller, for hours
        short_run(tmp_path / "runs", "two", uri, **{"fer.parent": "sweep"})
        settle()
    assert sync_run(tmp_path / "runs/sweep", uri).left == 0
    client = MlflowClient(uri)
    for name in ("one", "two"):
        run = client.get_run(mlflow_run_id(tmp_path / "runs" / name, uri))
        assert run.data.tags["mlflow.parentRunId"] == made
    assert len(client.search_runs([client.get_experiment_by_name("trials").experiment_id])) == 3


def test_a_child_waits_for_a_parent_that_another_process_is_about_to_make(tmp_path, uri, monkeypatch, caplog):
    monkeypatch.setattr(store, "PARENT_SECONDS", 0.1)
    with open_run(tmp_path / "runs", "sweep", "sig") as parent:
        parent.start()
    with FileLock(tmp_path / "runs/sweep" / FORWARD_LOCK):
        short_run(tmp_path / "runs", "one", uri, **{"fer.parent": "sweep"})
        settle()
    assert "the records of 1 runs are kept" in caplog.text
    assert [report.left for report in sync(tmp_path / "runs", uri)] == [0, 0]
    run = MlflowClient(uri).get_run(mlflow_run_id(tmp_path / "runs/one", uri))
    assert run.data.tags["mlflow.parentRunId"] == mlflow_run_id(tmp_path / "runs/sweep", uri)


@pytest.mark.parametrize("call", range(6))
def test_a_sending_cut_off_after_any_call_is_made_up_for_without_doubles(tmp_path, uri, monkeypatch, call):
    with open_run(tmp_path / "runs", "run", "sig") as record:
        record.start()
        record.params({"lr": 0.1})
        record.dataset("faces", "d" * 64, "train", {"anger": 3})
        for epoch in range(3):
            record.metrics({"loss": float(epoch)}, epoch)
            (record.folder / f"{epoch}.txt").write_text(str(epoch))
            record.artifact(f"{epoch}.txt")
        record.close("pruned", "after 3 of 9 epochs")
    sender, sent = Sender(tmp_path / "runs/run", uri, "trials"), 0
    send_group = sender._send_group

    def cut_off(events: list) -> None:
        nonlocal sent
        if sent == call:
            raise OSError("the cable")
        sent += 1
        send_group(events)

    monkeypatch.setattr(sender, "_send_group", cut_off)
    with pytest.raises(OSError, match="the cable"):
        sender.send()
    assert sync_run(tmp_path / "runs/run", uri).left == 0
    client = MlflowClient(uri)
    run = client.get_run(forwarded(tmp_path / "runs/run")[uri]["run_id"])
    assert (run.info.status, run.data.tags["fer.reason"]) == ("FINISHED", "after 3 of 9 epochs")
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
    ]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"0.txt", "1.txt", "2.txt"}
    assert len(run.inputs.dataset_inputs) == 1
