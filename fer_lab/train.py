"""python -m fer_lab.train [group=choice] [key=value]: train one model, judge it once, track it all."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import ROOT, UsageError, main
from fer_lab.fit import Result
from fer_lab.ranks import launched, leads, one_voice
from fer_lab.slurm import watch

if TYPE_CHECKING:
    from fer_lab.data.datamodule import FaceData
    from fer_lab.evaluate import Judgement
    from fer_lab.learning.module import FerModule
    from fer_lab.search.host import Job
    from fer_lab.tracking.record import RunRecord

    Ending = Callable[[FerModule, FaceData, RunRecord, str], None]


def run(cfg: DictConfig) -> Result:
    """The command: of several processes that train one net the first alone is heard."""
    watch()
    with one_voice():
        return train(cfg)


def train(cfg: DictConfig, trial: Job | None = None, ending: Ending | None = None) -> Result:
    """Trains what `cfg` describes, or finds or continues that very run.

    As a trial of a sweep it does only what the sweep compares by: no test faces, no figures, weights only if the trial
    keeps them; a fold of a cross-validation adds its own `ending`. The same settings without a trial make a whole run
    of it. With split.fold=all it does so for every fold.
    """
    if trial is None and cfg.split.get("fold") == "all":
        from fer_lab.folds import cross_validate

        return cross_validate(cfg)
    refuse_what_cannot_be(cfg, alone=trial is not None)
    if trial:
        collect_garbage()
    from fer_lab.build import build_data, build_module, device_of, make_net, signature, starting_weights
    from fer_lab.describe import describe, judge_once
    from fer_lab.fit import fit
    from fer_lab.tracking.address import tracking_uri
    from fer_lab.tracking.forward import tracked
    from fer_lab.tracking.record import RunRecord, open_run, reconcile

    uri, runs = tracking_uri(cfg.tracking.uri), Path(cfg.runs_dir)
    data = build_data(cfg)

    # imports torch: only now, when nothing is wrong with the data
    from fer_lab.frozen import net_on_shared_backbone, use_frozen_features

    set_threads(cfg.threads)
    weights, weights_digest = starting_weights(cfg, uri)
    identity = signature(cfg, data, weights_digest)
    keeps_record = trial is not None or leads()
    if trial is None and keeps_record:
        reconcile(runs)
    name = run_name(cfg, runs, identity)
    with open_run(runs, name, identity) if keeps_record else RunRecord(runs / name) as record:
        if known := found_again(record, cfg, trial):
            return known
        make = net_on_shared_backbone if trial else make_net
        module = build_module(cfg, data, weights, make).to(device_of(cfg))
        if not keeps_record:
            return follow(cfg, data, module, record)
        if trial:
            record.tags(
                {"mlflow.runName": trial.name} | ({"fer.parent": trial.parent} if trial.parent else {})
            )
        with tracked(record, uri, cfg.tracking.experiment, linger=trial is not None):
            describe(record, cfg, data, trial)
            if cfg.cache_features:
                use_frozen_features(data, module, cfg.cache_dir)
            result = fit(cfg, data, module, record, trial)
            if result.state == "pruned":
                record.close("pruned", f"after {result.epochs} of {cfg.trainer.max_epochs} epochs")
            module.to(device_of(cfg))  # Lightning leaves it on the CPU
            if ending:
                ending(module, data, record, cfg.views)
            if trial:
                return result
            judgements = judge_once(cfg, data, module, record)
        conclude(record, judgements)
        return result


def follow(cfg: DictConfig, data: FaceData, module: FerModule, record: RunRecord) -> Result:
    """What the other processes of a run do: they train, and leave its record and its judgement to the first."""
    from fer_lab.fit import fit
    from fer_lab.frozen import use_frozen_features

    if cfg.cache_features:
        use_frozen_features(data, module, cfg.cache_dir)
    return fit(cfg, data, module, record)


def refuse_what_cannot_be(cfg: DictConfig, alone: bool) -> None:
    """`alone`: in one process on one device."""
    if cfg.mode not in ("max", "min"):
        raise UsageError(f"mode={cfg.mode}; choices: max, min")
    wrong = settings_of_several_processes(cfg)
    if not alone and not wrong and not leads():
        raise UsageError(
            "several processes were started, and these settings train in one: choose trainer=ddp or trainer=slurm, or "
            "start one process"
        )
    if not alone and cfg.trainer.get("num_nodes") not in (None, 1) and not launched():
        raise UsageError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}, and nothing started this process on several machines: it would "
            "wait for the others; python -m fer_lab.slurm with the same words writes a job that starts all of them, "
            "and so do torchrun, or MASTER_ADDR, MASTER_PORT and NODE_RANK on each machine"
        )
    if alone and wrong:
        raise UsageError(
            f"{', '.join(wrong)}: a trial trains in one process on one device, since Lightning would start the sweep "
            "again in the others; leave it out and use hydra.sweeper.workers=N, one for each GPU"
        )


def settings_of_several_processes(cfg: DictConfig) -> list[str]:
    expected = {
        "devices": lambda value: value in (1, "1") or (OmegaConf.is_list(value) and len(value) == 1),
        "num_nodes": lambda value: value in (None, 1),
        "strategy": lambda value: value in (None, "auto"),
    }
    return [
        f"trainer.{key}={cfg.trainer.get(key)}"
        for key, fits in expected.items()
        if not fits(cfg.trainer.get(key))
    ]


def collect_garbage() -> None:
    """The nets of earlier trials hang in Lightning's circles. A long walk is one over what imports made, which stays."""
    start = time.monotonic()
    gc.collect()
    if time.monotonic() - start > 0.05:
        gc.freeze()


def set_threads(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def run_name(cfg: DictConfig, runs: Path, identity: str) -> str:
    """The settings' own name; with rerun=true the first after it whose run has not ended."""
    from fer_lab.tracking.record import RunRecord

    name = f"{cfg.name}-{identity[:8]}"
    number = 2
    while cfg.rerun and RunRecord(runs / name).standing == "finished":
        name, number = f"{cfg.name}-{identity[:8]}-{number}", number + 1
    return name


def found_again(record: RunRecord, cfg: DictConfig, trial: Job | None) -> Result | None:
    """The answer, where these settings, data and weights were trained before as far as is wanted now."""
    from fer_lab.describe import is_judged
    from fer_lab.fit import result_of
    from fer_lab.tracking.environment import code_state

    if record.standing != "finished":
        return None
    if record.last_state == "diverged":
        refuse_diverged(record, trial)
    if trial:
        return result_of(record)
    if record.last_state == "pruned" or not is_judged(record):  # a sweep trained it, and needed no more of it
        return None
    result = result_of(record)
    print("these settings, data and weights were trained before (rerun=true trains them again)")
    before, now = record.tag("git.commit"), code_state(ROOT).tags.get("git.commit")
    if before != now:
        print(f"they were trained with the code of commit {before}; this is {now}")
    print_next(record.name, cfg.monitor, result.score)
    return result


def refuse_diverged(record: RunRecord, trial: Job | None) -> None:
    if trial:
        from fer_lab.learning.module import Diverged

        raise Diverged(record.reason)
    raise UsageError(f"run {record.name} diverged with exactly these settings; change one, or rerun=true")


def conclude(record: RunRecord, judgements: list[Judgement]) -> None:
    from fer_lab.evaluate import show
    from fer_lab.fit import outcome_of

    facts = outcome_of(record)
    show(
        judgements,
        f"{record.name}, best epoch {facts['best_epoch']} of {facts['epochs']} (from 0), {facts['seconds']} s",
    )
    if judgements[-1].usage == "validation":
        print(
            "this split has no test part: the figures are of the faces that chose the epoch, so they flatter"
        )
    print_next(record.name, "best validation score", facts["best_score"])


def print_next(name: str, what: str, score: float) -> None:
    print(f"{what} {score:.4f} · run {name} · next: python -m fer_lab.evaluate run={name} · make ui")


if __name__ == "__main__":
    main(run, "train")
