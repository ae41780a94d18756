"""Which of several runs is better on the same faces: `python -m fer_lab.report compare=[A,B,…]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fer_lab.cli import UsageError
from fer_lab.tables import Table, bounds, percent, write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fer_lab.evaluation.contrasts import Contrast
    from fer_lab.evaluation.paired import Duel
    from fer_lab.evaluation.uncertainty import Interval
    from fer_lab.finished import Finished, Part


@dataclass(frozen=True)
class Field:
    """Runs that judged the same faces: `labels` (N,) are their true classes as indices of `classes`, `chosen` (N,) what
    each run said, `subjects` whose faces they are (None where that is not known)."""

    data: str
    usage: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    chosen: Mapping[str, NDArray[np.int64]]
    subjects: Sequence[str] | None
    notes: Sequence[str] = ()

    @cached_property
    def right(self) -> dict[str, NDArray[np.bool_]]:
        """By run, the best first."""
        found = {name: chosen == self.labels for name, chosen in self.chosen.items()}
        return dict(sorted(found.items(), key=lambda entry: -entry[1].mean()))

    @cached_property
    def duels(self) -> list[Duel]:
        from fer_lab.evaluation.paired import duels

        return duels(self.right, self.subjects)

    def intervals(self, name: str) -> dict[str, Interval]:
        from fer_lab.evaluation.uncertainty import bootstrap_confusion

        return bootstrap_confusion(self.labels, self.chosen[name], len(self.classes), self.subjects)


def compare(cfg: DictConfig) -> Path:
    """Prints the standings and every pair, and writes them with a figure to `output`."""
    from fer_lab import figures

    field = read_field(cfg)
    tables = [standings(field), pairs(field), by_class(field)]
    for table in tables:
        table.show()
    folder = Path(cfg.output or "reports/compare").expanduser()
    figures.save(picture(field), folder / "compare.png")
    title = f"{len(field.right)} runs on {len(field.labels):,} {field.usage} faces of {field.data}"
    page = write(folder, "compare", title, tables, ["compare.png"])
    for pair in field.duels:
        print(pair.sentence)
    print(f"the comparison is in {page}, compare.csv and compare.png beside it")
    return page


def read_field(cfg: DictConfig) -> Field:
    """The runs' predictions of the faces that all of them judged; UsageError where there is nothing to compare."""
    from fer_lab.finished import read_run
    from fer_lab.tracking.find import find_run

    specs = [cfg.compare] if isinstance(cfg.compare, str) else [str(spec) for spec in cfg.compare]
    folders = [find_run(spec, Path(cfg.runs_dir), cfg.tracking.uri) for spec in specs]
    runs = {folder.resolve(): read_run(folder) for folder in folders}
    if len(runs) < 2:
        raise UsageError(f"compare={specs}: name two runs or more, such as compare=[A,B]")
    return common(list(runs.values()))


def common(runs: Sequence[Finished]) -> Field:
    import numpy as np

    from fer_lab.ours import is_drawn

    usage, called = shared_usage(runs), names_of(runs)
    parts = {name: run.parts[usage] for name, run in zip(called, runs, strict=True)}
    refuse_other_data(runs, usage)
    places = {name: dict(zip(part.names, range(len(part)), strict=True)) for name, part in parts.items()}
    first, *others = parts.values()
    names = [name for name in first.names if all(name in place for place in places.values())]
    refuse_nothing_common(parts, names)
    classes = first.classes + tuple(
        dict.fromkeys(one for part in others for one in part.classes if one not in first.classes)
    )
    rows = {run: np.array([place[name] for name in names]) for run, place in places.items()}
    number = {run: np.array([classes.index(one) for one in part.classes]) for run, part in parts.items()}
    labels = {run: number[run][part.labels[rows[run]]] for run, part in parts.items()}
    true = labels[called[0]]
    refuse_other_labels(labels)
    chosen = {run: number[run][part.predicted[rows[run]]] for run, part in parts.items()}
    subjects, notes = subjects_of(runs[0], names)
    sizes = ", ".join(f"{run} {len(part):,}" for run, part in parts.items())
    if any(len(part) != len(names) for part in parts.values()):
        notes = [
            f"The runs did not judge the same faces ({sizes}): compared on the {len(names):,} of all.",
            *notes,
        ]
    if usage == "validation":
        notes = [CHOSEN, *notes]
    data = next(iter(part["name"] for part in runs[0].datasets.values()), "unnamed data")
    data = f"{data}, DRAWN by fer_lab" if is_drawn(runs[0].config) else data
    return Field(data, usage, classes, true, chosen, subjects, notes)


CHOSEN = "These are validation faces, which chose the epoch of each run: every figure here flatters."


def names_of(runs: Sequence[Finished]) -> list[str]:
    """The name of each run's folder, or its whole path where another run has the same."""
    names = [run.name for run in runs]
    return [str(run.folder.resolve()) if names.count(run.name) > 1 else run.name for run in runs]


def shared_usage(runs: Sequence[Finished]) -> str:
    """test where all runs judged it, else validation; never faces that trained one of them."""
    for usage in ("test", "validation"):
        if all(usage in run.unseen and run.unseen[usage].probabilities is not None for run in runs):
            return usage
    judged = "; ".join(parts_of(run) for run in runs)
    raise UsageError(
        f"no part of expressions that all runs judged and none was trained on: {judged}; evaluate them on one split first"
    )


def parts_of(run: Finished) -> str:
    """What a run judged, in words."""
    parts = [part if part in run.unseen else f"{part} (which trained it, too)" for part in run.parts]
    return f"{run.name} judged {' and '.join(parts)}"


def refuse_other_data(runs: Sequence[Finished], usage: str) -> None:
    found = (run.datasets.get(usage, {}).get("name") for run in runs)
    names = dict(zip(names_of(runs), found, strict=True))
    if len(set(names.values()) - {None}) > 1:
        told = ", ".join(f"{name} on {data}" for name, data in names.items())
        raise UsageError(
            f"these runs judged other faces: {told}; `report matrix=[…]` judges runs across data sets"
        )


def refuse_nothing_common(parts: Mapping[str, Part], names: Sequence[str]) -> None:
    if len(names) < 2:
        sizes = ", ".join(f"{run} {len(part):,}" for run, part in parts.items())
        raise UsageError(
            f"these runs share {len(names)} of their faces ({sizes}): a paired test needs the same faces; train or "
            "evaluate them on one split"
        )


def refuse_other_labels(labels: Mapping[str, NDArray[np.int64]]) -> None:
    first, *others = labels.items()
    for name, found in others:
        if wrong := int((found != first[1]).sum()):
            raise UsageError(f"{wrong} of the common faces have another label in {name} than in {first[0]}")


def subjects_of(run: Finished, names: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """Whose faces these are, out of the run's data set; and what is to be said where nobody can know."""
    from fer_lab.build import instantiate
    from fer_lab.data.faces import DataError

    try:
        known = {item.name: item.subject for item in instantiate(run.config.data.source).items()}
    except (DataError, OSError) as error:
        note = f"The data are not at hand ({str(error).splitlines()[0]}): intervals are over faces, not subjects."
        return None, [note]
    found = [known.get(name) for name in names]
    subjects = [subject for subject in found if subject is not None]
    return (subjects, []) if len(subjects) == len(names) and len(set(subjects)) > 1 else (None, [])


def standings(field: Field) -> Table:
    from fer_lab.evaluation.paired import ties

    tied = ties(list(field.right), field.duels)
    rows = []
    for place, name in enumerate(field.right, start=1):
        found = field.intervals(name)
        accuracy, balanced = scores(field, name)
        rows.append(
            (
                str(place),
                name,
                percent(accuracy) + bounds(*found["accuracy"]),
                percent(balanced) + bounds(*found["balanced_accuracy"]),
                ", ".join(tied[name]) or "none",
            )
        )
    drawn, test = ("subjects", "the test over subjects") if field.subjects else ("faces", "McNemar's test")
    rule = f"95% intervals by bootstrap over {drawn}; tied: Holm's p of {test} >= 0.05."
    note = " ".join([rule, *field.notes])
    title = f"{len(field.labels):,} {field.usage} faces of {field.data}"
    return Table(title, ("", "run", "accuracy %", "balanced accuracy %", "tied with"), rows, note)


def scores(field: Field, name: str) -> tuple[float, float]:
    """Accuracy, and the mean recall of the classes present."""
    import numpy as np

    right = field.right[name]
    recalls = [right[field.labels == label].mean() for label in np.unique(field.labels)]
    return float(right.mean()), float(np.mean(recalls))


def pairs(field: Field) -> Table:
    from fer_lab.evaluation.paired import written

    rows = [
        (
            pair.first,
            pair.second,
            f"{pair.only_first:,}",
            f"{pair.only_second:,}",
            f"{100 * pair.difference:+.2f}{bounds(*pair.interval)}",
            written(pair.p),
            written(pair.adjusted),
            "tied" if pair.tied else f"{pair.first if pair.difference > 0 else pair.second} is better",
        )
        for pair in field.duels
    ]
    header = (
        "first",
        "second",
        "only first right",
        "only second right",
        "difference, points",
        "p",
        "Holm p",
        "",
    )
    return Table("Pairs", header, rows, how_judged(field))


def how_judged(field: Field) -> str:
    """How the pairs are judged, and whether so few subjects can decide one."""
    from fer_lab.evaluation.paired import ALPHA

    holm = "Holm's correction over all pairs of this table; the intervals are of one pair alone."
    if not field.subjects:
        return f"p: McNemar's, exact below 25 discordant faces; {holm}"
    count = len(set(field.subjects))
    told = f"p: sign flips of the gains of {count} subjects, exact; {holm}"
    if len(field.duels) * 2 / 2**count < ALPHA:
        return told
    return (
        f"{told} So few subjects cannot decide between so many runs, whatever the gains: compare fewer runs."
    )


def by_class(field: Field) -> Table:
    """Recall of each class, and of all but the best run its difference to that one."""
    leader, *others = field.right
    rows = []
    for label, name in enumerate(field.classes):
        faces = field.labels == label
        if not faces.any():
            continue
        cells = [percent(float(field.right[leader][faces].mean()))]
        for other in others:
            gap, interval = class_gap(field, other, leader, label)
            recall = percent(float(field.right[other][faces].mean()))
            cells.append(f"{recall} ({100 * gap:+.2f}{bounds(*interval)})")
        rows.append((name, f"{int(faces.sum()):,}", *cells))
    note = f"In brackets the difference to {leader} with its paired 95% interval, not corrected for the many classes."
    return Table("Recall of each class, %", ("expression", "faces", leader, *others), rows, note)


def class_gap(field: Field, first: str, second: str, label: int) -> tuple[float, Interval]:
    """Recall of `first` minus that of `second` on the faces of one class."""
    from fer_lab.evaluation.paired import paired_interval

    one, other, whose = on_class(field, first, second, label)
    return float(one.mean() - other.mean()), paired_interval(one, other, whose)


def on_class(
    field: Field, first: str, second: str, label: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[str] | None]:
    """Which faces of one class each of two runs got right, and whose they are."""
    faces = field.labels == label
    whose = [subject for subject, kept in zip(field.subjects or (), faces, strict=False) if kept]
    return field.right[first][faces], field.right[second][faces], whose or None


def class_contrasts(field: Field, first: str, second: str) -> list[Contrast]:
    """The recall of each class, tied by Holm's p over the classes."""
    from fer_lab.evaluation.contrasts import Contrast
    from fer_lab.evaluation.paired import ALPHA, chance, holm

    labels = [label for label in range(len(field.classes)) if (field.labels == label).any()]
    adjusted = holm([chance(*on_class(field, first, second, label)) for label in labels])
    return [
        Contrast(field.classes[label], *class_gap(field, first, second, label), p >= ALPHA)
        for label, p in zip(labels, adjusted, strict=True)
    ]


def picture(field: Field):  # type: ignore[no-untyped-def]
    """All pairs, and the classes of the best two."""
    from fer_lab.evaluation.contrasts import Contrast, differences

    whole = [
        Contrast(f"{pair.first}\n− {pair.second}", pair.difference, pair.interval, pair.tied)
        for pair in field.duels
    ]
    first, second = list(field.right)[:2]
    classes = class_contrasts(field, first, second)
    return differences(
        [
            ("accuracy (grey: tied, Holm over the pairs)", whole),
            (f"recall: {first}\n− {second} (grey: tied, Holm over the classes)", classes),
        ]
    )
