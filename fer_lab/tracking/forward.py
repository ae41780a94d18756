"""Keeps MLflow up to date while a run trains, and afterwards.

A store that is down changes nothing in training: the record stays in the run's folder and is sent by the next
training that reaches the same store, or by `python -m fer_lab.sync`.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from fer_lab.tracking.address import redacted, tracking_uri
from fer_lab.tracking.background import Background, Followed
from fer_lab.tracking.record import RunRecord, reconcile, run_folders
from fer_lab.tracking.store import FORWARD_LOCK, Refused, Sender, first_line, owes

log = logging.getLogger(__name__)

EXPERIMENT = "fer_lab"
POLL_SECONDS = 1.0
LONGEST_WAIT = 30.0
PATIENCE = 20.0
"""Seconds without any progress after which closing a run stops waiting for a store that answers."""
PATIENCE_DOWN = 3.0
UPLOAD_RATE = 5e6
"""Bytes per second that a slow upload is granted when closing."""


@contextmanager
def tracked(
    record: RunRecord, uri: str, experiment: str, linger: bool = False
) -> Iterator[Forwarder | Followed]:
    """Train inside it: the run starts, is forwarded to MLflow in the background, and ends in its true state.

    An exception ends it as failed, Ctrl-C and SystemExit as killed, anything else as finished, unless
    `record.close("diverged" or "pruned", reason)` said otherwise before. With `linger` the end does not wait for the
    store: `settle` does, for all such runs of the process.
    """
    record.start(redacted(uri), experiment)
    forwarder = background().follow(record, uri, experiment) if linger else Forwarder(record, uri, experiment)
    try:
        yield forwarder
    except BaseException as error:
        record.close(
            "failed" if isinstance(error, Exception) else "killed", f"{type(error).__name__}: {error}"
        )
        raise
    else:
        record.close("finished")
    finally:
        forwarder.close()


@cache
def background() -> Background:
    """The one thread for all runs that linger."""
    thread = Background()
    thread.start()
    atexit.register(settle)
    return thread


def settle() -> None:
    """Waits until the runs that linger are sent, as long as that gets on, and says what was left."""
    if background.cache_info().currsize:
        background().settle()
        background.cache_clear()


class Forwarder(threading.Thread):
    """Sends the record as it grows, then what runs beside it still owe the same store. Never raises into training."""

    def __init__(self, record: RunRecord, uri: str, experiment: str) -> None:
        super().__init__(name=f"forward {record.name}", daemon=True)
        self.sender = Sender(record.folder, uri, experiment)
        self.reachable: bool | None = None
        self._closing = threading.Event()
        self.start()

    @property
    def mlflow_run_id(self) -> str:
        """Empty until the store has answered."""
        return self.sender.run_id

    def run(self) -> None:
        lock = FileLock(self.sender.folder / FORWARD_LOCK, thread_local=False)
        try:
            with lock.acquire(timeout=60):
                self.sender.reload()
                self._forward()
        except Refused as refusal:
            log.warning("%s; training goes on, the record is kept in %s", refusal, self.sender.folder)
        except Timeout:
            log.warning(
                "run %s is forwarded by another process; `python -m fer_lab.sync` sends the rest",
                self.sender.folder,
            )
        except Exception:
            log.exception(
                "run %s is no longer forwarded to MLflow; its record is complete", self.sender.folder
            )

    def _forward(self) -> None:
        wait, neighbours = POLL_SECONDS, True
        while True:
            last = self._closing.is_set()  # asked first, so that all that was written before is sent
            try:
                self.sender.send()
                self._answered()
                wait = POLL_SECONDS
            except Refused:
                raise
            except Exception as error:
                self._silent(error)
                wait = min(2 * wait, LONGEST_WAIT)
            if last:
                return
            if neighbours and self.reachable:
                neighbours = False
                self._forward_neighbours()
            self._closing.wait(wait)

    def _forward_neighbours(self) -> None:
        """Runs that were killed, or trained while the store was down."""
        runs_dir = self.sender.folder.parent
        reconcile(runs_dir)
        for folder in run_folders(runs_dir):
            if self._closing.is_set():
                return
            if owes(folder, self.sender.uri) and RunRecord(folder).uri == redacted(self.sender.uri):
                sync_run(folder, self.sender.uri)

    def _answered(self) -> None:
        if self.reachable is False:
            log.warning("tracking store %s takes the record again", redacted(self.sender.uri))
        self.reachable = True

    def _silent(self, error: Exception) -> None:
        if self.reachable is not False:
            log.warning(
                "tracking store %s does not take the record (%s); training is not affected, it is kept in %s",
                redacted(self.sender.uri), first_line(error), self.sender.folder,
            )  # fmt: skip
        self.reachable = False

    def close(self) -> None:
        """Send the rest, as long as that gets on, and say what was left. Ctrl-C ends the waiting."""
        self._closing.set()
        with suppress(KeyboardInterrupt):
            self._wait()
        pending = self.sender.pending()
        if pending:
            log.warning(
                "%d events of run %s are kept in %s; send them with `python -m fer_lab.sync runs=%s`",
                pending, self.sender.record.name, self.sender.folder, self.sender.folder.parent,
            )  # fmt: skip

    def _wait(self) -> None:
        offset = self.sender.offset
        self.join(PATIENCE_DOWN)
        if self.is_alive() and self.reachable is not False:
            log.warning("sending the rest of the record to %s (Ctrl-C leaves it)", redacted(self.sender.uri))
            offset = -1
        while self.is_alive() and self.sender.offset != offset:
            offset = self.sender.offset
            self.join(self._patience())

    def _patience(self) -> float:
        if self.reachable is False:
            return PATIENCE_DOWN
        # a local database does answer, if only after other processes have made it
        local = self.sender.uri.startswith("sqlite:")
        return PATIENCE * (4 if local else 1) + self.sender.pending_bytes() / UPLOAD_RATE


class Report(NamedTuple):
    """What `sync_run` did with one run: events sent, events left and why, and whether the store answered."""

    name: str
    sent: int
    left: int
    reason: str = ""
    answered: bool = True


def sync_run(folder: Path, uri: str, experiment: str = "") -> Report:
    """Send what one run owes a store, now and here."""
    record = RunRecord(folder)
    sender = Sender(folder, uri, experiment or record.experiment or EXPERIMENT)
    before = sender.pending()
    try:
        with FileLock(folder / FORWARD_LOCK, timeout=0, thread_local=False):
            sender.reload()
            sender.send()
    except Timeout:
        return Report(record.name, 0, before, f"being forwarded by {record.owner}")
    except Exception as error:
        left = sender.pending()
        return Report(record.name, before - left, left, first_line(error), isinstance(error, Refused))
    return Report(record.name, before, 0)


def sync(runs_dir: str | Path, uri: str | None = None) -> list[Report]:
    """Send what any run still owes its store (or `uri`, whatever store it was meant for); the dead are marked
    killed first. A store that does not answer is tried once."""
    reconcile(runs_dir)
    reports: list[Report] = []
    silent: dict[str, str] = {}
    for folder in run_folders(runs_dir):
        target = uri or _address_of(RunRecord(folder))
        if not owes(folder, target):
            continue
        if target in silent:
            report = Report(folder.name, 0, Sender(folder, target, "").pending(), silent[target], False)
        else:
            report = sync_run(folder, target)
        if not report.answered:
            silent[target] = report.reason
        reports.append(report)
    return reports


def _address_of(record: RunRecord) -> str:
    """The store a run was meant for; a password, which is never written down, comes from the environment."""
    current = tracking_uri()
    return current if not record.uri or redacted(current) == record.uri else record.uri
