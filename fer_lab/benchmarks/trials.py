"""The same search three times over: our sweep, Optuna in long-lived processes, and a process for every trial.

All know the same faces (PNG files that ours decodes into a fresh cache, the peers into memory), net, space, sampler
(TPE with ten random trials first), optimizers, schedule, epochs and one thread a process; each keeps its study in SQLite
and its runs in an MLflow database in SQLite that is there already. Ours prunes as it does by default, by successive
halving; `optimize` by the median, as Optuna does by default; the processes do not prune. A search is timed from its
command to the end of its last trial: ours with its checks before the first trial, and before the winner is judged.
An accuracy is reached when the validation after any epoch of any trial finds it; times are those of MLflow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.benchmarks.measure import BenchmarkError, Figure, rounded
from fer_lab.benchmarks.searches import Search, our_sweep, peers_search, spread_over, write_pictures

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

SPACE = (
    "optimizer=choice(sgd,adamw)",
    "optimizer.lr=tag(log,interval(1e-3,1e-1))",
    "model.dropout=interval(0,0.5)",
    "data.batch_size=choice(32,64,128)",
)
OURS, OPTIMIZE, PROCESSES = "ours", "study.optimize", "a process a trial"
TARGETS = {PROCESSES: 1 / 3, OPTIMIZE: 0.9}
SOONER_TARGET = 0.8
USAGES = ("train", "validation", "test")


def measure(
    setting: Setting,
    repeats: int,
    slow_repeats: int,
    trials: int,
    at_once: int,
    epochs: int,
    train: int,
    validation: int,
) -> Iterator[Figure]:
    """`slow_repeats`: rounds in which the processes take part."""
    pictures = faces(setting, {"train": train, "validation": validation, "test": validation})
    rounds = [
        one_round(setting, pictures, number, number < slow_repeats, trials, at_once, epochs)
        for number in range(repeats)
    ]
    for found in rounds:
        agree(found, validation)
    what = (
        f"{trials} trials of up to {epochs} epochs, {at_once} at once, {train} training and {validation} validation "
        f"faces of {setting.source}, small"
    )
    for peer, target in TARGETS.items():
        took_part = [found for found in rounds if peer in found]
        if not took_part:
            continue
        ours, theirs = ([found[name].seconds for found in took_part] for name in (OURS, peer))
        also = {name: [facts(found[name]) for found in took_part] for name in (OURS, peer)}
        yield Figure(
            f"{trials} trials, ours / {peer}", what, "s", ours, target, True, theirs, "wall time", also
        )
    goals = [found[OPTIMIZE].best for found in rounds]
    ours, theirs = (
        [found[name].reaches(goal) for found, goal in zip(rounds, goals, strict=True)]
        for name in (OURS, OPTIMIZE)
    )
    path = draw(rounds, setting.output / "sweep.png")
    yield Figure(
        f"until the best accuracy of {OPTIMIZE}, ours / it", f"seconds from the command, {what}; drawn in {path.name}",
        "s", ours, SOONER_TARGET, True, theirs, "wall time", {"accuracy": [rounded(goal) for goal in goals]},
    )  # fmt: skip


def faces(setting: Setting, counts: Mapping[str, int]) -> Path:
    """So many of each part of FER2013, with the class shares that it has."""
    from fer_lab.data.fer2013 import Fer2013

    source = Fer2013(str(setting.faces))
    items = source.items()
    parts = {
        usage: spread_over([item for item in items if item.usage == usage], count)
        for usage, count in counts.items()
    }
    return write_pictures(source, parts, setting.place / "pictures")


def one_round(
    setting: Setting, pictures: Path, number: int, slow: bool, trials: int, at_once: int, epochs: int
) -> dict[str, Search]:
    """Every search once, in turned order every other round; the number of the round is the sampler's seed."""
    words = [
        "sweeps=none", "data=fer2013", f"data.root={pictures}", "model=small", "augment=light", "scheduler=onecycle",
        f"trainer.max_epochs={epochs}", *SPACE, f"hydra.sweeper.seed={number}",
    ]  # fmt: skip
    settings: dict[str, Any] = {
        "work": "small", "pictures": str(pictures), "size": 48, "epochs": epochs, "total": trials, "seed": number,
    }  # fmt: skip
    sides = {
        OURS: lambda: our_sweep(setting, f"ours{number}", trials, at_once, words),
        OPTIMIZE: lambda: peers_search(
            setting, f"optimize{number}", at_once, settings | {"one": False, "prune": True}
        ),
        PROCESSES: lambda: peers_search(
            setting, f"processes{number}", at_once, settings | {"one": True, "prune": False}
        ),
    }
    names = [name for name in sides if slow or name != PROCESSES]
    found = {name: sides[name]() for name in (names if number % 2 == 0 else reversed(names))}
    for name in names:
        print(f"    {name}: {found[name].seconds:.0f} s, best {found[name].best:.3f}", flush=True)
    return found


def agree(found: Mapping[str, Search], validation: int) -> None:
    """Ours must have found as good a net as the others, up to what so few validation faces can tell."""
    best = max(search.best for search in found.values())
    noise = math.sqrt(2 * best * (1 - best) / validation)
    if found[OURS].best < best - 2.5 * noise:
        bests = {name: rounded(search.best) for name, search in found.items()}
        raise BenchmarkError(f"ours ended with a worse net than its peers: {bests}, noise {noise:.3f}")


def facts(search: Search) -> dict[str, Any]:
    ends = Counter(trial["state"] for trial in search.trials)
    first = min((seconds for seconds, _ in search.curve), default=math.inf)
    return {
        "seconds": rounded(search.seconds), "seconds_to_first_epoch": rounded(first), "epochs": search.epochs,
        "trials": dict(ends), "best": rounded(search.best),
    }  # fmt: skip


def draw(rounds: Sequence[Mapping[str, Search]], path: Path) -> Path:
    """Best accuracy so far against the time since the command, a line for each search."""
    from matplotlib.figure import Figure as Picture

    from fer_lab.figures import BLUE, GREY, ORANGE, save

    picture = Picture(figsize=(8, 4.5), layout="constrained")
    axes = picture.add_subplot()
    colours = {OURS: BLUE, OPTIMIZE: ORANGE, PROCESSES: GREY}
    for found in rounds:
        for name, search in found.items():
            times, bests = steps(search)
            axes.step(times, bests, where="post", color=colours[name], label=name)
    labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(labels.values(), labels.keys(), frameon=False, loc="lower right")
    axes.set_xlabel("seconds since the command")
    axes.set_ylabel("best validation accuracy so far")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    ratios = [
        found[OURS].reaches(found[OPTIMIZE].best) / found[OPTIMIZE].reaches(found[OPTIMIZE].best)
        for found in rounds
    ]
    axes.set_title(
        f"Ours reaches the best of {OPTIMIZE} in {', '.join(f'{ratio:.2f}' for ratio in ratios)} of its time",
        loc="left",
    )
    return save(picture, path)


def steps(search: Search) -> tuple[list[float], list[float]]:
    times, bests, best = [0.0], [0.0], 0.0
    for seconds, accuracy in search.curve:
        best = max(best, accuracy)
        times.append(seconds)
        bests.append(best)
    return [*times, search.seconds], [*bests, best]
