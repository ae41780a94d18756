from __future__ import annotations

import json

import pytest

from fer_lab.tracking.find import find_run
from fer_lab.tracking.record import TrackingError, open_run
from fer_lab.tracking.store import FORWARDED

RUN_ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def runs(tmp_path):
    """Runs `small-a`, `small-b`, and `vgg19-jaffe`, the last one known to MLflow."""
    for name in ("small-a", "small-b", "vgg19-jaffe"):
        with open_run(tmp_path / "runs", name, "sig") as record:
            record.start()
    (tmp_path / "runs" / "vgg19-jaffe" / FORWARDED).write_text(json.dumps({"http://lab": {"run_id": RUN_ID}}))
    return tmp_path / "runs"


@pytest.mark.parametrize("spec", ["vgg19-jaffe", "vgg", RUN_ID, f"runs:/{RUN_ID}", " vgg19-jaffe/ "])
def test_names_prefixes_and_ids_find_the_same_folder(runs, spec):
    assert find_run(spec, runs) == runs / "vgg19-jaffe"


def test_a_path_is_taken_as_it_is(runs, monkeypatch):
    assert find_run(str(runs / "small-a"), "elsewhere") == runs / "small-a"
    monkeypatch.chdir(runs)
    assert find_run("small-a", "elsewhere").resolve() == runs / "small-a"


def test_a_whole_name_wins_over_being_the_beginning_of_another(runs):
    with open_run(runs, "small-a-2", "sig") as record:
        record.start()
    assert find_run("small-a", runs) == runs / "small-a"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("small", r"run=small fits 2 runs in .*: small-a, small-b; type more"),
        ("vgg91-jaffe", r"did you mean vgg19-jaffe\?"),
        ("zzz", r"the latest are vgg19-jaffe, small-b, small-a"),
        ("", r"run= is not in"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(runs, spec, message):
    with pytest.raises(TrackingError, match=message):
        find_run(spec, runs)


def test_without_any_run_the_first_command_is_named(tmp_path):
    with pytest.raises(TrackingError, match=r"python -m fer_lab\.train"):
        find_run("a", tmp_path)


def test_an_id_that_the_store_does_not_know_is_an_error_in_one_line(tmp_path):
    address = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(TrackingError, match=f"cannot be had from {address}: .*not found") as caught:
        find_run("f" * 32, tmp_path / "runs", address)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "runs").iterdir()) == []
