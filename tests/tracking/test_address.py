from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from fer_lab.tracking.address import redacted, tracking_uri
from fer_lab.tracking.record import TrackingError


def test_the_default_is_a_database_in_the_project_unless_the_environment_says_otherwise(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000/")
    assert tracking_uri(None, tmp_path) == "http://lab:5000"
    assert tracking_uri("https://other", tmp_path) == "https://other"


def test_a_relative_database_is_relative_to_where_the_command_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///my.db") == f"sqlite:///{tmp_path}/my.db"


@pytest.mark.parametrize(
    "uri", ["postgresql+psycopg2://u:p@h/db", "mysql://h/db", "databricks", "databricks://profile"]
)
def test_other_stores_pass_as_they_are(uri):
    assert tracking_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", "is no tracking store; give sqlite:////absolute"),
        ("file:///tmp/mlruns", "is no tracking store"),
        ("htp://lab:5000", "is no tracking store"),
        ("http://", "has no host"),
        ("http://lab:port", "wrong port"),
        ("http://lab:99999", "wrong port"),
        ("sqlite://mlflow.db", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////tmp", "names no file"),
        (f"sqlite:///{__file__}/mlflow.db", "cannot be written"),
    ],
)
def test_what_cannot_be_a_store_is_refused_before_training(uri, message, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(TrackingError, match=message):
        tracking_uri(uri)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("these are my notes, do not migrate them")
    with pytest.raises(TrackingError, match="is not an SQLite database"):
        tracking_uri(f"sqlite:///{tmp_path}/notes.txt")


def test_looking_at_the_address_leaves_the_locks_of_a_writer_alone(tmp_path):
    """A process that opened and closed the file by itself would lose them, and another would write beside it."""
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE runs (name)")
        for begin in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
            writer.execute(begin)
            tracking_uri(f"sqlite:///{path}")
            other = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
            done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
            assert "database is locked" in done.stderr
            writer.execute("ROLLBACK")


def test_a_password_is_never_shown():
    assert redacted("postgresql://ann:secret@lab/db") == "postgresql://ann:***@lab/db"
    assert redacted("http://ann:s:e@lab:5000") == "http://ann:***@lab:5000"
    assert redacted("sqlite:////a/b.db") == "sqlite:////a/b.db"
    with pytest.raises(TrackingError) as caught:
        tracking_uri("ftp://ann:secret@lab")
    assert "secret" not in str(caught.value)
