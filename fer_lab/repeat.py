"""Whether a run can be repeated: its first epoch again, compared with what it recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import ROOT, UsageError


class FirstEpoch:
    """A trial that is interested in one epoch only."""

    name, parent = "first epoch", ""
    tags: Mapping[str, str] = {}

    def report(self, epochs: int, score: float) -> bool:
        return True

    def keeps(self, score: float) -> bool:
        return False


def repeat_first_epoch(config: DictConfig, name: str) -> bool:
    """Trains one epoch of `config` in a place of its own and says how its numbers differ from those of run `name`."""
    from fer_lab.fit import history
    from fer_lab.tracking.environment import CodeState
    from fer_lab.tracking.forward import settle
    from fer_lab.tracking.record import RunRecord
    from fer_lab.train import train

    before = RunRecord(Path(config.runs_dir) / name)
    with tempfile.TemporaryDirectory(prefix="fer_lab_repeat_") as place:
        apart = [f"runs_dir={place}", f"tracking.uri=sqlite:///{place}/mlflow.db", "rerun=false"]
        again = OmegaConf.merge(config, OmegaConf.from_dotlist([*apart, *as_it_was(before.folder)]))
        assert isinstance(again, DictConfig)
        result = train(again, FirstEpoch())
        settle()  # before its place is gone
        found = first(history(RunRecord(Path(place) / result.run)))
        known = first(history(before))
    compared = found.keys() & known.keys()
    if not compared:
        raise UsageError(f"{before.folder} holds no numbers of a first epoch to compare with")
    different = {
        metric: (known[metric], value)
        for metric, value in found.items()
        if metric in compared and known[metric] != value
    }
    commit = CodeState(ROOT).tags.get("git.commit")
    if before.tag("git.commit") != commit:
        print(f"{name} was trained with the code of commit {before.tag('git.commit')}; this is {commit}")
    for metric, (then, now) in different.items():
        print(f"{metric}: was {then:.8g}, is {now:.8g} (difference {now - then:.2g})")
    if not different:
        print(f"the first epoch of {name} came out the same to the last digit ({len(compared)} numbers)")
    return not different


def as_it_was(folder: Path) -> list[str]:
    """Sums over other numbers of threads differ in their last digits."""
    from fer_lab.tracking.record import RunRecord

    threads = RunRecord(folder).tag("fer.threads")
    return [f"threads={threads}"] if threads else []


def first(numbers: Mapping[str, list[tuple[int, float]]]) -> dict[str, float]:
    """What the first epoch gave; how long it took is another matter."""
    return {
        metric: points[0][1]
        for metric, points in numbers.items()
        if points[0][0] == 0 and not metric.startswith("cost/")
    }
