"""Sweeps of a frozen VGG19 (R0's own space on the drawn JAFFE): trials of ours in the time of the peer's few.

Ours looks at each face once, computes its features and trains heads on them, with the caches empty at the start; the
peer is a process for every trial that computes the features in every epoch. Neither prunes. Both are timed from the
command to the end of the last trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.benchmarks.measure import Figure, rounded
from fer_lab.benchmarks.searches import our_sweep, peers_search, write_pictures

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

TARGET = 200
EVERY = 9
"""Each ninth face validates: 24 of 213, as many as in ours."""


def measure(
    setting: Setting, repeats: int, trials: int, peer_trials: int, at_once: int, epochs: int, size: int
) -> Iterator[Figure]:
    words = [
        "sweeps=r0_jaffe_vgg19", f"data.root={setting.jaffe}", f"data.size={size}", "model.weights=null", "patience=null",
        f"trainer.max_epochs={epochs}", "monitor=val/accuracy", "mode=max", "hydra.sweeper.pruner=none",
    ]  # fmt: skip
    settings: dict[str, Any] = {
        "work": "vgg19", "pictures": str(pictures(setting)), "size": size, "epochs": epochs, "total": peer_trials,
        "one": True, "prune": False, "seed": 0,
    }  # fmt: skip
    rates, seconds = [], []
    for turn in range(repeats):
        ours = our_sweep(setting, f"frozen{turn}", trials, at_once, words)
        theirs = peers_search(setting, f"recomputed{turn}", at_once, settings)
        rates.append(theirs.seconds / (ours.seconds / trials))
        seconds.append({"ours": rounded(ours.seconds), "peer": rounded(theirs.seconds)})
    what = (
        f"trials of R0's sweep (VGG19 frozen, {size}x{size}, {epochs} epochs of the drawn JAFFE) in the time of {peer_trials} "
        f"that run as processes of their own, from {trials} of ours, {at_once} at once"
    )
    name = f"frozen-feature trials in the time of {peer_trials} plain ones"
    yield Figure(name, what, "trials", rates, TARGET, False, clock="wall time", also={"seconds": seconds})


def pictures(setting: Setting) -> Path:
    from fer_lab.data.jaffe import Jaffe

    source = Jaffe(str(setting.jaffe))
    items = source.items()
    parts = {
        "train": [item for number, item in enumerate(items) if number % EVERY],
        "validation": items[::EVERY],
    }
    return write_pictures(source, parts, setting.place / "jaffe_pictures")
