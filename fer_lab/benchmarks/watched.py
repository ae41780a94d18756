"""python -m fer_lab.benchmarks.watched start|memory …: fer_lab.train, watched through a callback of its Trainer.

`start` prints when `fit` and the first batch begin and ends there; `memory` prints the resident memory after each
epoch and the peak of the whole run. Nothing is imported before fer_lab.train would import it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from fer_lab import fit, train
from fer_lab.cli import main


def watch(what: str, found: dict[str, Any]) -> None:
    """Lets `make_trainer` add a callback that writes into `found`."""
    make = fit.make_trainer

    def make_watched(*arguments: Any, **named: Any) -> Any:
        trainer = make(*arguments, **named)
        trainer.callbacks.append(starts(found) if what == "start" else memory(found))  # type: ignore[attr-defined]
        return trainer

    fit.make_trainer = make_watched


def starts(found: dict[str, Any]) -> Any:
    from pytorch_lightning import Callback

    class Starts(Callback):
        def on_fit_start(self, *_: object) -> None:
            found["fit"], found["fit_cpu"] = time.time(), time.process_time()

        def on_train_batch_start(self, *_: object) -> None:
            found["batch"], found["batch_cpu"] = time.time(), time.process_time()
            print(f"\n{json.dumps(found)}", flush=True)
            os._exit(0)

    return Starts()


def memory(found: dict[str, Any]) -> Any:
    from pytorch_lightning import Callback

    class Memory(Callback):
        def on_train_epoch_end(self, *_: object) -> None:
            found.setdefault("own", []).append(status("RssAnon"))
            found.setdefault("resident", []).append(status("VmRSS"))

    return Memory()


def status(key: str) -> int:
    """Bytes of this process from /proc: VmHWM is the peak, VmRSS now, RssAnon of that without mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}; this part of the benchmark needs Linux")


if __name__ == "__main__":
    seen: dict[str, Any] = {}
    watch(sys.argv.pop(1), seen)
    main(train.train, "train")
    print(f"\n{json.dumps(seen | {'peak': status('VmHWM')})}")
