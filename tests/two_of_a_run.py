"""python -m tests.two_of_a_run FOLDER SCENE: two processes of one run, on two machines as far as their files go.

For tests/test_distributed.py: a process that has computed gradients, as pytest's may have, cannot be forked for this.
Whatever a process met is in FOLDER/said-RANK.json.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fer_lab.cli import CONF

SMALL = (
    "data.source.train=56", "data.source.validation=21", "data.source.test=14", "data.size=32", "model=basic1",
    "optimizer=sgd", "scheduler=cosine", "monitor=train/loss", "mode=min", "trainer.accelerator=cpu", "threads=1",
)  # fmt: skip


def composed(place: Path, *words: str) -> DictConfig:
    places = (f"cache_dir={place.parent}/cache", f"runs_dir={place}", f"tracking.uri=sqlite:///{place}.db")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[*SMALL, *places, *words], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def fitted(place: Path, *words: str) -> dict[str, Any]:
    """A run, or the rest of it, below `place`: whether it began from a checkpoint, and its figures."""
    from fer_lab.build import build_data, build_module
    from fer_lab.fit import fit, history
    from fer_lab.frozen import use_frozen_features
    from fer_lab.ranks import leads
    from fer_lab.tracking.record import RunRecord, open_run

    cfg = composed(place, *words)
    data = build_data(cfg)
    module = build_module(cfg, data, None)
    (place / "run").mkdir(parents=True, exist_ok=True)
    with open_run(place, "run") if leads() else RunRecord(place / "run") as record:
        if leads():
            record.start()
        frozen = use_frozen_features(data, module, cfg.cache_dir)
        fit(cfg, data, module, record)
    return {"frozen": frozen, "history": history(record) if leads() else {}}


def lost(folder: Path, rank: int) -> dict[str, Any]:
    """The second machine has not got the checkpoint that the first one goes on from."""
    return fitted(folder / ("runs" if rank == 0 else "elsewhere"), "trainer=ddp", "trainer.max_epochs=4")


def frozen(folder: Path, rank: int) -> dict[str, Any]:
    """Both want the features of a frozen backbone; those who compute them leave a file."""
    from fer_lab.learning import features

    build = features.build

    def counted(*arguments: Any) -> None:
        (folder / f"computed-{rank}").touch()
        build(*arguments)

    features.build = counted
    return fitted(folder / "two", "trainer=ddp", *FROZEN, "data.batch_size=8")


FROZEN = ("model.freeze=backbone", "augment=none", "trainer.max_epochs=2")


def one(folder: Path, rank: int, scene: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    try:
        said = {"lost": lost, "frozen": frozen}[scene](folder, rank)
    except (Exception, SystemExit) as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    child = os.fork()
    one(Path(sys.argv[1]), int(child == 0), sys.argv[2])
    if child:
        os.waitpid(child, 0)
