"""python -m fer_lab.sweep -m [sweeps=NAME] [key=choice(…)|interval(…)|value]: search a space of training runs.

status|stop|join|report [NAME]   look at a sweep, end it, add a worker, write its report again (NAME: the latest)
rerun N [NAME] [--check]         train trial N again; --check: only its first epoch, compared with the record
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import ROOT, leave, main, near

if TYPE_CHECKING:
    from fer_lab.search.host import Job, Parent
    from fer_lab.search.sweep import Sweep
    from fer_lab.train import Result

Trained = TypeVar("Trained")
COMMANDS = ("status", "stop", "join", "report", "rerun")
sys.path.append(str(ROOT / "fer_lab/search/plugin"))  # Hydra 1.3 takes sweepers from hydra_plugins alone


class Host:
    """What the sweep engine tunes: our training, tracked in MLflow. See fer_lab.search.host."""

    config_name = "train"

    def code(self) -> str:
        from fer_lab.tracking.environment import CodeState

        tags = CodeState(ROOT).tags
        changes = " and uncommitted changes" if tags.get("git.dirty") == "true" else ""
        return f"commit {tags.get('git.commit', 'unknown')[:10]}{changes}"

    def trial(self, config: DictConfig, job: Job) -> Result:
        import torch

        from fer_lab.train import train

        try:
            return when_free(lambda: train(config, job))
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def probe(self, config: DictConfig) -> dict[str, Any]:
        from fer_lab.probe import probe

        return probe(config)

    def final(self, config: DictConfig, sweep_name: str) -> dict[str, Any]:
        from fer_lab.champion import crown

        return when_free(lambda: crown(config, sweep_name))

    def as_it_was(self, folder: Path) -> list[str]:
        from fer_lab.repeat import as_it_was

        return as_it_was(folder)

    def check(self, config: DictConfig, run: str) -> bool:
        from fer_lab.repeat import repeat_first_epoch

        return repeat_first_epoch(config, run)

    @contextmanager
    def parent(self, sweep: Sweep) -> Iterator[Parent]:
        from fer_lab.tracking.address import tracking_uri
        from fer_lab.tracking.environment import log_environment
        from fer_lab.tracking.forward import tracked
        from fer_lab.tracking.record import open_run, reconcile

        config = sweep.config
        reconcile(config.runs_dir)
        uri = tracking_uri(config.tracking.uri)
        with (
            open_run(config.runs_dir, sweep.name) as record,
            tracked(record, uri, config.tracking.experiment),
        ):
            log_environment(record, ROOT)
            record.tags({"fer.kind": "sweep", "fer.sweep": sweep.name})
            yield record

    def settle(self) -> None:
        from fer_lab.tracking.forward import settle

        settle()


def when_free(train: Callable[[], Trained]) -> Trained:
    """Waits while the same settings are being trained elsewhere: outside the sweep, or by a worker given up too early."""
    from fer_lab.tracking.record import RunBusy

    while True:
        try:
            return train()
        except RunBusy as busy:
            print(f"{busy}; waiting", flush=True)
            time.sleep(5)


def sweep(cfg: DictConfig) -> None:
    """One configuration (hydra.mode=RUN): an ordinary training run, judged and all."""
    from fer_lab.train import train

    train(cfg)


def begin(words: list[str]) -> None:
    if words and words[0] in COMMANDS:
        words = command_line(words)
    sys.argv[1:] = words
    main(sweep, "sweep")


def command_line(words: list[str]) -> list[str]:
    """`status NAME` as the sweep's own command line in another role; `key=value` words go along."""
    command, *rest = words
    settings = [word for word in rest if "=" in word]
    flags = [word for word in rest if word.startswith("-")]
    names = [word for word in rest if word not in settings + flags]
    role = command
    more: list[str] = []
    if command == "rerun":
        number = names.pop(0) if names else ""
        if not number.isdigit():
            leave("rerun needs the number of a trial: python -m fer_lab.sweep rerun N [NAME] [--check]", 2)
        more, role = [f"hydra.sweeper.trial={number}"], "check" if "--check" in flags else "rerun"
    if command == "stop" and names[-1:] == ["now"]:
        names.pop()
        more = ["hydra.sweeper.now=true"]
    if names[1:] or set(flags) - ({"--check"} if command == "rerun" else set()):
        leave(f"{' '.join([*names[1:], *flags])}: not understood; {__doc__}", 2)
    contract = OmegaConf.load(contract_of(names[0] if names else None, settings))
    role = {"join": "worker"}.get(role, role)
    return [
        *contract.command,
        f"hydra.sweeper.name={contract.name}",
        f"hydra.sweeper.role={role}",
        *more,
        *settings,
    ]


def contract_of(name: str | None, settings: list[str]) -> Path:
    """sweep.yaml of the sweep called `name`, or of the one that was started last."""
    places = [word.partition("=")[2] for word in settings if word.startswith("runs_dir=")]
    runs = Path(places[-1] if places else "runs")
    found = sorted(runs.glob("*/sweep.yaml"), key=lambda path: path.stat().st_mtime)
    matches = [path for path in found if name is None or path.parent.name.startswith(name)]
    if name is not None and (runs / name / "sweep.yaml") in found:
        return runs / name / "sweep.yaml"
    if not found:
        leave(f"no sweep in {runs} yet; `python -m fer_lab.sweep -m` makes one", 2)
    if not matches or (name is not None and len(matches) > 1):
        names = [path.parent.name for path in matches or found]
        leave(
            f"{name}: {len(matches)} sweeps of that name in {runs}{near(str(name), names)}; there are {', '.join(names[-8:])}",
            2,
        )
    return matches[-1]


if __name__ == "__main__":
    from fer_lab.sweep import begin as run  # as the module that workers know, not as __main__

    run(sys.argv[1:])
