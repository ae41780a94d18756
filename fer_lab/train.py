"""python -m fer_lab.train [group=choice] [key=value]: train one model, judge it once, track it all."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import ROOT, UsageError, main

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from fer_lab.data.datamodule import FaceData
    from fer_lab.evaluate import Judgement
    from fer_lab.learning.module import FerModule
    from fer_lab.tracking.record import RunRecord


def train(cfg: DictConfig) -> float:
    """Trains what `cfg` describes, or finds or continues that very run; the best monitored score."""
    if cfg.mode not in ("max", "min"):
        raise UsageError(f"mode={cfg.mode}; choices: max, min")
    from fer_lab.build import build_data, build_module, device_of, signature, use_frozen_features
    from fer_lab.tracking.address import tracking_uri
    from fer_lab.tracking.forward import tracked
    from fer_lab.tracking.record import open_run, reconcile

    uri, runs = tracking_uri(cfg.tracking.uri), Path(cfg.runs_dir)
    data = build_data(cfg)
    set_threads(cfg.threads)
    weights, weights_digest = starting_weights(cfg, uri)
    identity = signature(cfg, data, weights_digest)
    reconcile(runs)
    with open_run(runs, run_name(cfg, runs, identity), identity) as record:
        if record.standing == "finished":
            return found_again(record, cfg)
        module = build_module(cfg, data, weights).to(device_of(cfg))
        with tracked(record, uri, cfg.tracking.experiment):
            describe(record, cfg, data)
            if cfg.cache_features:
                use_frozen_features(data, module, cfg.cache_dir)
            fit(cfg, data, module, record)
            module.to(device_of(cfg))  # Lightning leaves it on the CPU
            judgements = judge_once(cfg, data, module, record)
        return conclude(record, judgements)


def set_threads(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def starting_weights(cfg: DictConfig, uri: str) -> tuple[str | None, str]:
    """What model.weights means here: imagenet, a path or None; and a digest of it for the signature."""
    import hashlib

    from fer_lab.tracking.find import find_run

    if cfg.model.weights is None or cfg.model.weights == "imagenet":
        return cfg.model.weights, str(cfg.model.weights)
    weights = str(cfg.model.weights)
    path = (
        find_run(weights, Path(cfg.runs_dir), uri) / "best.pt"
        if weights.startswith("runs:/")
        else Path(weights)
    )
    content = path.expanduser().read_bytes() if path.expanduser().is_file() else b""
    return str(path), hashlib.sha256(content).hexdigest()


def run_name(cfg: DictConfig, runs: Path, identity: str) -> str:
    """The settings' own name; with rerun=true the first after it whose run has not ended."""
    from fer_lab.tracking.record import RunRecord

    name = f"{cfg.name}-{identity[:8]}"
    number = 2
    while cfg.rerun and RunRecord(runs / name).standing == "finished":
        name, number = f"{cfg.name}-{identity[:8]}-{number}", number + 1
    return name


def found_again(record: RunRecord, cfg: DictConfig) -> float:
    """These settings, data and weights were trained before: the answer is known."""
    if record.last_state == "diverged":
        raise UsageError(f"run {record.name} diverged with exactly these settings; change one, or rerun=true")
    from fer_lab.tracking.environment import CodeState

    score = float(json.loads((record.folder / "fit.json").read_text())["best_score"])
    print("these settings, data and weights were trained before (rerun=true trains them again)")
    before, now = record.tag("git.commit"), CodeState(ROOT).tags.get("git.commit")
    if before != now:
        print(f"they were trained with the code of commit {before}; this is {now}")
    print_next(record.name, cfg.monitor, score)
    return score


def describe(record: RunRecord, cfg: DictConfig, data: FaceData) -> None:
    """Everything that is known before the first step: config, data, split, code, machine, a look at the faces."""
    import torch

    from fer_lab import figures
    from fer_lab.data.faces import USAGES, digest
    from fer_lab.tracking.address import redacted
    from fer_lab.tracking.environment import log_environment

    folder = record.folder
    settings = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    settings.tracking.uri = redacted(settings.tracking.uri or "") or None  # no password in a file or a store
    OmegaConf.save(settings, folder / "config.yaml")
    (folder / "split.json").write_text(json.dumps(data.split.manifest(data.index), indent=0))
    chosen = [text.partition("=")[0].lstrip("+~") for text in HydraConfig.get().overrides.task]
    first = {key: value for key in chosen if (value := OmegaConf.select(settings, key)) is not None}
    for values in ({key: value for key, value in first.items() if not OmegaConf.is_config(value)}, settings):
        record.params(OmegaConf.to_container(OmegaConf.create(values)))  # type: ignore[arg-type]
    record.tags(
        {
            "fer.signature": record.signature,
            "fer.split": data.split.digest(data.index),
            "fer.mixes_subjects": data.split.mixes_subjects,
            "fer.skipped_files": len(data.cache.skipped),
        }
    )
    for usage in USAGES:
        rows = getattr(data.split, usage)
        if len(rows):
            part = data.index.subset(rows)
            source = str(cfg.data.root or "")
            record.dataset(part.name, digest(part.digest, *part.names), usage, part.counts(), source)
    log_environment(record, ROOT)
    rows = data.split.train[:: max(1, len(data.split.train) // 32)][:32]
    faces = data.augment.apply(
        torch.from_numpy(data.cache.images[rows]),
        data.augment.draw(len(rows), torch.Generator().manual_seed(0)),
    )
    titles = [data.index.classes[label] for label in data.index.labels[rows]]
    figures.save(
        figures.face_sheet(faces.numpy(), titles, title="Training faces, augmented"),
        folder / "figures/faces.png",
    )
    for path in ("config.yaml", "split.json", "figures/faces.png"):
        record.artifact(path)


def fit(cfg: DictConfig, data: FaceData, module: FerModule, record: RunRecord) -> None:
    """Trains to the last epoch or early stop, from the last checkpoint where there is one; loads the best weights."""
    from fer_lab.learning.callbacks import Checkpoints, replace
    from fer_lab.models.weights import read

    checkpoints = Checkpoints(record.folder, cfg.monitor, cfg.mode)
    outcome = record.folder / "fit.json"
    if not outcome.exists() or record.last_state is None:
        start = time.monotonic()
        trainer = make_trainer(cfg, record, checkpoints)
        resumed = checkpoints.last if checkpoints.last.exists() else None
        run_trainer(trainer, data, module, record, resumed)
        facts = {
            "best_score": checkpoints.sign * checkpoints.best_score,
            "best_epoch": checkpoints.best_epoch,
            "epochs": trainer.current_epoch,
            "seconds": round(time.monotonic() - start, 1),
            "resumed": resumed is not None,
        }
        replace(outcome, lambda path: path.write_text(json.dumps(facts)))
        checkpoints.last.unlink(missing_ok=True)
    module.judged.load_state_dict(read(checkpoints.best))


def make_trainer(cfg: DictConfig, record: RunRecord, checkpoints: Any) -> pl.Trainer:
    from pytorch_lightning.callbacks import EarlyStopping

    from fer_lab.build import instantiate
    from fer_lab.learning.callbacks import OneBar
    from fer_lab.tracking.lightning import RunLogger

    quiet()
    callbacks: list[pl.Callback] = [OneBar(cfg.monitor)]
    if cfg.patience is not None:
        callbacks.append(EarlyStopping(cfg.monitor, mode=cfg.mode, patience=cfg.patience))
    return instantiate(
        cfg.trainer,
        logger=RunLogger(record),
        callbacks=[*callbacks, checkpoints],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(record.folder),
    )


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
    ):
        warnings.filterwarnings("ignore", message)


def run_trainer(
    trainer: pl.Trainer, data: FaceData, module: FerModule, record: RunRecord, resumed: Path | None
) -> None:
    from fer_lab.learning.module import Diverged

    if resumed:
        print(f"continuing run {record.name} from {resumed}")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True if resumed else None)
    except Diverged as error:
        record.close("diverged", str(error))
        raise
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first, and of SIGTERM
        print(f"\nstopped; the same command continues run {record.name}")
        raise


def judge_once(cfg: DictConfig, data: FaceData, module: FerModule, record: RunRecord) -> list[Judgement]:
    """Validation and, this one time, test: scores and figures into the run."""
    from fer_lab import figures
    from fer_lab.evaluate import judge, write

    epoch = json.loads((record.folder / "fit.json").read_text())["best_epoch"]
    figures.save(figures.curves(history(record), best=epoch), record.folder / "figures/curves.png")
    record.artifact("figures/curves.png")
    judgements = []
    for usage in ("validation", "test"):
        if not len(getattr(data.split, usage)):
            continue
        judgement = judge(module, data, usage, cfg.views)
        for path in write(judgement, data, record.folder / "figures"):
            record.artifact(path)
        final = {f"{usage}_{name}": value for name, value in judgement.scores.items()}
        bounds = {
            f"{usage}_{name}_{end}": value
            for name, interval in judgement.intervals.items()
            for end, value in interval._asdict().items()
            if value == value  # nan: undefined
        }
        record.metrics({f"final/{name}": value for name, value in (final | bounds).items()}, step=epoch)
        judgements.append(judgement)
    record.artifact("best.pt")
    record.artifact("fit.json")
    return judgements


def history(record: RunRecord) -> dict[str, list[tuple[int, float]]]:
    """Every metric's (epoch, value) pairs, from the run's own record: whole after a resume, too."""
    from fer_lab.tracking.record import read_events

    found: dict[str, list[tuple[int, float]]] = {}
    for event, _ in read_events(record.folder):
        if event["event"] == "metrics":
            for name, value in event["values"].items():
                found.setdefault(name, []).append((event["step"], float(value)))
    return found


def conclude(record: RunRecord, judgements: list[Judgement]) -> float:
    from fer_lab.evaluate import show

    facts = json.loads((record.folder / "fit.json").read_text())
    show(
        judgements,
        f"{record.name}, best epoch {facts['best_epoch']} of {facts['epochs']} (from 0), {facts['seconds']} s",
    )
    if judgements[-1].usage == "validation":
        print(
            "this split has no test part: the figures are of the faces that chose the epoch, so they flatter"
        )
    print_next(record.name, "best validation score", facts["best_score"])
    return float(facts["best_score"])


def print_next(name: str, what: str, score: float) -> None:
    print(f"{what} {score:.4f} · run {name} · next: python -m fer_lab.evaluate run={name} · make ui")


if __name__ == "__main__":
    main(train, "train")
