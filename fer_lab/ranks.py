"""Which of the processes of one run this is, as its launcher says: Lightning, torchrun or SLURM.

The first of them leads: it alone keeps the record, prints, draws and judges. The others only train.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
"""What launchers set; a process leads if all that are set are 0."""

LAUNCHERS = ("SLURM_NTASKS", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")
"""What tells a process that somebody starts the others, on other machines, too: SLURM, torchrun or a person."""

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
OURS = ("fer_lab", "hydra", "omegaconf")
"""Packages whose errors are of the settings or the data."""

PATIENCE = 60.0
"""Seconds that an error waits for the leader to meet the same one, tell it and end the others."""


def leads() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def launched() -> bool:
    return any(name in os.environ for name in LAUNCHERS)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return next((int(os.environ[name]) for name in LOCAL_RANKS if name in os.environ), 0)


@contextmanager
def one_voice() -> Iterator[None]:
    """Only the leader is heard; what the others would print is what it prints.

    An error of the settings is met by all processes: the leader tells it. One that it does not meet, such as a folder
    that this machine lacks, leaves here after a while.
    """
    if leads():
        yield
        return
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] in OURS:
            time.sleep(PATIENCE)
        raise
