"""The command line that the entry points share: names as typed, null, and readers who leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest

from fer_lab import cli
from fer_lab.cli import CONF, UsageError, refuse_wrong_kinds, take_as_typed

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("word", "key", "expected"),
    [
        ("run=12e45678", "run", "12e45678"),
        ("source=2024_01", "source", "2024_01"),
        ("out= 1e5 ", "out", "1e5"),
        ("out=.5", "out", ".5"),
        ("subject=007", "subject", "007"),
        ("record=true", "record", "true"),
        ("source='1e5'", "source", "1e5"),
        ("source='a, b=c.jpg'", "source", "a, b=c.jpg"),
        ("runs_dir=2024_01", "runs_dir", "2024_01"),
        ("out=null", "out", None),
        ("every=1_0", "every", 10),
    ],
)
def test_names_that_look_like_numbers_are_taken_as_typed(monkeypatch, word, key, expected):
    monkeypatch.setattr(cli, "typed", lambda: [word])
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("predict", overrides=[word])
    take_as_typed(cfg)
    assert cfg[key] == expected and type(cfg[key]) is type(expected)


def test_null_is_for_what_may_be_null(monkeypatch):
    def refused(config_name: str, *words: str) -> list[str]:
        monkeypatch.setattr(cli, "typed", lambda: list(words))
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(config_name, overrides=list(words))
            try:
                refuse_wrong_kinds(cfg, config_name)
            except UsageError as error:
                return str(error).splitlines()
        return []

    keys = ("every", "search", "port", "page", "annotate", "align", "headless")
    found = refused("predict", *(f"{key}=null" for key in keys), "smooth=null", "track=null", "out=null")
    assert [fault.partition("=")[0] for fault in found] == list(keys)
    assert found[-1] == "headless=null: expected true or false, such as False"
    words = ("recipe=fer2013_small", "patience=null", "ema=null", "threads=null", "~augment.rotation")
    assert refused("train", *words, "seed=null") == ["seed=null: expected a whole number, such as 0"]
    assert refused("train", "model=basic2", "model.net.hidden=null") == []


PRINTING = """
import sys
from fer_lab.cli import main
def task(cfg):
    for _ in range(cfg.every):
        print("a line of results")
    if cfg.align is False:
        raise BrokenPipeError("of another pipe")
main(task, "predict")
"""


@pytest.mark.parametrize(
    ("word", "unbuffered", "left", "code", "said"),
    [
        ("every=10000", "", True, 141, ""),
        ("every=2", "1", True, 141, ""),
        ("every=1", "", True, 0, ""),  # printed at its end
        ("align=false", "", False, 1, "BrokenPipeError: of another pipe"),
    ],
)
def test_a_reader_who_has_read_enough_ends_a_command_quietly(word, unbuffered, left, code, said):
    line = [sys.executable, "-c", PRINTING, word]
    settings = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=ROOT, env=settings, text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        if left:
            process.stdout.close()
        assert (process.stderr.read().strip().rpartition("\n")[2], process.wait()) == (said, code)
