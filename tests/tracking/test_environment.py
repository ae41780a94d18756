from __future__ import annotations

import subprocess
import sys

import torch

from fer_lab.tracking.environment import CodeState, log_environment
from fer_lab.tracking.record import open_run, read_events


def git(folder, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def repository(folder) -> str:
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("a = 1\n")
    (folder / "face.bin").write_bytes(bytes(range(256)))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return git(folder, "rev-parse", "HEAD")


def test_a_clean_checkout_has_a_commit_and_no_patch(tmp_path):
    commit = repository(tmp_path / "code")
    state = CodeState(tmp_path / "code")
    assert state.patch == b""
    assert state.tags == {"git.commit": commit, "git.dirty": "false", "mlflow.source.git.commit": commit}


def test_the_patch_brings_a_clean_checkout_to_the_code_that_ran(tmp_path):
    commit = repository(tmp_path / "code")
    (tmp_path / "code" / "code.py").write_text("a = 2\n")
    (tmp_path / "code" / "face.bin").write_bytes(b"\x00\xff")
    (tmp_path / "code" / "staged.py").write_text("new\n")
    git(tmp_path / "code", "add", "staged.py")
    (tmp_path / "code" / "ungeführt.py").write_text("x\n")
    state = CodeState(tmp_path / "code")
    assert state.tags["git.dirty"] == "true"
    assert state.patch.startswith("# untracked: ungeführt.py\n".encode())
    git(tmp_path, "clone", "-q", "code", "again")
    (tmp_path / "code.patch").write_bytes(state.patch)
    git(tmp_path / "again", "apply", str(tmp_path / "code.patch"))
    assert git(tmp_path / "again", "rev-parse", "HEAD") == commit
    assert (tmp_path / "again" / "code.py").read_text() == "a = 2\n"
    assert (tmp_path / "again" / "face.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "again" / "staged.py").read_text() == "new\n"


def test_outside_a_checkout_before_a_commit_and_where_ignored(tmp_path):
    assert CodeState(tmp_path).tags == {}
    (tmp_path / "fresh").mkdir()
    git(tmp_path / "fresh", "init", "-q")
    (tmp_path / "fresh" / "a.py").write_text("x")
    assert CodeState(tmp_path / "fresh").tags == {"git.commit": "none yet", "git.dirty": "true"}
    repository(tmp_path / "project")
    (tmp_path / "project" / ".gitignore").write_text("venv/\n")
    (tmp_path / "project" / "venv").mkdir()
    assert CodeState(tmp_path / "project" / "venv").tags == {}


def test_the_run_says_what_made_it(tmp_path):
    repository(tmp_path / "code")
    (tmp_path / "code" / "code.py").write_text("a = 2\n")
    with open_run(tmp_path / "runs", "a", "sig") as record:
        log_environment(record, tmp_path / "code")
    events = [event for event, _ in read_events(tmp_path / "runs" / "a")]
    tags = {
        key: value for event in events if event["event"] == "tags" for key, value in event["values"].items()
    }
    assert (
        tags["version.torch"] == torch.__version__.split("+")[0] or tags["version.torch"] == torch.__version__
    )
    assert tags["version.python"] == ".".join(map(str, sys.version_info[:3]))
    assert int(tags["machine.cores"]) >= 1
    assert tags["machine.memory"].endswith(" GiB")
    assert tags["command"].startswith("python")
    assert [event["path"] for event in events if event["event"] == "artifact"] == ["code.patch"]
    assert b"+a = 2" in (tmp_path / "runs" / "a" / "code.patch").read_bytes()
