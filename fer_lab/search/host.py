"""What the engine needs from whoever uses it, and what it gives to a job: the seam between search and training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig

if TYPE_CHECKING:
    from fer_lab.search.sweep import Sweep


class Outcome(Protocol):
    """What a finished or pruned run says: `score` at its best epoch, `run` the name of its folder."""

    score: float
    state: str
    run: str
    epochs: int
    seconds: float
    metrics: dict[str, float]


class Job(Protocol):
    """What a run can ask of the sweep that it is a part of."""

    name: str
    """What the run is called in MLflow."""
    parent: str
    """The sweep's own run: the name of its folder beside this one."""

    @property
    def tags(self) -> Mapping[str, str]: ...

    def report(self, epochs: int, score: float) -> bool:
        """To be called after each epoch; True: end here, pruned. Raises Interrupted (a BaseException)."""

    def keeps(self, score: float) -> bool:
        """Whether a run of this score should keep its weights."""


class Parent(Protocol):
    """The sweep's own record while the controller runs."""

    def tags(self, values: Mapping[str, Any]) -> None: ...
    def params(self, values: Mapping[str, Any]) -> None: ...
    def metrics(self, values: Mapping[str, Any], step: int) -> None: ...
    def artifact(self, path: str | Path) -> None: ...


class Host(Protocol):
    """Named by hydra.sweeper.host; made without arguments, in the controller and in every worker."""

    config_name: str
    """The primary config of a single run."""

    def code(self) -> str:
        """The version of the code, for the report."""

    def trial(self, config: DictConfig, job: Job) -> Outcome:
        """Train what the config says."""

    def probe(self, config: DictConfig) -> dict[str, Any]:
        """One step of it: seconds_per_epoch, once_seconds, memory_bytes, epochs."""

    def final(self, config: DictConfig, sweep_name: str) -> dict[str, Any]:
        """Judge the winner once and register it; facts to show."""

    def as_it_was(self, folder: Path) -> list[str]:
        """Words that a run was not given but that its last digits depend on, such as its threads."""

    def check(self, config: DictConfig, run: str) -> bool:
        """Train the first epoch again and say how it differs from what `run` recorded; whether it does not."""

    def parent(self, sweep: Sweep) -> AbstractContextManager[Parent]:
        """The record of the sweep itself."""

    def settle(self) -> None:
        """Wait for whatever still goes on in the background; called when a worker leaves."""
