"""The training itself: from the last checkpoint where there is one to the last epoch, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from fer_lab.cli import UsageError
from fer_lab.ranks import leads

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.plugins.environments import ClusterEnvironment

    from fer_lab.data.datamodule import FaceData
    from fer_lab.learning.callbacks import Checkpoints
    from fer_lab.learning.module import FerModule
    from fer_lab.search.host import Job
    from fer_lab.tracking.record import RunRecord

OUTCOME = "fit.json"


class Result(NamedTuple):
    """`score` and `metrics` are those of the best epoch; `state` is finished or pruned, `run` the folder's name."""

    score: float
    state: str
    run: str
    epochs: int
    seconds: float
    metrics: dict[str, float]


def fit(
    cfg: DictConfig, data: FaceData, module: FerModule, record: RunRecord, trial: Job | None = None
) -> Result:
    """Trains to the last epoch, early stop or pruning, unless that was done before the run was interrupted.

    Of several processes that train one run the first alone writes to its folder.
    """
    from fer_lab.describe import write_split
    from fer_lab.learning.callbacks import replace

    writes = trial is not None or leads()
    if is_done(record, trial):
        return result_of(record)
    outcome = record.folder / OUTCOME
    if writes:
        outcome.unlink(missing_ok=True)
    checkpoints = make_checkpoints(cfg, record.folder, trial)
    trainer = make_trainer(cfg, record, checkpoints, is_trial=trial is not None)
    resumed = checkpoints.last if checkpoints.last.exists() else None
    run_trainer(trainer, data, module, record, resumed)
    facts = facts_of(trainer, module, checkpoints) | {"resumed": resumed is not None}
    if not writes:
        return Result(facts["best_score"], facts["state"], record.name, facts["epochs"], facts["seconds"], {})
    replace(outcome, lambda path: path.write_text(json.dumps(facts)))
    checkpoints.last.unlink(missing_ok=True)
    if trial:
        record.metrics(cost_of(facts), step=checkpoints.best_epoch)  # what trials are compared by, too
        if best_weights(record).exists():
            write_split(record, data)  # for whoever evaluates them
    return result_of(record)


def facts_of(trainer: pl.Trainer, module: FerModule, checkpoints: Checkpoints) -> dict[str, Any]:
    return {
        "state": "pruned" if checkpoints.pruned else "finished",
        "best_score": checkpoints.sign * checkpoints.best_score,
        "best_epoch": checkpoints.best_epoch,
        "epochs": trainer.current_epoch,
        "seconds": round(checkpoints.seconds, 3),
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
    }


def is_done(record: RunRecord, trial: Job | None) -> bool:
    """Whether nothing is left to train: for a trial an outcome is enough, a whole run also needs its best weights."""
    if record.last_state is None or not (record.folder / OUTCOME).exists():
        return False
    return trial is not None or (outcome_of(record)["state"] == "finished" and best_weights(record).exists())


def outcome_of(record: RunRecord) -> dict[str, Any]:
    return {"state": "finished"} | json.loads((record.folder / OUTCOME).read_text())


def best_weights(record: RunRecord) -> Path:
    return record.folder / "best.pt"


def result_of(record: RunRecord) -> Result:
    facts = outcome_of(record)
    best = facts["best_epoch"]
    metrics = {
        name: value
        for name, points in history(record).items()
        if name.startswith(("train/", "val/"))
        for epoch, value in points
        if epoch == best
    }
    return Result(
        score=float(facts["best_score"]),
        state=facts["state"],
        run=record.name,
        epochs=facts["epochs"],
        seconds=facts["seconds"],
        metrics=metrics | cost_of(facts),
    )


def cost_of(facts: dict[str, Any]) -> dict[str, float]:
    """Absent from outcomes of before sweeps: the number of parameters."""
    return {f"cost/{name}": float(facts[name]) for name in ("parameters", "seconds") if name in facts}


def history(record: RunRecord) -> dict[str, list[tuple[int, float]]]:
    """Every metric's (epoch, value) pairs, from the run's own record: whole after a resume, too."""
    from fer_lab.tracking.record import read_events

    found: dict[str, list[tuple[int, float]]] = {}
    for event, _ in read_events(record.folder):
        if event["event"] == "metrics":
            for name, value in event["values"].items():
                found.setdefault(name, []).append((event["step"], float(value)))
    return found


def make_checkpoints(cfg: DictConfig, folder: Path, trial: Job | None) -> Checkpoints:
    from fer_lab.learning.callbacks import Checkpoints
    from fer_lab.learning.pruning import Pruning

    if trial is None:
        return Checkpoints(folder, cfg.monitor, cfg.mode)
    return Pruning(folder, cfg.monitor, cfg.mode, trial.report, trial.keeps)


def make_trainer(
    cfg: DictConfig, record: RunRecord, checkpoints: Checkpoints, is_trial: bool = False
) -> pl.Trainer:
    from pytorch_lightning.callbacks import EarlyStopping

    from fer_lab.build import instantiate
    from fer_lab.learning.callbacks import OneBar
    from fer_lab.learning.stopping import Stopping
    from fer_lab.tracking.lightning import RunLogger

    quiet()
    refuse_batch_norm_of_several_cpus(cfg)
    shown = leads() and not is_trial
    callbacks: list[pl.Callback] = [] if is_trial else [Stopping()]
    if shown:
        callbacks.append(OneBar(cfg.monitor))
    if cfg.patience is not None:
        callbacks.append(EarlyStopping(cfg.monitor, mode=cfg.mode, patience=cfg.patience))
    return instantiate(
        cfg.trainer,
        logger=RunLogger(record),
        callbacks=[*callbacks, checkpoints],
        plugins=surroundings(is_trial),
        enable_progress_bar=shown,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(record.folder),
    )


def refuse_batch_norm_of_several_cpus(cfg: DictConfig) -> None:
    from fer_lab.build import device_of

    if cfg.trainer.get("sync_batchnorm") and device_of(cfg).type == "cpu":
        raise UsageError(
            "trainer.sync_batchnorm=true: torch takes batch norm over several processes on GPUs only; "
            "leave it out, and each process norms its own faces"
        )


def surroundings(is_trial: bool) -> list[ClusterEnvironment]:
    """Who starts and ends processes. A trial is one process wherever it runs. In a SLURM job Lightning must not requeue
    that job: what goes on is the run, with the same command or with another worker of its sweep."""
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

    if is_trial:
        return [LightningEnvironment()]
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def quiet() -> None:
    """Lightning's advice is for those who write training loops; its warnings about our own loader do not apply."""
    import logging
    import warnings

    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*treespec.*",
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*in eval mode at the start.*",
        ".*sync_dist=True.*",  # our figures are of the total batch on every process
        ".*Grad strides do not match bucket view strides.*",
    ):
        warnings.filterwarnings("ignore", message)


def run_trainer(
    trainer: pl.Trainer, data: FaceData, module: FerModule, record: RunRecord, resumed: Path | None
) -> None:
    from fer_lab.learning.module import Diverged, LearningError
    from fer_lab.learning.stopping import Stopped
    from fer_lab.slurm import queue_again

    if resumed:
        print(f"continuing run {record.name} from {resumed}")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True if resumed else None)
    except (Diverged, LearningError) as error:
        if (
            not trainer.is_global_zero
        ):  # all processes know the same loss and settings: the first one tells it
            raise SystemExit(0) from None
        if isinstance(error, Diverged):
            record.close("diverged", str(error))
        raise
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes the second of the first
        print(f"\nstopped; the same command continues run {record.name}")
        if isinstance(error, Stopped) and error.goes_on and trainer.is_global_zero:
            queue_again()
        raise
