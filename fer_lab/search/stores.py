"""Where a sweep's studies are kept: an SQLite file, a journal on a shared file system, or a database server.

Beside the store lies trials.jsonl, a line of plain text for each trial that was told. A file that is broken, or not
there, is made anew from it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any

import sqlalchemy
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fer_lab.search.errors import SearchError
from fer_lab.search.lines import TRIALS, WholeLines, agrees, fill, keep_damaged

FILES = {"sqlite": "study.db", "journal": "study.journal"}
CHOICES = (
    "write hydra.sweeper.storage=sqlite, journal, a file NAME.db or NAME.journal, or an address such as "
    "postgresql://USER:PASSWORD@HOST/DATABASE"
)
SERVER_SECONDS = 120.0
"""How long to try a server that does not answer."""
LOCK_SECONDS = 60.0
"""How long to wait for another process's transaction."""
NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|glusterfs|panfs|pvfs2|orangefs|afs|9p"
    r"|fuse\.(sshfs|glusterfs|ceph|rclone|juicefs|s3fs|beegfs|lustre)[\w-]*"
)


def open_storage(address: str, folder: Path) -> BaseStorage:
    """The store `sqlite` or `journal` in the sweep's folder, a file, or a database as SQLAlchemy addresses it.

    A file that is not there is made, with the trials of the folder's trials.jsonl. Raises SearchError.
    """
    opener: Callable[[Path, Path], BaseStorage] | None
    if "://" in address:
        url = _parse(address)
        if url.get_backend_name() != "sqlite":
            return _open_server(url)
        path, opener = Path(url.database or ":memory:"), _open_sqlite
    else:
        path = folder / FILES[address] if address in FILES else Path(address)
        opener = {".db": _open_sqlite, ".sqlite": _open_sqlite, ".journal": _open_journal}.get(path.suffix)
    if opener is None or path.name == ":memory:":
        raise SearchError(f"storage {address!r} is no file that workers could share: {CHOICES}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return opener(path.resolve(), folder)
    except OSError as error:
        raise SearchError(f"storage {path} cannot be used: {error}; {CHOICES}") from error


def _parse(address: str) -> sqlalchemy.URL:
    try:
        return sqlalchemy.make_url(address)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        shown = address.partition(":")[0]  # there may be a password in the rest
        raise SearchError(f"storage {shown}://… is no database address: {CHOICES}") from None


# SQLite: one file, on a local disk


def _open_sqlite(path: Path, folder: Path) -> RDBStorage:
    refuse_network(path)
    try:
        with FileLock(f"{path}.lock", timeout=2 * LOCK_SECONDS):
            if path.exists() and (fault := _fault(path)):
                _set_aside(path, folder, fault)
            if not path.exists():
                with _appearing_whole(path) as part:
                    storage = _connect_sqlite(part)
                    fill(storage, folder, path)
                    storage.engine.dispose()
    except Timeout:
        raise SearchError(
            f"another process is still making {path}: wait for it, or delete {path}.lock"
        ) from None
    return _claiming_in_turn(_connect_sqlite(path), path)


def _claiming_in_turn(storage: RDBStorage, path: Path) -> RDBStorage:
    """SQLite cannot lock what it reads: without turns two workers find the same trial waiting, and both take it."""
    change = storage.set_trial_state_values

    def in_turn(trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with FileLock(f"{path}.lock") if state == TrialState.RUNNING else nullcontext():
            return change(trial_id, state, values)

    setattr(storage, change.__name__, in_turn)
    return storage


def _connect_sqlite(path: Path) -> RDBStorage:
    return _connect_database(sqlalchemy.make_url(f"sqlite:///{path}"), {"creator": partial(_connect, path)})


def _connect(path: Path) -> sqlite3.Connection:
    """In WAL mode readers and writers do not wait for each other, and a kill at any time leaves a whole file."""
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


@contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    """A file that others see only when it is finished."""
    part = path.with_name(f"{path.name}.part")
    for leftover in (*path.parent.glob(f"{part.name}*"), *_companions(path)):
        leftover.unlink()
    yield part
    part.rename(path)


def _fault(path: Path) -> str:
    """What is broken in an SQLite file; empty if nothing is. Raises SearchError for any other trouble with it."""
    if not path.stat().st_size:
        return "is empty"
    try:
        with closing(_connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE").execute("ROLLBACK")
            answer = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise SearchError(f"{path} cannot be used: {error}; {CHOICES}") from error
        raise SearchError(
            f"{path} has been locked for {LOCK_SECONDS:g} s{_users(path, 'WRITE')}: end that, or {CHOICES}"
        ) from error
    except sqlite3.DatabaseError as error:
        return f"is damaged ({error})"
    if answer != "ok":
        return f"is damaged ({answer.splitlines()[-1]})"
    if "studies" not in tables:
        raise SearchError(f"{path} is a database of something else: give the sweep a file of its own")
    return ""


def _set_aside(path: Path, folder: Path, fault: str) -> None:
    if not (folder / TRIALS).exists():
        raise SearchError(
            f"{path} {fault}, and there is no {TRIALS} in {folder} to make it anew from: put a copy in its place, "
            "or delete it to start over"
        )
    if users := _users(path, ""):
        raise SearchError(f"{path} {fault} and still used{users}: end that, and the same command mends it")
    aside = f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S}"
    for file in (path, *_companions(path)):
        file.rename(path.with_name(aside + file.name.removeprefix(path.name)))
    print(f"{path} {fault}; it is kept as {aside}")


def _companions(path: Path) -> list[Path]:
    """What SQLite keeps beside an open file; left alone, they would be taken for a new file's."""
    return [file for ending in ("-wal", "-shm") if (file := path.with_name(path.name + ending)).exists()]


def _users(path: Path, mode: str) -> str:
    """` by process 12, 34`: who holds locks of this mode (`WRITE`, or any) on an SQLite file, where Linux knows it."""
    locks = Path("/proc/locks")
    inodes = {str(file.stat().st_ino) for file in (path, *_companions(path))}
    rows = [line.split() for line in locks.read_text().splitlines()] if locks.exists() else []
    held = {row[4] for row in rows if mode in row[3] and row[5].rpartition(":")[2] in inodes}
    return f" by process {', '.join(sorted(held))}" if held else ""


def refuse_network(path: Path, mounts: str | None = None) -> None:
    """Raises SearchError if `path` lies on a network file system by the text of /proc/mounts, or by this machine's."""
    table = Path("/proc/mounts")
    if mounts is None:
        mounts = table.read_text() if table.exists() else ""
    kind = file_system(path, mounts)
    if NETWORK.fullmatch(kind):
        raise SearchError(
            f"{path} lies on a network file system ({kind}), where SQLite loses data: write "
            "hydra.sweeper.storage=journal, or postgresql://USER:PASSWORD@HOST/DATABASE"
        )


def file_system(path: Path, mounts: str) -> str:
    """The type of the file system that holds `path`; empty if unknown."""
    found, kind = Path("/"), ""
    for line in mounts.splitlines():
        _, escaped, kind_here, *_ = line.split()
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), escaped))
        if path.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, kind_here
    return kind


# Journal: one file that needs no locks of the file system, so that machines may share it


def _open_journal(path: Path, folder: Path) -> JournalStorage:
    lock = WholeLines(path)
    with lock:
        if path.exists():
            _mend(path, folder)
        else:
            with _appearing_whole(path) as part:
                fill(JournalStorage(JournalFileBackend(str(part))), folder, path)
    return JournalStorage(JournalFileBackend(str(path), lock))


def _mend(path: Path, folder: Path) -> None:
    """Takes out lines that are no records, which would stop every reader there."""
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = [line for line in lines if not _is_record(line)]
    if not damaged:
        return
    mended = path.with_name(f"{path.name}.mended")
    mended.write_bytes(b"".join(line for line in lines if _is_record(line)))
    if not agrees(JournalStorage(JournalFileBackend(str(mended))), folder):
        mended.unlink()
        raise SearchError(
            f"{path} has lost whole records: end all workers of the sweep and `mv {path} {path}.damaged`; the same "
            f"command then makes it anew from {folder / TRIALS}"
        )
    keep_damaged(path, damaged)
    mended.replace(path)


def _is_record(line: bytes) -> bool:
    try:
        return "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False


# Servers


def _open_server(url: sqlalchemy.URL) -> RDBStorage:
    """Several processes may find the tables missing and make them at once; all but one are refused, and look again."""
    engine: dict[str, Any] = {"pool_pre_ping": True}  # a connection lost since the last use is opened again
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    for pause in (0.2, 0.4, 0.8):
        try:
            return _patient(_connect_database(url, engine))
        except SearchError as error:
            if not isinstance(
                error.__cause__, sqlalchemy.exc.IntegrityError | sqlalchemy.exc.ProgrammingError
            ):
                raise
            time.sleep(pause)
    return _patient(_connect_database(url, engine))


BEHIND_THE_CACHE = (
    *("_create_new_trial", "_get_trials", "_set_trial_param", "_get_best_trial_id", "_get_stale_trial_ids"),
)
"""What Optuna's cache calls of the storage behind it, beside the public methods."""


def _patient(storage: RDBStorage) -> RDBStorage:
    """A server that is restarted costs a sweep some seconds, and no trial."""
    for name in (*BaseStorage.__abstractmethods__, *BEHIND_THE_CACHE):
        setattr(storage, name, _again(getattr(storage, name)))
    return storage


def _again(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def patiently(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                return call(*arguments, **options)
            except StorageInternalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    return patiently


def _connect_database(url: sqlalchemy.URL, engine: dict[str, Any]) -> RDBStorage:
    shown = url.render_as_string(hide_password=True)
    try:
        return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=engine)
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise SearchError(f"storage {shown}: no such kind of database; {CHOICES}") from error
    except ImportError as error:
        raise SearchError(
            f"storage {shown} needs a driver that is not installed ({error.__cause__}): "
            "pip install 'fer_lab[postgresql]' for PostgreSQL, pymysql and mysql+pymysql:// for MySQL"
        ) from error
    except sqlalchemy.exc.DBAPIError as error:
        reason = " ".join(str(error.orig).split())[:300]
        raise SearchError(
            f"storage {shown} cannot be used: {reason}; check the address, and that the database exists "
            "(`createdb NAME`) and lets this user make tables"
        ) from error
    except RuntimeError as error:  # tables of another Optuna
        raise SearchError(f"storage {shown}: {error}") from error
