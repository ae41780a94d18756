"""Stores that were damaged, torn in mid-write or locked for ever: mended from trials.jsonl, or refused in words."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fer_lab.search import lines, stores
from fer_lab.search.errors import SearchError
from fer_lab.search.stores import open_storage
from tests.search.scripts import FILES, SETUP, facts, ready, spawn, study_of, train


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def damage_pages(path):
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
    path.write_bytes(data)


def damage_head(path):
    path.write_bytes(b"no database" + path.read_bytes()[11:])


def damage_all(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_pages, damage_head, damage_all])
def test_a_damaged_database_is_kept_and_made_anew(damage, tmp_path, capsys):
    trials = study_of(tmp_path)
    damage(tmp_path / "study.db")
    study = optuna.load_study(study_name="quick", storage=open_storage("sqlite", tmp_path))
    assert [facts(trial) for trial in study.trials] == trials
    assert (study.direction.name, study.user_attrs) == ("MAXIMIZE", {"n_trials": 20})
    (aside,) = (path for path in tmp_path.glob("study.db.damaged-*") if path.suffix not in (".lock",))
    said = capsys.readouterr().out
    assert aside.name in said
    assert "made anew with 20 trials of trials.jsonl" in said


def test_without_trials_a_damaged_database_is_refused_and_left_alone(tmp_path):
    study_of(tmp_path)
    (tmp_path / "trials.jsonl").unlink()
    damage_pages(tmp_path / "study.db")
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(SearchError, match=r"is damaged \(.*no trials.jsonl in .*put a copy in its place"):
        open_storage("sqlite", tmp_path)
    assert (tmp_path / "study.db").read_bytes() == before


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux says who holds a lock")
def test_a_damaged_database_is_not_taken_from_under_a_worker(tmp_path):
    study_of(tmp_path)
    worker = spawn(
        SETUP + "s = open_storage(address, folder); print('ready', flush=True); time.sleep(60)",
        "sqlite",
        tmp_path,
    )
    try:
        ready(worker)
        damage_pages(tmp_path / "study.db")
        with pytest.raises(SearchError, match=f"still used by process {worker.pid}: end that"):
            open_storage("sqlite", tmp_path)
    finally:
        worker.kill()
        worker.wait()
    open_storage("sqlite", tmp_path)


def test_a_database_of_something_else_is_not_touched(tmp_path):
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("CREATE TABLE runs (name)")
    with pytest.raises(SearchError, match=r"mlflow.db is a database of something else"):
        open_storage(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


def test_a_lock_that_never_ends_is_refused_with_its_holder(tmp_path, monkeypatch):
    study_of(tmp_path, count=1)
    script = (
        SETUP
        + """
connection = sqlite3.connect(folder / "study.db")
connection.execute("BEGIN IMMEDIATE")
print("ready", flush=True)
time.sleep(60)
"""
    )
    holder = spawn(script, "sqlite", tmp_path)
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.3)
    try:
        ready(holder)
        with pytest.raises(
            SearchError, match=rf"locked for 0.3 s by process {holder.pid}: end that, or write"
        ):
            open_storage("sqlite", tmp_path)
    finally:
        holder.kill()
        holder.wait()
    open_storage("sqlite", tmp_path)


def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_told(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "STALE_SECONDS", 3)
    script = (
        SETUP
        + """
study = optuna.create_study(study_name="quick", storage=open_storage(address, folder))
while True:
    trial = study.ask()
    study.tell(trial, trial.suggest_float("x", 0, 1))
    print(trial.number, trial.params["x"], flush=True)
"""
    )
    for address in FILES:
        worker = spawn(script, address, tmp_path / address)
        told = [worker.stdout.readline().split() for _ in range(20)]
        worker.kill()
        worker.wait()
        study = optuna.load_study(study_name="quick", storage=open_storage(address, tmp_path / address))
        assert [[str(t.number), str(t.value)] for t in study.trials[:20]] == told
        study.tell(study.ask(), 0.5)


def optunas_own(path):
    """What Optuna's reader finds, without any of our mending."""
    return optuna.load_study(study_name="quick", storage=JournalStorage(JournalFileBackend(str(path))))


@pytest.mark.parametrize(
    ("rubbish", "kept"),
    [
        (b'{"op_code":4,"worker_id":"abc', b'{"op_code":4,"worker_id":"abc\n'),
        (b'{"op_code":4,"wor\n', b'{"op_code":4,"wor\n'),
        (b"\n", b"\n"),
        (b"\0\0\0\xff", b"\0\0\0\xff\n"),
        (b"null\n7\n", b"null\n7\n"),
    ],
)
@pytest.mark.parametrize("place", ["middle", "end"])
def test_a_torn_journal_is_mended_when_it_is_opened(rubbish, kept, place, tmp_path, capsys):
    trials = study_of(tmp_path, "journal", count=3)
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    cut = whole.index(b"\n", len(whole) // 2) + 1 if place == "middle" else len(whole)
    if place == "middle" and not rubbish.endswith(b"\n"):
        rubbish += b"\n"
    path.write_bytes(whole[:cut] + rubbish + whole[cut:])
    storage = open_storage("journal", tmp_path)
    assert path.read_bytes() == whole
    assert (tmp_path / "study.journal.damaged").read_bytes() == kept
    assert "moved to study.journal.damaged" in capsys.readouterr().out
    assert [facts(trial) for trial in optunas_own(path).trials] == trials
    train(optuna.load_study(study_name="quick", storage=storage), tmp_path, count=1)


def test_a_writer_killed_in_mid_line_while_others_work_stops_nobody(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(lines, "STALE_SECONDS", 3)
    study = optuna.create_study(study_name="quick", storage=open_storage("journal", tmp_path))
    train(study, tmp_path)
    script = (
        SETUP
        + """
WholeLines(folder / "study.journal").acquire()
with (folder / "study.journal").open("ab") as file:
    file.write(b'{"op_code":6,"worker_id":"half a rec')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    killed = spawn(script, "journal", tmp_path)
    assert killed.wait(60) == -signal.SIGKILL
    assert len(study.trials) == 3  # reading goes on
    train(study, tmp_path)  # and writing, once the dead one's lock is stale
    assert [trial.number for trial in optunas_own(tmp_path / "study.journal").trials] == list(range(6))
    assert b"half a rec" in (tmp_path / "study.journal.damaged").read_bytes()


def test_a_journal_that_lost_records_is_refused_until_it_is_made_anew(tmp_path):
    trials = study_of(tmp_path, "journal")
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    first_trial = next(number for number, line in enumerate(lines) if b'"op_code":4' in line)
    lines[first_trial] = b"\0" * len(lines[first_trial][:-1]) + b"\n"  # the others would move down by one
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(SearchError, match="lost whole records") as refused:
        open_storage("journal", tmp_path)
    assert path.read_bytes() == before
    command = str(refused.value).split("`")[1]
    subprocess.run(command.split(), check=True)
    study = optuna.load_study(study_name="quick", storage=open_storage("journal", tmp_path))
    assert [facts(trial) for trial in study.trials] == trials
