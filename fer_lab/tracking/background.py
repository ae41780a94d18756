"""Keeps MLflow up to date with many short runs of one process, in one thread that none of them waits for."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from filelock import FileLock, Timeout

from fer_lab.tracking.address import redacted
from fer_lab.tracking.record import RunRecord
from fer_lab.tracking.store import FORWARD_LOCK, Refused, Sender, first_line

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LONGEST_WAIT = 30.0
PATIENCE = 80.0
"""Seconds without any progress after which `settle` stops waiting for a store that answers."""
PATIENCE_DOWN = 3.0


class Followed:
    """A run in the care of the background; `close` says that its record is complete."""

    def __init__(self, record: RunRecord, uri: str, experiment: str) -> None:
        self.sender = Sender(record.folder, uri, experiment)
        self.lock = FileLock(record.folder / FORWARD_LOCK, thread_local=False, timeout=0)
        self.ended = False

    def close(self) -> None:
        self.ended = True

    def send(self) -> None:
        """Sends what there is. Raises Timeout while another process forwards this run."""
        if not self.lock.is_locked:
            self.lock.acquire()
            self.sender.reload()
        try:
            self.sender.send()
        except BaseException:
            self.lock.release()
            raise


class Background(threading.Thread):
    """One thread for all runs that are left to it. A store that is down is tried again, less and less often."""

    def __init__(self) -> None:
        super().__init__(name="forward trials", daemon=True)
        self.followed: list[Followed] = []
        self.reachable: bool | None = None
        self.sent = 0
        self._settling = threading.Event()

    def run(self) -> None:
        wait = POLL_SECONDS
        last = False
        while not last:
            self._settling.wait(wait)
            last = self._settling.is_set()  # asked first, so that all that was written before is sent
            wait = POLL_SECONDS if self._forward() else min(2 * wait, LONGEST_WAIT)

    def _forward(self) -> bool:
        """One round; False where the store is silent."""
        for followed in list(self.followed):
            ended = followed.ended
            try:
                followed.send()
                self.reachable = True
            except Refused as refusal:
                log.warning("%s; the record is kept in %s", refusal, followed.sender.folder)
                ended = True
            except Timeout:
                continue
            except Exception as error:
                self._silent(followed, error)
                return False
            if ended:
                self.followed.remove(followed)
                followed.lock.release()
                self.sent += 1
        return True

    def _silent(self, followed: Followed, error: Exception) -> None:
        if self.reachable is not False:
            log.warning(
                "tracking store %s does not take the record (%s); training is not affected, it is kept in %s",
                redacted(followed.sender.uri), first_line(error), followed.sender.folder.parent,
            )  # fmt: skip
        self.reachable = False

    def follow(self, record: RunRecord, uri: str, experiment: str) -> Followed:
        """Takes a started run into its care."""
        followed = Followed(record, uri, experiment)
        self.followed.append(followed)
        return followed

    def settle(self) -> None:
        """Waits until all is sent, as long as that gets on, and says what was left. The thread ends."""
        self._settling.set()
        sent = -1
        with suppress(KeyboardInterrupt):
            while self.is_alive() and self.sent != sent:
                sent = self.sent
                self.join(PATIENCE_DOWN if self.reachable is False else PATIENCE)
        if self.followed:
            folder = self.followed[0].sender.folder.parent
            log.warning(
                "the records of %d runs are kept in %s; send them with `python -m fer_lab.sync runs=%s`",
                len(self.followed), folder, folder,
            )  # fmt: skip
