from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fer_lab.tracking.record import (
    SPOOL,
    RunBusy,
    RunRecord,
    TrackingError,
    flatten,
    open_run,
    read_events,
    reconcile,
)

HOLDER = """
import sys, time
from fer_lab.tracking.record import open_run
record = open_run(sys.argv[1], "held", "sig")
record.start()
record.metrics({"loss": 1.0}, 0)
print("ready", flush=True)
time.sleep(600)
"""


def events(folder: Path, kind: str) -> list[dict]:
    return [event for event, _ in read_events(folder) if event["event"] == kind]


def steps(folder: Path, key: str) -> list[int]:
    return [event["step"] for event in events(folder, "metrics") if key in event["values"]]


@pytest.fixture
def holder(tmp_path):
    """A process that trains run `held` and can be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def test_numbers_that_json_has_no_word_for_survive_in_valid_json(tmp_path):
    with open_run(tmp_path, "a", "sig") as record:
        record.metrics({"nan": math.nan, "inf": -math.inf, "third": 1 / 3}, 0)
    for line in (tmp_path / "a" / SPOOL).read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    values = events(tmp_path / "a", "metrics")[0]["values"]
    assert math.isnan(float(values["nan"]))
    assert float(values["inf"]) == -math.inf
    assert values["third"] == 1 / 3


def test_a_torn_last_line_is_dropped_and_its_step_can_be_logged_again(tmp_path):
    with open_run(tmp_path, "a", "sig") as record:
        record.start()
        record.metrics({"loss": 0.5}, 0)
        record.metrics({"loss": 0.4}, 1)
    spool = tmp_path / "a" / SPOOL
    spool.write_bytes(spool.read_bytes()[:-7])
    assert steps(tmp_path / "a", "loss") == [0]
    with open_run(tmp_path, "a", "sig") as record:
        record.metrics({"loss": 0.4}, 1)
    assert steps(tmp_path / "a", "loss") == [0, 1]
    assert not events(tmp_path / "a", "unreadable")


def test_a_ruined_line_in_the_middle_is_skipped(tmp_path):
    with open_run(tmp_path, "a", "sig") as record:
        record.metrics({"loss": 0.5}, 0)
        with (tmp_path / "a" / SPOOL).open("ab") as file:
            file.write(b'\x00{"event": "metr\n')
        record.metrics({"loss": 0.4}, 1)
    assert steps(tmp_path / "a", "loss") == [0, 1]
    assert events(tmp_path / "a", "unreadable")
    assert list(read_events(tmp_path / "a"))[-1][1] == (tmp_path / "a" / SPOOL).stat().st_size


def test_a_replayed_epoch_is_not_stored_twice(tmp_path):
    for epochs in (range(4), range(2, 6)):
        with open_run(tmp_path, "a", "sig") as record:
            for epoch in epochs:
                record.metrics({"train/loss": 1.0}, epoch)
    with open_run(tmp_path, "a", "sig") as record:
        record.metrics({"train/loss": 9.0, "test/loss": 1.0}, 5)
    assert steps(tmp_path / "a", "train/loss") == [0, 1, 2, 3, 4, 5]
    assert steps(tmp_path / "a", "test/loss") == [5]


def test_a_setting_keeps_its_first_value_and_a_later_one_becomes_a_tag(tmp_path):
    with open_run(tmp_path, "a", "sig") as record:
        record.params({"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "empty": {}})
    with open_run(tmp_path, "a", "sig") as record:
        record.params({"optimizer": {"lr": 0.2, "betas": [0.9, 0.99]}, "seed": 1})
    first, second = (event["values"] for event in events(tmp_path / "a", "params"))
    assert first == {"optimizer.lr": "0.1", "optimizer.betas": "[0.9, 0.99]", "empty": "{}"}
    assert second == {"seed": "1"}
    assert events(tmp_path / "a", "tags")[0]["values"] == {"fer.changed.optimizer.lr": "0.2"}


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": {"c": None}}, "d": (1, 2), "e": "xy"}) == {
        "a.b.c": "None",
        "d": "[1, 2]",
        "e": "xy",
    }


@pytest.mark.parametrize(
    ("state", "standing"),
    [
        (None, "new"),
        ("running", "interrupted"),
        ("killed", "interrupted"),
        ("failed", "interrupted"),
        ("finished", "finished"),
        ("diverged", "finished"),
        ("pruned", "finished"),
    ],
)
def test_how_a_run_is_found_again(tmp_path, state, standing):
    with open_run(tmp_path, "a", "sig") as record:
        if state:
            record.start()
        if state not in (None, "running"):
            record.close(state, "because")
            record.close("finished")  # the first end counts
    again = RunRecord(tmp_path / "a")
    assert (again.standing, again.last_state) == (standing, state)


def test_a_living_run_is_refused_by_the_name_of_its_process(tmp_path, holder):
    with pytest.raises(RunBusy, match=rf"run held is being trained by pid {holder.pid} on host "):
        open_run(tmp_path, "held", "sig")
    assert reconcile(tmp_path) == []


def test_kill_9_frees_the_run_and_reconcile_calls_it_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert RunRecord(tmp_path / "held").state == "running"
    assert reconcile(tmp_path) == [tmp_path / "held"]
    assert reconcile(tmp_path) == []
    record = open_run(tmp_path, "held", "sig")
    assert (record.last_state, record.standing) == ("killed", "interrupted")
    assert str(holder.pid) in events(tmp_path / "held", "state")[-1]["reason"]


def test_other_settings_in_the_same_folder_are_refused_and_leave_it_free(tmp_path):
    with open_run(tmp_path, "a", "one") as record:
        record.start()
    with pytest.raises(TrackingError, match=r"signature one, now two\); give this run another name"):
        open_run(tmp_path, "a", "two")
    open_run(tmp_path, "a", None).release()


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a\n", "x" * 300])
def test_names_that_are_no_folder_are_refused(tmp_path, name):
    with pytest.raises(TrackingError, match="cannot name a run"):
        open_run(tmp_path, name, "sig")


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(TrackingError, match="cannot be written"):
        open_run(tmp_path / "runs", "a", "sig")


def test_a_full_disk_leaves_a_gap_but_no_ruin_and_no_error(tmp_path, caplog):
    with open_run(tmp_path, "a", "sig") as record:
        record.start()
        record.metrics({"loss": 1.0}, 0)
        size = (tmp_path / "a" / SPOOL).stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        try:
            record.metrics({"loss": 1.0}, 1)
            record.metrics({"loss": 1.0}, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        record.metrics({"loss": 1.0}, 3)
    assert steps(tmp_path / "a", "loss") == [0, 3]
    assert not events(tmp_path / "a", "unreadable")
    assert caplog.text.count("cannot be written") == 1


def test_a_metric_that_is_no_number_is_left_out_with_a_word(tmp_path, caplog):
    with open_run(tmp_path, "a", "sig") as record:
        record.metrics({"loss": 1.0, "name": "small"}, 0)
    assert events(tmp_path / "a", "metrics")[0]["values"] == {"loss": 1.0}
    assert "name='small'" in caplog.text


def test_only_the_holder_of_the_folder_writes(tmp_path):
    with open_run(tmp_path, "a", "sig") as record:
        record.start()
    for reader in (record, RunRecord(tmp_path / "a")):
        with pytest.raises(RuntimeError, match="open_run"):
            reader.metrics({"loss": 1.0}, 0)


def test_an_artifact_keeps_its_place_unless_told_otherwise(tmp_path, monkeypatch):
    with open_run(tmp_path, "a", "sig") as record:
        record.artifact(record.folder / "checkpoints" / "best.ckpt")
        monkeypatch.chdir(tmp_path)
        record.artifact(Path("a") / "config.yaml")
        with pytest.raises(ValueError, match="outside the run's folder"):
            record.artifact(tmp_path / "else.txt")
        record.artifact("confusion.png", "figures")
    places = [(event["path"], event["folder"]) for event in events(tmp_path / "a", "artifact")]
    assert places == [
        ("checkpoints/best.ckpt", "checkpoints"),
        ("config.yaml", ""),
        ("confusion.png", "figures"),
    ]
