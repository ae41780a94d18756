"""Whole searches, timed from the command to the last trial: our sweep as typed, and the peers' processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from fer_lab.benchmarks.measure import BenchmarkError
from fer_lab.benchmarks.setting import run

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting
    from fer_lab.data.faces import Item

MONITOR = "val/accuracy"
ENDS = {"complete", "pruned", "diverged"}


class Search(NamedTuple):
    """`seconds` to the end of the last of `trials`; `curve` is (seconds, accuracy) of every epoch until then."""

    seconds: float
    trials: list[dict[str, Any]]
    curve: list[tuple[float, float]]

    @property
    def best(self) -> float:
        return max(accuracy for _, accuracy in self.curve)

    @property
    def epochs(self) -> int:
        return sum(trial["epochs"] for trial in self.trials)

    def reaches(self, accuracy: float) -> float:
        """Seconds until a trial has an epoch of this accuracy; infinite where none has."""
        return min((seconds for seconds, found in self.curve if found >= accuracy), default=float("inf"))


def our_sweep(setting: Setting, name: str, total: int, workers: int, words: Sequence[str]) -> Search:
    """`python -m fer_lab.sweep -m …` with caches of its own, without confirmation; the rest as a user has it."""
    place = fresh_place(setting, name)
    line = [
        "-m", "fer_lab.sweep", "-m", *setting.words(name, *words), f"runs_dir={place}", f"cache_dir={place}/cache",
        f"tracking.uri=sqlite:///{place}/mlflow.db", "tracking.experiment=bench", "threads=1", f"hydra.sweeper.name={name}",
        f"hydra.sweeper.n_trials={total}", f"hydra.sweeper.workers={workers}", "hydra.sweeper.confirm=null",
    ]  # fmt: skip
    _, seen = run(line, setting.place)
    trials = [
        {
            "state": trial["user_attrs"]["state"],
            "epochs": trial["user_attrs"].get("epochs", 0),
            "ended": datetime.fromisoformat(trial["completed"]).timestamp(),
        }
        for trial in lines(place / name / "trials.jsonl")
        if trial["study"] == name
    ]
    return search(place, seen["started"], trials, total)


def peers_search(setting: Setting, name: str, at_once: int, settings: Mapping[str, Any]) -> Search:
    """`study.optimize` in `at_once` processes; with `one` in as many as there are trials, so many at once."""
    place = fresh_place(setting, name)
    words = json.dumps({**settings, "place": str(place)})
    total = settings["total"]
    with ThreadPoolExecutor(at_once) as pool:
        processes = total if settings["one"] else at_once
        script = ["-m", "fer_lab.benchmarks.peers", words]
        seen = [found for _, found in pool.map(lambda _: run(script, place), range(processes))]
    return search(place, seen[0]["started"], lines(place / "trials.jsonl"), total)


def search(place: Path, began: float, trials: list[dict[str, Any]], total: int) -> Search:
    """A process that did one trial more than wanted loses nothing by it: the clock stops at the last one wanted."""
    wanted = sorted(trials, key=lambda trial: trial["ended"])[:total]
    states = {trial["state"] for trial in wanted}
    if len(wanted) < total or states - ENDS:
        raise BenchmarkError(f"{place.name}: {len(wanted)} of {total} trials, {', '.join(sorted(states))}")
    seconds = wanted[-1]["ended"] - began
    curve = [(time - began, accuracy) for time, accuracy in accuracies(place) if time - began <= seconds]
    return Search(seconds, wanted, sorted(curve))


def accuracies(place: Path) -> Iterable[tuple[float, float]]:
    """(time, accuracy) of every epoch of every run, as MLflow has them."""
    from fer_lab.tracking.store import open_client

    client = open_client(f"sqlite:///{place}/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    for found in client.search_runs(experiments, max_results=5000):
        for metric in client.get_metric_history(found.info.run_id, MONITOR):
            yield metric.timestamp / 1000, metric.value


def fresh_place(setting: Setting, name: str) -> Path:
    """A folder with an empty MLflow database, which takes seconds to make and is there in everyday use."""
    from fer_lab.tracking.store import connect

    empty = setting.place / "empty.db"
    if not empty.exists():
        connect(f"sqlite:///{empty}", "bench")
    place = setting.place / name
    place.mkdir(parents=True)
    shutil.copy(empty, place / "mlflow.db")
    return place


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def write_pictures(source: Any, parts: Mapping[str, Sequence[Item]], folder: Path) -> Path:
    """The faces of each part as PART/CLASS/NUMBER.png below `folder`: what ours and its peers read alike."""
    for part, items in parts.items():
        for number, item in enumerate(items):
            path = folder / part / source.classes[item.label] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.pixels(item)).save(path)
    return folder


def spread_over(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of them, as even over the whole as goes: classes lie one after the other."""
    if len(items) < count:
        raise BenchmarkError(f"{count} faces are wanted and there are {len(items)}")
    return [items[number * len(items) // count] for number in range(count)]
