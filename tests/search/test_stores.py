"""Stores under what happens to them: several processes at once, kill -9, damage, locks, network disks, a restart."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fer_lab.search import lines, stores
from fer_lab.search.errors import SearchError
from fer_lab.search.lines import rebuild, record_trial
from fer_lab.search.stores import file_system, open_storage, refuse_network

FILES = {"sqlite": "study.db", "journal": "study.journal"}
SETUP = """
import os, signal, sys, time, optuna
from pathlib import Path
from fer_lab.search.lines import *
from fer_lab.search.stores import *

optuna.logging.set_verbosity(optuna.logging.ERROR)
address, folder = sys.argv[1], Path(sys.argv[2])
"""
WORKER = (
    SETUP
    + """
while not (folder / "go").exists():
    time.sleep(0.01)
study = optuna.create_study(study_name="quick", storage=open_storage(address, folder), load_if_exists=True)
for _ in range(5):
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    for epoch in range(1, 4):
        trial.report(x, epoch)
    trial.set_user_attr("by", os.getpid())
    study.tell(trial, x)
    record_trial(folder, study, study.trials[trial.number])
print(len(study.trials))
"""
)


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def spawn(script, address, folder):
    command = [sys.executable, "-c", script, address, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready(process):
    """Waits for its first line."""
    assert process.stdout.readline() == "ready\n", process.stderr.read()


def train(study, folder, count=3):
    for _ in range(count):
        trial = study.ask()
        trial.report(trial.suggest_float("x", 0, 1), 1)
        trial.set_user_attr("run", f"run-{trial.number}")
        study.tell(trial, trial.params["x"])
        record_trial(folder, study, study.trials[trial.number])


def facts(trial):
    """All that there is to know, but the store's own id."""
    return {key.lstrip("_"): value for key, value in vars(trial).items() if key != "_trial_id"}


def work_together(address, folder, workers):
    processes = [spawn(WORKER, address, folder) for _ in range(workers)]
    (folder / "go").touch()
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert "locked" not in errors
    trials = optuna.load_study(study_name="quick", storage=open_storage(address, folder)).trials
    assert [trial.number for trial in trials] == list(range(5 * workers))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert all(trial.intermediate_values == dict.fromkeys((1, 2, 3), trial.params["x"]) for trial in trials)
    lines = (folder / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 5 * workers
    return trials


@pytest.mark.parametrize("address", FILES)
def test_six_processes_make_one_store_and_work_on_it(address, tmp_path):
    work_together(address, tmp_path, workers=6)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("address", FILES)
def test_a_waiting_trial_is_taken_by_one_worker_alone(address, tmp_path):
    study = optuna.create_study(study_name="quick", storage=open_storage(address, tmp_path))
    for _ in range(20):
        study.enqueue_trial({})
    start = threading.Barrier(4)

    def take(storage: BaseStorage) -> list[int]:
        taken = []
        for trial in study.trials:
            start.wait()
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                taken.append(trial.number)
        return taken

    with ThreadPoolExecutor(4) as workers:
        taken = workers.map(take, [open_storage(address, tmp_path) for _ in range(4)])
    assert sorted(chain(*taken)) == list(range(20))


@pytest.mark.parametrize(
    ("address", "kind", "file"),
    [
        ("sqlite", RDBStorage, "study.db"),
        ("journal", JournalStorage, "study.journal"),
        ("{folder}/deep/other.db", RDBStorage, "deep/other.db"),
        ("{folder}/other.journal", JournalStorage, "other.journal"),
        ("sqlite:///{folder}/url.db", RDBStorage, "url.db"),
    ],
)
def test_an_address_names_a_file(address, kind, file, tmp_path):
    storage = open_storage(address.format(folder=tmp_path), tmp_path)
    train(optuna.create_study(storage=storage), tmp_path, count=1)
    assert type(storage) is kind
    assert (tmp_path / file).stat().st_size


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("sqlight", "storage 'sqlight' is no file .*: write hydra.sweeper.storage=sqlite, journal"),
        ("study.txt", "postgresql://USER:PASSWORD@HOST/DATABASE"),
        ("sqlite://", "is no file that workers could share"),
        ("sqlite:///:memory:", "is no file that workers could share"),
        (f"{__file__}/study.db", "study.db cannot be used: .*File exists"),
        ("postgresql://me:secret@host:port/x", "postgresql://… is no database address"),
        ("oracular://host/name", "no such kind of database"),
        ("mysql://me:secret@localhost/x", r"mysql://me:\*\*\*@localhost/x needs a driver .* pymysql"),
        ("postgresql://me:secret@127.0.0.1:9/x", r"me:\*\*\*@127.0.0.1:9/x cannot be used: .*refused"),
    ],
)
def test_a_wrong_address_is_refused_with_the_choices(address, words, tmp_path):
    with pytest.raises(SearchError, match=words) as refused:
        open_storage(address, tmp_path)
    assert "secret" not in str(refused.value)


def test_sqlite_writes_ahead_and_waits_a_minute_for_others(tmp_path):
    with open_storage("sqlite", tmp_path).engine.connect() as connection:
        ask = connection.connection.cursor().execute
        answers = [
            ask(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
    assert answers == ["wal", 1, 60_000]


def study_of(tmp_path, address="sqlite", count=20):
    study = optuna.create_study(
        study_name="quick", storage=open_storage(address, tmp_path), direction="maximize"
    )
    study.set_user_attr("n_trials", 20)
    train(study, tmp_path, count)
    trials = [facts(trial) for trial in study.trials]
    if address == "sqlite":
        study._storage._backend.engine.dispose()  # as if this process had ended
    return trials


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


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/me/local xfs rw 0 0
systemd-1 /data autofs rw 0 0
nas:/data /data nfs rw 0 0
scratch@tcp:/lus /scratch/my\\040disk lustre rw 0 0
me@host:/x /mnt/ssh fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/root/runs", "ext4"),
        ("/home/me/runs", "nfs4"),
        ("/home/me/local/runs", "xfs"),
        ("/homely", "ext4"),
        ("/data/runs", "nfs"),  # mounted over the automounter
        ("/scratch/my disk/runs", "lustre"),
        ("/mnt/ssh/runs", "fuse.sshfs"),
    ],
)
def test_sqlite_is_refused_on_network_file_systems_with_the_alternative(path, kind):
    assert file_system(Path(path), MOUNTS) == kind
    if kind in ("ext4", "xfs"):
        refuse_network(Path(path), MOUNTS)
    else:
        with pytest.raises(SearchError, match=rf"\({kind}\).*storage=journal, or postgresql://"):
            refuse_network(Path(path), MOUNTS)


@pytest.mark.parametrize("kind", ["cifs", "smb3", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "9p", "afs"])
def test_these_are_network_file_systems(kind):
    with pytest.raises(SearchError):
        refuse_network(Path("/runs/study.db"), f"x /runs {kind} rw 0 0")


@pytest.mark.skipif(not Path("/proc/mounts").exists(), reason="only Linux lists its mounts there")
def test_the_file_systems_of_this_machine_are_read():
    asked = subprocess.run(["stat", "-f", "-c", "%T", "/proc"], capture_output=True, text=True, check=True)
    assert file_system(Path("/proc/self"), Path("/proc/mounts").read_text()) == asked.stdout.strip() == "proc"


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


@pytest.mark.parametrize("address", FILES)
def test_trials_are_written_down_and_made_again_as_they_were(address, tmp_path):
    study = optuna.create_study(study_name="quick", directions=["maximize", "minimize"])
    study.set_user_attr("space", {"optimizer.lr": [0.1, None]})
    trial = study.ask()
    for name, distribution in {
        "optimizer": CategoricalDistribution(["sgd", None, 3, 0.5, True]),
        "optimizer.lr (optimizer=sgd)": FloatDistribution(1e-4, 0.1, log=True),
        "batch": IntDistribution(16, 128, step=16),
    }.items():
        trial._suggest(name, distribution)
    trial.set_user_attr("metrics", {"val/accuracy": 0.5, "nothing": float("inf")})
    trial.set_constraint("out_of_memory", 1.0)
    study.tell(trial, [0.5, 3.0])
    study.ask()  # runs when the store is lost, and is never told
    study.tell(study.ask(), state=TrialState.FAIL)
    confirm = optuna.create_study(study_name="quick/confirm")
    trial = confirm.ask()
    trial.report(0.25, 1)
    trial.report(float("nan"), 2)
    confirm.tell(trial, state=TrialState.PRUNED)
    for of, number in ((study, 0), (study, 2), (confirm, 0), (study, 0)):
        record_trial(tmp_path, of, of.trials[number])
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"study": "quick", "num')  # killed
    record_trial(tmp_path, study, study.trials[2])

    storage = open_storage(address, tmp_path)
    again = optuna.load_study(study_name="quick", storage=storage)
    assert (again.directions, again.user_attrs) == (study.directions, study.user_attrs)
    assert [facts(again.trials[number]) for number in (0, 2)] == [
        facts(study.trials[number]) for number in (0, 2)
    ]
    assert (again.trials[1].state, again.trials[1].user_attrs["state"]) == (TrialState.FAIL, "lost")
    again = optuna.load_study(study_name="quick/confirm", storage=storage)
    assert repr(facts(again.trials[0])) == repr(facts(confirm.trials[0]))  # nan
    assert rebuild(optuna.storages.InMemoryStorage(), tmp_path) == 3


def test_another_kind_of_store_takes_the_trials_over(tmp_path, capsys):
    trials = study_of(tmp_path, "sqlite", count=4)
    study = optuna.load_study(study_name="quick", storage=open_storage("journal", tmp_path))
    assert [facts(trial) for trial in study.trials] == trials
    assert "study.journal was made anew with 4 trials" in capsys.readouterr().out


# PostgreSQL


def test_four_processes_share_a_fresh_postgresql(server, tmp_path):
    work_together(server.address, tmp_path, workers=4)


def test_a_worker_killed_on_postgresql_stops_nobody(server, tmp_path):
    script = (
        SETUP
        + """
study = optuna.create_study(study_name="killed", storage=open_storage(address, folder), load_if_exists=True)
print("ready", flush=True)
while True:
    trial = study.ask()
    study.tell(trial, trial.suggest_float("x", 0, 1))
"""
    )
    killed = spawn(script, server.address, tmp_path)
    ready(killed)
    study = optuna.load_study(study_name="killed", storage=open_storage(server.address, tmp_path))
    numbers = []
    for count in range(20):
        if count == 5:
            killed.kill()
            killed.wait()
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))
        numbers.append(trial.number)
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trials[number].state for number in numbers} == {TrialState.COMPLETE}
    assert sum(trial.state == TrialState.RUNNING for trial in trials) <= 1


def test_work_goes_on_after_postgresql_was_restarted(server, tmp_path):
    study = optuna.create_study(study_name="restarted", storage=open_storage(server.address, tmp_path))
    trial = study.ask()
    trial.report(0.5, 1)
    server.restart()
    trial.report(0.6, 2)
    study.tell(trial, 0.6)
    assert study.trials[0].intermediate_values == {1: 0.5, 2: 0.6}


def test_postgresqls_own_refusals_are_passed_on_in_words(server, tmp_path):
    with pytest.raises(
        SearchError, match=r'cannot be used: .*"nowhere" does not exist; .*createdb NAME'
    ) as refused:
        open_storage(server.address.replace("/postgres?", "/nowhere?"), tmp_path)
    assert "secret" not in str(refused.value)
