"""Memory of a whole run on FER2013: its peak, and what an epoch leaves behind.

The train command as typed, in a process of its own, from its start to its last figure: epochs of `batches`
training batches and the whole validation part, then the test part. Growth is counted from after the second to
after the last epoch in memory of the process's own (RssAnon): pages of the image cache that were read stay
mapped as long as nobody else needs the memory, are shared between runs, and are told beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fer_lab.benchmarks.measure import Figure, rounded
from fer_lab.benchmarks.setting import run

if TYPE_CHECKING:
    from fer_lab.benchmarks.setting import Setting

PEAK_TARGET = 2.0  # GB
GROWTH_TARGET = 20.0  # MB between the second and the last epoch: what the allocator keeps back by chance


def measure(setting: Setting, repeats: int, epochs: int, batches: int, batch_size: int) -> Iterator[Figure]:
    words = [
        "data=fer2013", f"data.root={setting.faces}", f"data.batch_size={batch_size}", "augment=standard",
        "trainer=smoke", f"trainer.max_epochs={epochs}", f"trainer.limit_train_batches={batches}",
        "trainer.limit_val_batches=null",
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
    growth = [(one["own"][-1] - one["own"][1]) / 1e6 for one in seen]
    mapped = [rounded((one["resident"][-1] - one["resident"][1]) / 1e6) for one in seen]
    yield Figure(
        "growth of memory over epochs", f"own memory after epoch {epochs} less after epoch 2, {run_of}", "MB",
        growth, GROWTH_TARGET, at_most=True,
        also={"with_mapped_files": mapped, "own_after_each_epoch": [[rounded(size / 1e6) for size in one["own"]] for one in seen]},
    )  # fmt: skip
