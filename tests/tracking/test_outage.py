"""A real server, opened by `python -m fer_lab.ui`, that comes late, dies in mid-run and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fer_lab.tracking.find import find_run
from fer_lab.tracking.forward import tracked
from fer_lab.tracking.record import RunRecord, open_run, read_events
from fer_lab.tracking.store import connect, forwarded

VICTIM = """
import sys, time
from fer_lab.tracking.record import open_run
from fer_lab.tracking.forward import tracked
with open_run(sys.argv[1], "victim", "sig") as record, tracked(record, sys.argv[2], "kill") as forwarder:
    for epoch in range(3):
        record.metrics({"loss": 1.0}, epoch)
    while forwarder.sender.pending() or not forwarder.mlflow_run_id:
        time.sleep(0.05)
    print("sent", flush=True)
    time.sleep(600)
"""


class Server:
    """`fer_lab.ui` on one database and one port, started and killed at will."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = f"sqlite:///{folder}/mlflow.db"
        self.process: subprocess.Popen[bytes] | None = None
        connect(self.store, "made beforehand")

    def start(self) -> None:
        command = [sys.executable, "-m", "fer_lab.ui", "--uri", self.store, "--port", str(self.port)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None, "the server ended by itself"
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


def sync(runs_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fer_lab.sync", f"runs={runs_dir}", *more]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"MLFLOW_TRACKING_URI": ""}
    )


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def history(url: str, run_id: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient(url).get_metric_history(run_id, "loss")]


def test_a_server_that_never_came_up_costs_nothing_and_sync_makes_up_for_it(server, tmp_path, caplog):
    assert not server.answers()
    with (
        open_run(tmp_path, "early", "sig") as record,
        tracked(record, server.url, "late server") as forwarder,
    ):
        for epoch in range(3):
            record.metrics({"loss": epoch / 2}, epoch)
        (record.folder / "config.yaml").write_text("seed: 1")
        record.artifact("config.yaml")
        wait_for(lambda: forwarder.reachable is False)
    assert caplog.text.count("does not take the record ([Errno 111] Connection refused)") == 1
    assert "7 events of run early are kept in" in caplog.text
    failed = sync(tmp_path)
    assert failed.returncode == 1
    assert "early: 0 events sent, 7 kept: " in failed.stdout
    server.start()
    done = sync(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "early: 7 events sent\n" in done.stdout
    assert sync(tmp_path).stdout == "nothing was owed\n"
    run = MlflowClient(server.url).get_run(forwarded(tmp_path / "early")[server.url]["run_id"])
    assert run.info.status == "FINISHED"
    assert history(server.url, run.info.run_id) == [(0, 0.0), (1, 0.5), (2, 1.0)]
    times = [event["time"] for event, _ in read_events(tmp_path / "early")]
    assert (run.info.start_time, run.info.end_time) == (times[0], times[-1])  # not those of sending


def test_a_run_that_only_the_server_has_is_downloaded(server, tmp_path):
    if not server.answers():
        server.start()
    with open_run(tmp_path / "there", "a", "sig") as record, tracked(record, server.url, "far") as forwarder:
        (record.folder / "figures").mkdir()
        (record.folder / "figures" / "curve.txt").write_text("falls")
        (record.folder / "config.yaml").write_text("seed: 1")
        record.artifact("config.yaml")
        record.artifact("figures/curve.txt")
    here = find_run(f"runs:/{forwarder.mlflow_run_id}", tmp_path / "here", server.url)
    assert here == tmp_path / "here" / f"a-{forwarder.mlflow_run_id[:8]}"
    assert (here / "config.yaml").read_text() == "seed: 1"
    assert (here / "figures" / "curve.txt").read_text() == "falls"
    for spec in ("a", forwarder.mlflow_run_id):  # not downloaded again
        assert find_run(spec, tmp_path / "here", server.url) == here


def test_a_server_that_dies_in_mid_run_and_comes_back_has_every_point_once(server, tmp_path, caplog):
    if not server.answers():
        server.start()
    with open_run(tmp_path, "through", "sig") as record, tracked(record, server.url, "outage") as forwarder:
        for epoch in range(5):
            record.metrics({"loss": epoch, "other": 0.0}, epoch)
        wait_for(lambda: forwarder.mlflow_run_id and not forwarder.sender.pending())
        server.kill()
        for epoch in range(5, 10):
            record.metrics({"loss": epoch, "other": 0.0}, epoch)
        wait_for(lambda: forwarder.reachable is False)
        assert RunRecord(tmp_path / "through").state == "running"
        server.start()
        for epoch in range(10, 15):
            record.metrics({"loss": epoch, "other": 0.0}, epoch)
    run = MlflowClient(server.url).get_run(forwarder.mlflow_run_id)
    assert history(server.url, run.info.run_id) == [(epoch, float(epoch)) for epoch in range(15)]
    assert (run.info.status, run.data.tags["fer.state"]) == ("FINISHED", "finished")
    assert caplog.text.count("does not take the record") == 1


def test_kill_9_in_mid_run_is_killed_in_mlflow_too(server, tmp_path):
    if not server.answers():
        server.start()
    command = [sys.executable, "-c", VICTIM, str(tmp_path), server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "sent\n"
        run_id = forwarded(tmp_path / "victim")[server.url]["run_id"]
        assert MlflowClient(server.url).get_run(run_id).info.status == "RUNNING"
        assert sync(tmp_path).stdout == "nothing was owed\n"  # a living run is left alone
        victim.kill()
    assert sync(tmp_path).stdout.startswith("victim: 1 events sent\n")
    run = MlflowClient(server.url).get_run(run_id)
    assert (run.info.status, run.data.tags["fer.state"]) == ("KILLED", "killed")
    assert history(server.url, run_id) == [(0, 1.0), (1, 1.0), (2, 1.0)]
