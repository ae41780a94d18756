"""Usage of `fer_lab.sync`; tests/tracking/test_outage.py sends with it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def sync(*arguments: str, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fer_lab.sync", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def test_help_says_what_is_sent():
    done = sync("--help")
    assert done.returncode == 0
    assert "runs=FOLDER" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=nowhere"], "holds no runs"),
        (["run=a"], "'run=a' is not understood"),
        (["a"], "'a' is not understood"),
    ],
)
def test_usage_errors(arguments, message):
    done = sync(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
