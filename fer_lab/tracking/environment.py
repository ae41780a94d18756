"""What a result depends on beyond its settings: code, versions, machine, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from getpass import getuser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fer_lab.tracking.address import redacted
from fer_lab.tracking.record import RunRecord

PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "torchmetrics", "triton", "hydra-core", "optuna", "mlflow", "numpy",
    "pillow", "scikit-learn",
)  # fmt: skip
PATCH = "code.patch"
PATCH_LIMIT = 5_000_000
"""Bytes of uncommitted changes that are kept; more than that is data, not code."""


def log_environment(record: RunRecord, repo_root: str | Path) -> None:
    """Tag the run with commit, command, versions and machine; uncommitted changes become code.patch."""
    record.tags(environment(repo_root))
    code = code_state(Path(repo_root))
    if code.patch:
        (record.folder / PATCH).write_bytes(code.patch)
        record.artifact(PATCH)


def environment(repo_root: str | Path) -> dict[str, str]:
    """Commit, command, versions and machine, as tags."""
    return _versions() | _machine() | _command() | code_state(Path(repo_root)).tags


@cache
def code_state(root: Path) -> CodeState:
    """The checkout as this process first saw it: that is the code it imported."""
    return CodeState(root)


class CodeState:
    """The checkout at `root`: tags, and a patch that `git apply` takes, headed by the names of untracked files.

    Both are empty outside a git checkout, and where the checkout ignores this folder (an installed package).
    """

    def __init__(self, root: Path) -> None:
        self.tags: dict[str, str] = {}
        self.patch = b""
        self._root = root
        if (
            self._git("rev-parse", "--is-inside-work-tree") is None
            or self._git("check-ignore", "-q", ".") is not None
        ):
            return
        commit = (self._git("rev-parse", "-q", "--verify", "HEAD") or b"").decode().strip()
        untracked = (self._git("ls-files", "--others", "--exclude-standard", "--", ".") or b"").splitlines()
        changes = self._git("diff", "--binary", "HEAD", "--", ".") if commit else b""
        self.patch = b"".join(b"# untracked: %s\n" % name for name in untracked) + self._limited(changes)
        self.tags = {"git.commit": commit or "none yet", "git.dirty": str(bool(self.patch)).lower()}
        if commit:
            self.tags["mlflow.source.git.commit"] = commit

    def _git(self, *arguments: str) -> bytes | None:
        """Its output, or None where git is missing or says no."""
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        command = ["git", "-c", "core.quotepath=off", *arguments]
        try:
            done = subprocess.run(command, cwd=self._root, capture_output=True, timeout=20, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def _limited(self, changes: bytes | None) -> bytes:
        if changes is None or len(changes) <= PATCH_LIMIT:
            return changes or b""
        return b"# %d bytes of changes, too many to keep\n" % len(changes)


@cache
def _versions() -> dict[str, str]:
    found = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _command() -> dict[str, str]:
    arguments = list(sys.orig_argv[1:])
    command = redacted(shlex.join([Path(sys.orig_argv[0]).name, *arguments]))
    return {
        "command": command,
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


@cache
def _machine() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"machine.host": platform.node(), "machine.cpu": _processor(), "machine.cores": str(cores)}
    found["machine.system"] = platform.platform()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["machine.memory"] = (
            f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
        )
    torch = sys.modules.get("torch")  # not worth importing for this
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        found["machine.gpu"] = ", ".join(names)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
