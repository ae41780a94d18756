"""python -m fer_lab.export run=ID [formats=[…]] [swap=…] [output=DIR]: a trained net as files that need no run."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError, main, near

if TYPE_CHECKING:
    from fer_lab.exporting.facts import Facts
    from fer_lab.exporting.files import Trained, Written
    from fer_lab.learning.tasks import Task

FORMATS = ("pt2", "onnx", "text")
PRECISIONS = ("float16", "bfloat16", "tf32", "float32")
FACES = 64
"""Real validation faces that every file has to tell as the trained net does."""


def export(cfg: DictConfig) -> list[Path]:
    """The files of a run, or the program of a folder of text weights: all that was asked for, or nothing."""
    formats = refuse_what_cannot_be(cfg)
    if cfg.text is not None:
        return [export_text(Path(cfg.text).expanduser(), cfg)]
    folder, saved = find(cfg)

    from fer_lab.exporting import program
    from fer_lab.exporting.files import WRITERS, staged, why_not, write_swapped

    trained = judge_trained(folder, saved)
    output = Path(cfg.output).expanduser() if cfg.output else folder / "export"
    with staged(output) as stage:
        traced = program.trace(trained.predictor, trained.facts)
        written = []
        for name in formats:
            if cfg.formats is None and (reason := why_not(name, trained)):
                print(f"no {name}: {reason}")
            else:
                written.append(WRITERS[name](traced, trained, stage))
        if cfg.swap:
            written.append(write_swapped(traced, trained, stage, cfg.swap))
    show(written, output)
    return [output / one.name for one in written]


def refuse_what_cannot_be(cfg: DictConfig) -> list[str]:
    """The formats to write: all where none are named. Before anything heavy is imported."""
    from fer_lab.exporting.onnx import missing

    named = [cfg.formats] if isinstance(cfg.formats, str) else list(cfg.formats or [])
    faults = [
        f"{key}={word}: no such {what}{near(str(word), known)}; choices: {', '.join(known)}"
        for key, what, words, known in (
            ("formats", "format", named, FORMATS),
            ("swap", "precision", [] if cfg.swap is None else [cfg.swap], PRECISIONS),
        )
        for word in words
        if word not in known
    ]
    if (cfg.run is None) == (cfg.text is None):
        faults.append("name a trained run (run=ID) or a folder of text weights (text=FOLDER): one of them")
    if "onnx" in named and missing():
        faults.append(missing())
    if faults:
        raise UsageError("\n".join(faults))
    return [name for name in FORMATS if name in (named or FORMATS)]


def find(cfg: DictConfig) -> tuple[Path, DictConfig]:
    """The run's folder and its config, with what the command line names in place of the run's own."""
    from fer_lab.evaluate import overridden
    from fer_lab.finished import refuse_without_net
    from fer_lab.tracking.find import find_run

    folder = find_run(str(cfg.run), Path(cfg.runs_dir), cfg.tracking.uri)
    refuse_without_net(folder)
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    saved.trainer.accelerator = "cpu"  # a GPU's rounding is not the file's
    return folder, overridden(saved, cfg)


def judge_trained(folder: Path, config: DictConfig) -> Trained:
    """The run's net as a predictor, and what it said before that about real faces which it has not learned."""
    import numpy as np
    import torch

    from fer_lab.evaluate import rebuild
    from fer_lab.exporting.files import Trained
    from fer_lab.exporting.predictor import Predictor, fold
    from fer_lab.train import set_threads

    set_threads(config.threads)
    module, data = rebuild(folder, config)
    module.eval()
    count = len(data.split.validation)
    rows = data.split.validation[np.linspace(0, count - 1, min(count, FACES)).astype(int)]
    batches = data.evaluation(rows, config.views, module.device, as_images=True)
    expected = torch.cat([module.predictions(batch) for batch in batches])
    pixels = torch.from_numpy(data.cache.images[rows])
    views = data.augment.test_views(pixels[:8], config.views).flatten(0, 1)
    folded = fold(module.judged, module.preprocess(views))
    kept = f", {len(folded.kept)} kept that follow no layer alone" if folded.kept else ""
    faces = f"{len(rows)} validation faces of {data.index.name}"
    print(f"{folder.name}, {folded.norms} batch norms folded{kept}; held against it on {faces}")
    task, crop = module.task, data.augment.crop
    predictor = Predictor(folded.net, module.preprocess, config.views, crop, task.predictions)
    return Trained(predictor, facts_of(folder, config, task), pixels, expected)


def facts_of(folder: Path, config: DictConfig, task: Task) -> Facts:
    """Out of the run's folder alone, but for the framing of pictures that nobody has looked at yet (fer_lab.framing)."""
    from fer_lab.evaluation.calibration import read_temperature
    from fer_lab.exporting.facts import Facts
    from fer_lab.framing import framing_of
    from fer_lab.tracking.record import RunRecord

    crop = str(config.data.get("crop", "none"))
    framing = None if crop == "haar" else framing_of(folder, config)
    return Facts(
        run=folder.resolve().name,
        net=str(config.model.net._target_),
        classes=task.classes,
        size=int(config.data.size),
        channels=int(config.data.channels),
        affect=task.needs_affect,
        views=str(config.views),
        crop=config.augment.get("crop"),
        commit=RunRecord(folder).tag("git.commit") or "",
        checkpoint=hashlib.sha256((folder / "best.pt").read_bytes()).hexdigest(),
        versions={name: version(name) for name in ("fer_lab", "torch")},
        temperature=fitted.value if (fitted := read_temperature(folder)) else None,
        face_crop=crop,
        margin=framing.margin if framing else 0.0 if crop == "none" else float(config.data.margin),
        framed=framing.found if framing else 0,
    )


def export_text(folder: Path, cfg: DictConfig) -> Path:
    """model.pt2 of a folder of text weights."""
    from fer_lab.exporting.files import size_of, staged, write_program_of_text

    output = Path(cfg.output).expanduser() if cfg.output else folder
    with staged(output) as stage:
        path = output / write_program_of_text(folder, stage).name
    print(f"{path} ({megabytes(size_of(path))}) has the weights of {folder}, bit for bit")
    print(f'next: fer_lab.exporting.program.load("{path}")(pixels)')
    return path


def show(written: list[Written], output: Path) -> None:
    """The closing table, and what to type next."""
    from rich.console import Console
    from rich.table import Table

    from fer_lab.exporting.files import size_of

    table = Table("file")
    table.columns[0].overflow = "fold"
    for column in ("size", "largest difference", "top-1 agrees"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in written:
        agreement = f"{one.difference.agreeing} of {one.difference.faces}"
        size = megabytes(size_of(output / one.name))
        table.add_row(one.name, size, f"{one.difference.largest:.1e}", agreement)
    Console().print(table)
    print(f"in {output}; next, with pixels (batch, channels, size, size), uint8:")
    for one in written:
        print(f"  {one.use}".replace("…/", f"{output}/"))


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


if __name__ == "__main__":
    main(export, "export")
