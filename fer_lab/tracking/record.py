"""A run's folder and its append-only record, written before anything is sent to a tracking server.

`runs/NAME/spool.jsonl` holds one JSON object per line: {"event": …, "time": milliseconds, …}. Events are
`run` (id, name, signature), `state`, `params`, `tags`, `metrics`, `artifact` and `dataset`; numbers that JSON
cannot hold are the strings "nan", "inf" and "-inf". `fer_lab.tracking.forward` sends the lines to MLflow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import BaseFileLock, FileLock, Timeout

log = logging.getLogger(__name__)

SPOOL = "spool.jsonl"
LOCK = ".lock"
State = Literal["running", "finished", "failed", "killed", "diverged", "pruned"]
Standing = Literal["new", "finished", "interrupted"]
STATES: tuple[str, ...] = get_args(State)
ENDED = ("finished", "diverged", "pruned")
"""States that a run reached by itself: the same run again is found, not repeated."""

Event = dict[str, Any]


class TrackingError(ValueError):
    """A run, a store or an address that cannot be used; the text says what to do (a usage error)."""


class RunBusy(TrackingError):
    """The run's folder is held by a process that is alive."""


class RunRecord:
    """What one run said about itself. Reading needs nothing; writing needs the lock that `open_run` takes.

    `id` is unique to this folder, `state` the last one written (None before the first), `last_state` the one
    found on opening, `owner` the "pid N on host H" of the last process that trained it.
    """

    def __init__(self, folder: str | Path, lock: BaseFileLock | None = None) -> None:
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.id = ""
        self.signature = ""
        self.owner = ""
        self.uri = ""
        self.experiment = ""
        self.state: str | None = None
        self.reason = ""
        self._lock = lock
        self._writing = threading.Lock()
        self._file: int | None = None
        self._silenced = False
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._steps: dict[str, int] = {}
        for event, _ in read_events(self.folder):
            self._remember(event)
        self.last_state = self.state

    @property
    def standing(self) -> Standing:
        """new, finished (it ended by itself, see `last_state`), or interrupted (go on from its checkpoint)."""
        if self.last_state is None:
            return "new"
        return "finished" if self.last_state in ENDED else "interrupted"

    def start(self, uri: str = "", experiment: str = "") -> None:
        """Say that this process now trains the run and where its record belongs."""
        owner = f"pid {os.getpid()} on host {platform.node()}"
        self._append("state", state="running", owner=owner, uri=uri, experiment=experiment)

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings, nested ones as `group.key`. A key keeps its first value; a later other value becomes a tag."""
        flat = flatten(values)
        new = {key: value for key, value in flat.items() if key not in self._params}
        changed = {key: value for key, value in flat.items() if self._params.get(key, value) != value}
        if new:
            self._append("params", values=new)
        if changed:
            self.tags({f"fer.changed.{key}": value for key, value in changed.items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        self._append("tags", values={key: str(value) for key, value in values.items()})

    def tag(self, name: str) -> str | None:
        return self._tags.get(name)

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers at a step. Those at or before the last step of their name are dropped, so that an epoch
        replayed after a resume is not stored twice."""
        known = self._steps
        fresh = {key: _number(key, value) for key, value in values.items() if step > known.get(key, -1)}
        kept = {key: value for key, value in fresh.items() if value is not None}
        if kept:
            self._append("metrics", step=int(step), values=kept)

    def artifact(self, path: str | Path, artifact_folder: str | None = None) -> None:
        """A file or folder inside the run's folder, kept in MLflow under `artifact_folder` (default: as here)."""
        inside, home = Path(path), self.folder.resolve()
        if inside.resolve().is_relative_to(home):
            inside = inside.resolve().relative_to(home)
        elif inside.is_absolute():
            raise ValueError(f"{inside} is outside the run's folder {home}; write it there first")
        folder = inside.parent.as_posix() if artifact_folder is None else artifact_folder
        self._append("artifact", path=inside.as_posix(), folder="" if folder == "." else folder)

    def dataset(
        self, name: str, digest: str, context: str, counts: Mapping[str, int], source: str = ""
    ) -> None:
        """The data that went in: `context` is train, validation or test, `counts` the faces of each class."""
        self._append("dataset", name=name, digest=digest, context=context, counts=dict(counts), source=source)

    def close(self, state: State, reason: str = "") -> None:
        """Write the state the run ended in; nothing happens if it has ended already."""
        if state not in STATES[1:]:
            raise ValueError(f"{state!r} is no end of a run; choices: {', '.join(STATES[1:])}")
        if self.state == "running":
            self._append("state", state=state, reason=reason)

    def release(self) -> None:
        """Let other processes have the folder."""
        with self._writing:
            if self._file is not None:
                os.close(self._file)
                self._file = None
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _remember(self, event: Event) -> None:
        match event["event"]:
            case "run":
                self.id, self.signature = event["id"], event["signature"]
            case "state":
                self.state, self.reason = event["state"], event.get("reason", "")
                for key in ("owner", "uri", "experiment"):
                    setattr(self, key, event.get(key, getattr(self, key)))
            case "tags":
                self._tags.update(event["values"])
            case "params":
                self._params.update(event["values"])
            case "metrics":
                self._steps.update(dict.fromkeys(event["values"], event["step"]))

    def _append(self, kind: str, **fields: Any) -> None:
        if not self.id and kind != "run":
            self._append("run", id=uuid.uuid4().hex, name=self.name, signature=self.signature)
        event = {"event": kind, "time": time.time_ns() // 1_000_000, **fields}
        if self._lock is None or not self._lock.is_locked:
            raise RuntimeError(f"{self.folder} is open for reading; write to it through open_run()")
        with self._writing:
            try:
                if self._file is None:
                    self._file = _open_whole(self.folder / SPOOL)
                _write_whole(self._file, json.dumps(event).encode() + b"\n")
            except OSError as error:  # a full disk is no reason to lose the training
                self._complain(
                    f"{self.folder / SPOOL} cannot be written ({error}); its record has a gap here"
                )
        self._remember(event)

    def _complain(self, message: str) -> None:
        if not self._silenced:
            log.warning(message)
        self._silenced = True


def open_run(runs_dir: str | Path, name: str, signature: str | None = None) -> RunRecord:
    """The run `name`, held by this process until `release()` or its death (kill -9 frees it too).

    Raises RunBusy when a living process holds it, TrackingError when the folder belongs to a run of another
    signature (None accepts any) or cannot be written.
    """
    if not re.fullmatch(r"[\w][\w.=,+@ -]{0,199}", name):
        raise TrackingError(f"{name!r} cannot name a run: use letters, digits and . _ - = , + @ (no /)")
    folder = Path(runs_dir) / name
    lock = FileLock(folder / LOCK, timeout=2, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunBusy(
            f"run {name} is being trained by {RunRecord(folder).owner or 'another process'}; "
            "wait for it, stop it, or give this run another name or seed"
        ) from None
    except OSError as error:
        raise TrackingError(
            f"{folder} cannot be written ({error}); choose another folder for runs"
        ) from error
    record = RunRecord(folder, lock)
    if signature is not None and record.id and record.signature != signature:
        record.release()
        raise TrackingError(
            f"{folder} holds a run of other settings (signature {record.signature[:12]}, now {signature[:12]}); "
            "give this run another name, or delete that folder"
        )
    record.signature = record.signature if signature is None else signature
    return record


def run_folders(runs_dir: str | Path) -> list[Path]:
    """Folders that hold a record, oldest first by their last change."""
    found = [path.parent for path in Path(runs_dir).glob(f"*/{SPOOL}")]
    return sorted(found, key=lambda folder: (folder / SPOOL).stat().st_mtime)


def reconcile(runs_dir: str | Path) -> list[Path]:
    """Mark as killed every run that says `running` while no process holds it; returns their folders."""
    dead = []
    for folder in run_folders(runs_dir):
        if _ended(folder) or RunRecord(folder).state != "running":
            continue
        lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except (Timeout, OSError):
            continue
        with RunRecord(folder, lock) as record:
            if record.state == "running":
                record.close("killed", f"{record.owner} ended without a word")
                dead.append(folder)
    return dead


def read_events(folder: str | Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Events from a byte offset on, each with the offset behind it. A last line without its end is left out
    (its writer died, or is at it); any other line that is no event comes as {"event": "unreadable"}."""
    try:
        file = (Path(folder) / SPOOL).open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _parse(line), offset


def _ended(folder: Path) -> bool:
    """Whether the last line is an end; a quick look, since thousands of runs may lie there."""
    with (folder / SPOOL).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().splitlines()
    return bool(lines) and _parse(lines[-1]).get("state", "running") != "running"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as `a.b.c`; lists and plain values as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            plain_list = isinstance(value, Sequence) and not isinstance(value, str)
            flat[f"{prefix}{key}"] = str(list(value)) if plain_list else str(value)
    return flat


def _number(key: str, value: Any) -> float | str | None:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        log.warning("metric %s=%r is not a number and is left out (%s)", key, value, error)
        return None
    return number if math.isfinite(number) else str(number)


def _parse(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) and "event" in event else {"event": "unreadable"}


def _open_whole(path: Path) -> int:
    """A descriptor for appending; a line that a killed process left half written is cut off first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
    text = path.read_bytes()
    os.ftruncate(descriptor, text.rfind(b"\n") + 1)
    return descriptor


def _write_whole(descriptor: int, line: bytes) -> None:
    before = os.fstat(descriptor).st_size
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, before)
        raise OSError("no space for the whole line")
