"""What `fer_lab.ui` says instead of starting; tests/tracking/test_outage.py starts it."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys

import pytest

from fer_lab.ui import _warning


def ui(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fer_lab.ui", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


@pytest.fixture
def store(tmp_path) -> str:
    sqlite3.connect(tmp_path / "mlflow.db").execute("create table a (b)")
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_missing_store_a_server_and_nonsense(tmp_path):
    nothing = ui("--uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "no runs yet" in nothing.stderr
    assert "make train" in nothing.stderr
    assert "is a server already" in ui(MLFLOW_TRACKING_URI="http://lab:5000").stderr
    assert "is no tracking store" in ui("--uri", "mlruns").stderr


def test_a_taken_port_names_the_next_one(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = ui("--uri", store, "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is not free" in done.stderr
    assert f"--port {port + 1}" in done.stderr


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--host", "no.such.host.invalid"]])
def test_addresses_that_cannot_be_listened_on(store, arguments):
    done = ui("--uri", store, *arguments)
    assert done.returncode == 2
    assert "is not free" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_host_says_what_it_means():
    assert f"--allowed-hosts {socket.gethostname()}:5000" in _warning("0.0.0.0", 5000, None)
    assert "there is no password" in _warning("0.0.0.0", 5000, "lab")
    assert "--allowed-hosts" not in _warning("0.0.0.0", 5000, "lab")
