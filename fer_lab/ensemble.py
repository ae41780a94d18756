"""Several runs as one, `python -m fer_lab.evaluate run=[A,B,C]`: the mean of their predictions for the same faces.

Each run looks at the faces through its own size, channels and views. Cross-validations take part with the predictions
of their folds, none of which was trained on the face it predicts.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fer_lab.data.datamodule import FaceData
    from fer_lab.data.faces import Index
    from fer_lab.data.splits import Split
    from fer_lab.evaluate import Judgement
    from fer_lab.evaluation.uncertainty import Interval

PLACE = "ensembles"
"""Folder beside the runs that holds the figures."""


class Told(NamedTuple):
    """What one run says of a part: `values` (N, K | 2 | K + 2) for the faces at `rows` of its index."""

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    milliseconds: float


class Member(NamedTuple):
    """One run, with what it tells of each part; `data` has the faces, at the run's own size."""

    folder: Path
    classes: tuple[str, ...]
    data: FaceData
    parts: Mapping[str, Told]
    config: DictConfig

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def splits(self) -> list[Split] | None:
        """What it was trained on and judges: of a cross-validation one split a fold, None where a fold's is gone."""
        from fer_lab.folds import FOLDS, fold_splits, read_entries

        if not (self.folder / FOLDS).exists():
            return [self.data.split]
        return fold_splits(self.folder, read_entries(self.folder), self.data.index)


def judge_ensemble(cfg: DictConfig) -> dict[str, Any]:
    """Judges the runs and their mean, part by part; the figures go to runs/ensembles."""
    from fer_lab.clean import without, write_clean
    from fer_lab.data.faces import digest
    from fer_lab.evaluate import judgement_of, note_look, show, write
    from fer_lab.tracking.find import find_run

    folders = [find_run(str(run), Path(cfg.runs_dir), cfg.tracking.uri) for run in cfg.run]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UsageError(
            f"run=[{','.join(map(str, cfg.run))}]: an ensemble needs two runs or more, none of them twice"
        )
    members = [member_of(folder, cfg) for folder in folders]
    refuse_other_tasks(members)
    name = f"{len(members)}-{digest(*sorted(one.name for one in members))[:8]}"
    place = Path(cfg.runs_dir) / PLACE / name
    place.mkdir(parents=True, exist_ok=True)
    first, judgements, gains = members[0], [], {}
    for usage in usages_of(members):
        told = [on_same_faces(first, one, usage) for one in members]
        values, milliseconds = mean([one.values for one in told]), sum(one.milliseconds for one in told)
        rows, index = first.parts[usage].rows, first.data.index
        judgements.append(judgement_of(usage, index, rows, values, milliseconds, first.classes))
        write(judgements[-1], first.data, place)
        copied = copied_for(members, usage, told)
        clean = [] if copied is None else without(judgements[-1], index, copied)
        write_clean(judgements[-1], clean, place)
        if first.classes:
            gains[usage] = compare(members, [one.values for one in told], judgements[-1], index)
    for one in members:
        note_look(one.folder, "ensemble", one.data.index.name, usages_of(members), one.config.views)
    show(judgements, f"the mean of {len(members)} runs")
    (place / "ensemble.json").write_text(
        json.dumps({"runs": [one.name for one in members], "gain": gains}, indent=1)
    )
    print(f"figures and predictions are in {place}")
    return {one.usage: dict(one.scores) for one in judgements}


def member_of(folder: Path, cfg: DictConfig) -> Member:
    from fer_lab.evaluate import named
    from fer_lab.folds import FOLDS

    if not (folder / "config.yaml").exists():
        raise UsageError(f"{folder} has no config.yaml: it did not get as far as a first epoch")
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    if not (folder / FOLDS).exists():
        return member_of_run(folder, saved, cfg)
    if beyond := [key for key in named(cfg) if key != "data.root"]:
        raise UsageError(
            f"{folder.name} is a cross-validation, judged as it was: leave out {', '.join(beyond)}"
        )
    return member_of_folds(folder, saved, cfg)


def member_of_run(folder: Path, saved: DictConfig, cfg: DictConfig) -> Member:
    from fer_lab.evaluate import inference_ms, overridden, predict, rebuild, warn_of_trained_faces

    if not (folder / "best.pt").exists():
        raise UsageError(
            f"{folder} has no best.pt: the run finished no epoch, or a sweep kept no weights of it"
        )
    config = overridden(saved, cfg)
    module, data = rebuild(folder, config)
    warn_of_trained_faces(folder, config, data)
    parts = {}
    for usage in ("validation", "test"):
        if len(rows := getattr(data.split, usage)):
            values = predict(module, data, rows, config.views)
            parts[usage] = Told(rows, values, inference_ms(module, data, rows[:16], config.views))
    return Member(folder, tuple(module.task.classes), data, parts, config)


def member_of_folds(folder: Path, saved: DictConfig, cfg: DictConfig) -> Member:
    import numpy as np

    from fer_lab.build import build_data
    from fer_lab.evaluate import move
    from fer_lab.evaluation.predictions import read_predictions
    from fer_lab.folds import of_fold

    path = folder / "figures/test_predictions.csv"
    if not path.exists():
        raise UsageError(f"{folder.name} has folds that are not trained yet; type its train command again")
    config = of_fold(saved, 0)
    config.cache_dir = cfg.cache_dir
    if cfg.data.root is not None:
        move(config, cfg.data.root)
    known = json.loads((folder / "figures/test.json").read_text())
    data, found = build_data(copy.deepcopy(config)), read_predictions(path, known.get("count"))
    place = {name: row for row, name in enumerate(data.index.names)}
    if missing := [name for name in found.names if name not in place]:
        raise UsageError(
            f"{folder.name} judged {missing[0]} and {len(missing) - 1} others that data.root={config.data.root} lacks"
        )
    rows = np.array([place[name] for name in found.names], dtype=np.int64)
    told = {"test": Told(rows, found.values, known["inference_ms"])}
    return Member(folder, found.classes, data, told, config)


def copied_for(members: list[Member], usage: str, told: list[Told]) -> NDArray[np.bool_] | None:
    """Which faces of the part have a copy in another part of any member's split; None where nobody knows.

    One audit does for all: their faces have the same names, at whatever size.
    """
    import numpy as np

    from fer_lab.clean import audit_of
    from fer_lab.evaluation.audits import Copies

    audits = (audit_of(one.config, one.data.index) for one in members)
    if (audit := next((one for one in audits if one), None)) is None:
        return None
    masks = []
    for one, part in zip(members, told, strict=True):
        if (splits := one.splits) is None:
            return None
        copied = np.zeros(len(one.data.index), dtype=bool)
        for split in splits:
            copies = Copies.of(audit, one.data.index, split)
            copied[getattr(split, usage)[copies.leaked(usage)]] = True
        masks.append(copied[part.rows])
    return np.any(masks, axis=0)


def refuse_other_tasks(members: list[Member]) -> None:
    first = members[0]
    for one in members[1:]:
        if one.classes != first.classes:
            raise UsageError(
                f"{first.name} tells {', '.join(first.classes) or 'no expressions'} apart, {one.name} "
                f"{', '.join(one.classes) or 'none'}: an ensemble needs the same classes in the same order"
            )
        widths = [next(iter(member.parts.values())).values.shape[1] for member in (first, one)]
        if widths[0] != widths[1]:
            raise UsageError(f"of {first.name} and {one.name} only one tells valence and arousal")


def usages_of(members: list[Member]) -> list[str]:
    """The parts that all of them judge."""
    shared = [usage for usage in ("validation", "test") if all(usage in one.parts for one in members)]
    if not shared:
        parts = "; ".join(f"{one.name}: {', '.join(one.parts)}" for one in members)
        raise UsageError(
            f"the runs judge no part in common ({parts}): give them one split, such as split=official"
        )
    return shared


def on_same_faces(first: Member, one: Member, usage: str) -> Told:
    """`one`'s predictions in the order of `first`'s faces, which must have the same names and labels."""
    import numpy as np

    from fer_lab.data.faces import digest

    def faces(member: Member) -> list[str]:
        index, rows = member.data.index, member.parts[usage].rows
        return [f"{index.names[row]}={index.classes[index.labels[row]]}" for row in rows]

    wanted, had = faces(first), faces(one)
    if digest(*sorted(wanted)) != digest(*sorted(had)):
        shared = len(set(wanted) & set(had))
        raise UsageError(
            f"{first.name} and {one.name} judge other {usage} faces ({len(wanted)} and {len(had)}, {shared} of them the "
            "same with the same label): train them with one data set and split, or name both here (data=… split=…)"
        )
    place = {face: row for row, face in enumerate(had)}
    order = np.array([place[face] for face in wanted])
    told = one.parts[usage]
    return Told(told.rows[order], told.values[order], told.milliseconds)


def mean(values: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    import numpy as np

    return np.mean(np.stack(values).astype(np.float64), axis=0).astype(np.float32)


def compare(
    members: list[Member],
    values: list[NDArray[np.float32]],
    ensemble: Judgement,
    index: Index,
) -> dict[str, Any]:
    """The accuracy of each run, and how much the mean gains over the best of them on the same faces."""
    from fer_lab.evaluation.uncertainty import bootstrap, people_on

    width = len(ensemble.classes)
    hits = [found[:, :width].argmax(1) == ensemble.labels for found in values]
    rates = {one.name: float(hit.mean()) for one, hit in zip(members, hits, strict=True)}
    best = max(rates, key=lambda name: rates[name])
    alone = hits[list(rates).index(best)]
    change = (ensemble.probabilities.argmax(1) == ensemble.labels).astype(float) - alone
    people = people_on(index, ensemble.rows)
    interval = bootstrap(lambda drawn: float(change[drawn].mean()), len(change), people)
    say_gain(ensemble.usage, rates, best, float(change.mean()), interval)
    return {"accuracies": rates, "best": best, "gain": float(change.mean()), "interval_95": list(interval)}


def say_gain(usage: str, rates: dict[str, float], best: str, gain: float, interval: Interval) -> None:
    each = ", ".join(f"{name} {rate:.4f}" for name, rate in rates.items())
    print(
        f"{usage} accuracy alone: {each}\n{usage} gain over the best of them ({best}) on the same faces: {gain:+.4f} "
        f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    )
