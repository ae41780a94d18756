"""Stores with several processes at work, on network disks, made anew, and on a PostgreSQL that is restarted."""

from __future__ import annotations

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import TrialState

from fer_lab.search.errors import SearchError
from fer_lab.search.lines import rebuild, record_trial
from fer_lab.search.stores import file_system, open_storage, refuse_network
from tests.search.scripts import FILES, SETUP, facts, ready, spawn, study_of, train

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
