"""What a run says about itself: everything known before the first step, and the judgement after the last."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import ROOT
from fer_lab.tracking.record import flatten

if TYPE_CHECKING:
    from fer_lab.data.datamodule import FaceData
    from fer_lab.evaluate import Judgement
    from fer_lab.learning.module import FerModule
    from fer_lab.search.host import Job
    from fer_lab.tracking.record import RunRecord


def describe(record: RunRecord, cfg: DictConfig, data: FaceData, trial: Job | None = None) -> None:
    """Config, data, split, code, machine and, unless it is a trial, a look at the faces and the changes to the code."""
    from fer_lab.tracking.environment import environment, log_environment

    write_config(record, cfg)
    write_data(record, cfg, data)
    if trial:
        record.tags(environment(ROOT) | dict(trial.tags))
        return
    first = record.tag("command")
    log_environment(record, ROOT)
    if first:  # the trial's, where a sweep judges its winner
        record.tags({"command": first, "mlflow.source.name": first})
    write_split(record, data)
    write_faces(record, data)
    for path in ("split.json", "figures/faces.png"):
        record.artifact(path)


def write_config(record: RunRecord, cfg: DictConfig) -> None:
    """The resolved config as a file and as params, first those of the command line."""
    from fer_lab.tracking.address import redacted

    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    settings["tracking"]["uri"] = (
        redacted(settings["tracking"]["uri"] or "") or None
    )  # no password in a file or store
    OmegaConf.save(settings, record.folder / "config.yaml")
    chosen = [text.partition("=")[0].lstrip("+~") for text in HydraConfig.get().overrides.task]
    flat = flatten(settings)
    record.params({key: flat[key] for key in chosen if key in flat} | flat)
    record.artifact("config.yaml")


def write_data(record: RunRecord, cfg: DictConfig, data: FaceData) -> None:
    import torch

    from fer_lab.build import load_data
    from fer_lab.clean import audit_of

    loaded = load_data(cfg)
    if audit := audit_of(cfg, data.index):
        record.tags({"fer.audit": audit.digest})
    record.tags(
        {
            "fer.signature": record.signature,
            "fer.split": loaded.split_digest,
            "fer.mixes_subjects": data.split.mixes_subjects,
            "fer.skipped_files": len(data.cache.skipped),
            "fer.threads": torch.get_num_threads(),
        }
    )
    for part in loaded.parts:
        source = str(cfg.data.root or "")
        record.dataset(data.index.name, part.digest, part.usage, part.counts, source)


def write_split(record: RunRecord, data: FaceData) -> None:
    (record.folder / "split.json").write_text(json.dumps(data.split.manifest(data.index), indent=0))


def write_faces(record: RunRecord, data: FaceData) -> None:
    import torch

    from fer_lab import figures

    rows = data.split.train[:: max(1, len(data.split.train) // 32)][:32]
    faces = data.augment.apply(
        torch.from_numpy(data.cache.images[rows]),
        data.augment.draw(len(rows), torch.Generator().manual_seed(0)),
    )
    titles = [data.index.classes[label] for label in data.index.labels[rows]]
    figures.save(
        figures.face_sheet(faces.numpy(), titles, title="Training faces, augmented"),
        record.folder / "figures/faces.png",
    )


def judge_once(cfg: DictConfig, data: FaceData, module: FerModule, record: RunRecord) -> list[Judgement]:
    """Validation and, this one time, test: scores and figures of the best weights into the run."""
    from fer_lab import figures
    from fer_lab.clean import clean_part
    from fer_lab.evaluate import judge, write
    from fer_lab.fit import best_weights, history, outcome_of
    from fer_lab.models.weights import read

    module.judged.load_state_dict(read(best_weights(record)))
    epoch = outcome_of(record)["best_epoch"]
    figures.save(figures.curves(history(record), best=epoch), record.folder / "figures/curves.png")
    record.artifact("figures/curves.png")
    judgements = []
    for usage in ("validation", "test"):
        if not len(getattr(data.split, usage)):
            continue
        judgement = judge(module, data, usage, cfg.views)
        for path in write(judgement, data, record.folder / "figures"):
            record.artifact(path)
        record.metrics(final_figures(judgement), step=epoch)
        keep_clean(record, judgement, clean_part(cfg, judgement, data), epoch)
        judgements.append(judgement)
    record.artifact("best.pt")
    record.artifact("fit.json")
    return judgements


def keep_clean(record: RunRecord, whole: Judgement, found: list[Judgement], step: int) -> None:
    """The figures of the faces without copies, where an audit found them, into the run."""
    from fer_lab.clean import write_clean

    for path in write_clean(whole, found, record.folder / "figures"):
        record.artifact(path)
    for clean in found:
        count = {f"final/{clean.usage}_count": float(len(clean.rows))}
        record.metrics(final_figures(clean) | count, step=step)


def final_figures(judgement: Judgement) -> dict[str, float]:
    """Scores and the bounds of their intervals, as the run logs them."""
    bounds = {
        f"{name}_{end}": value
        for name, interval in judgement.intervals.items()
        for end, value in interval._asdict().items()
        if value == value  # nan: undefined
    }
    named = dict(judgement.scores) | bounds
    return {f"final/{judgement.usage}_{name}": value for name, value in named.items()}


def is_judged(record: RunRecord) -> bool:
    return (record.folder / "figures/validation.json").exists()
