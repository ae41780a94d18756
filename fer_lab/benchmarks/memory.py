"""Memory of a whole run on FER2013: its peak, and what an epoch leaves behind.

The train command as typed, in a process of its own, from its start to its last figure: epochs of a few training
and validation batches, then the whole validation and test part. Growth is counted in memory of the process's own
(RssAnon): pages of the image cache that were read stay mapped as long as nobody else needs the memory, are shared
between runs, and are told beside it. It is the median over the last epochs less the median over as many from the
second on, since one epoch in ten is caught while the allocator or MLflow's thread holds tens of MB for a moment.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fer_lab.benchmarks.measure import Figure, rounded
from fer_lab.benchmarks.setting import run

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

PEAK_TARGET = 2.0  # GB
GROWTH_TARGET = 10.0  # MB: medians of the same run move by less than this in either direction


def measure(setting: Setting, repeats: int, epochs: int, batches: int, batch_size: int) -> Iterator[Figure]:
    words = [
        "data=fer2013", f"data.root={setting.faces}", f"data.batch_size={batch_size}", "augment=standard",
        "trainer=smoke", f"trainer.max_epochs={epochs}", f"trainer.limit_train_batches={batches}",
        f"trainer.limit_val_batches={batches}",
    ]  # fmt: skip
    seen = [
        run(
            ["-m", "fer_lab.benchmarks.watched", "memory", *setting.words(f"memory{turn}", *words)],
            setting.place,
        )[1]
        for turn in range(repeats)
    ]
    run_of = f"a run of {epochs} epochs of at most {batches} batches of {batch_size} on {setting.source}"
    peaks = [one["peak"] / 1e9 for one in seen]
    yield Figure("peak memory", f"resident, {run_of}", "GB", peaks, PEAK_TARGET, at_most=True)
    window = max(1, (epochs - 1) // 2)  # epochs on either side
    growth = [grown(one["own"], window) / 1e6 for one in seen]
    mapped = [rounded(grown(one["resident"], window) / 1e6) for one in seen]
    yield Figure(
        "growth of memory over epochs", f"own memory, median of the last {window} epochs less median of {window} from epoch 2 on, {run_of}", "MB",
        growth, GROWTH_TARGET, at_most=True,
        also={"with_mapped_files": mapped, "own_after_each_epoch": [[rounded(size / 1e6) for size in one["own"]] for one in seen]},
    )  # fmt: skip


def grown(sizes: Sequence[float], window: int) -> float:
    """Median of the last `window` epochs less that of the `window` epochs after the first."""
    return statistics.median(sizes[-window:]) - statistics.median(sizes[1 : 1 + window])
