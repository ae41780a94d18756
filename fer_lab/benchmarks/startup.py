"""How soon something happens: --help against an empty Hydra app, and `fit` against its two largest imports.

Every peer is a process of its own, started in turn, from the bytecode and the disk cache that the dropped first
round leaves. `fit` is the train command as typed, with its image cache warm and its tracking database made; it
is timed from the start of the process to Lightning's on_fit_start (and to the first batch, told beside it), the
imports from the start of the process to the line behind them. Ours imports MLflow in a thread, so wall time counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from fer_lab.benchmarks.measure import Cost, Figure, compare, in_turn, middle
from fer_lab.benchmarks.setting import run

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

HELP_TARGET, FIT_TARGET = 1.5, 1.3
EMPTY_APP = """import hydra
@hydra.main(version_base="1.3", config_path=".", config_name="config")
def app(cfg): pass
app()
"""
IMPORTS = """import pytorch_lightning, mlflow
import json, os, time
print(json.dumps({"fit": time.time(), "fit_cpu": time.process_time()}), flush=True)
os._exit(0)
"""


def measure(setting: Setting, repeats: int) -> Iterator[Figure]:
    place = setting.place / "startup"
    place.mkdir(parents=True)
    (place / "empty.py").write_text(EMPTY_APP)
    (place / "config.yaml").write_text("")
    helps = {
        "ours": lambda: run(["-m", "fer_lab.train", "--help"], place)[0],
        "empty": lambda: run(["empty.py", "--help"], place)[0],
    }
    costs = in_turn(helps, repeats)
    what = "seconds for `python -m fer_lab.train --help` against --help of an empty Hydra app"
    yield compare(
        "--help, ours / empty Hydra app", what, costs["ours"], costs["empty"], HELP_TARGET, clock="cpu"
    )
    yield until_fit(setting, repeats, "drawn faces, the default command", [])
    if setting.is_real:
        yield until_fit(setting, repeats, "FER2013", ["data=fer2013", f"data.root={setting.faces}"])


def until_fit(setting: Setting, repeats: int, named: str, words: list[str]) -> Figure:
    place, runs, batches = setting.place / "startup", count(), []

    def ours() -> Cost:
        fresh = setting.words(f"start{next(runs)}-{'real' if words else 'drawn'}", *words)
        _, seen = run(["-m", "fer_lab.benchmarks.watched", "start", *fresh], place)
        batches.append(seen["batch"] - seen["started"])
        return reached(seen)

    def imports() -> Cost:
        return reached(run(["-c", IMPORTS], place)[1])

    make_caches(setting, words)
    costs = in_turn({"ours": ours, "imports": imports}, repeats)
    what = f"seconds from the command to fit ({named}) against `import pytorch_lightning, mlflow`"
    return compare(
        f"fit starts ({named}), ours / imports", what, costs["ours"], costs["imports"], FIT_TARGET, clock="wall",
        seconds_to_first_batch=middle(batches[1:]),
    )  # fmt: skip


def make_caches(setting: Setting, words: list[str]) -> None:
    """A whole smoke run: image cache and tracking database are there before anything is timed."""
    run(["-m", "fer_lab.train", *setting.words("warm", *words, "trainer=smoke", "rerun=true")], setting.place)


def reached(seen: Mapping[str, Any]) -> Cost:
    return Cost(seen["fit"] - seen["started"], seen["fit_cpu"])
