"""Nets on faces of other data sets: `python -m fer_lab.report matrix=[RUN,…] matrix_data={fer2013: PATH, jaffe: PATH}`.

A row for each run, a column for each data set, on the expressions that both have, matched by name. Of the faces that it
was trained on, known by their digest, a run judges the test part of its own split; of any others the official test part,
or all of them where there are no parts. Two sets of one layout take names of their own:
`matrix_data={mine: {data: folder, root: PATH}, theirs: {data: folder, root: PATH}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import CONF, UsageError, choices_of
from fer_lab.tables import Table, bounds, percent, write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fer_lab.build import Loaded
    from fer_lab.data.faces import Index
    from fer_lab.evaluation.uncertainty import Interval


@dataclass(frozen=True)
class Cell:
    """A run on a data set: `count` faces of the `shared` expressions, and what to know about them."""

    run: str
    data: str
    count: int
    shared: tuple[str, ...]
    accuracy: float
    balanced: float
    intervals: Mapping[str, Interval]
    drawn: bool
    notes: tuple[str, ...]

    @property
    def words(self) -> str:
        return f"{percent(self.accuracy)}{bounds(*self.intervals['accuracy'])}"

    @property
    def faces(self) -> str:
        return f"{self.count:,} {'DRAWN ' if self.drawn else ''}faces"


class Column(NamedTuple):
    """A data set to judge: `choice` of conf/data, with `settings` of it by their keys below data."""

    choice: str
    settings: Mapping[str, Any]


class Judged(NamedTuple):
    """The faces that a run judges of a data set, read as `data` says; `notes` say which they are."""

    loaded: Loaded
    rows: NDArray[np.int64]
    drawn: bool
    data: DictConfig
    notes: list[str]


def matrix(cfg: DictConfig) -> Path:
    """Prints the matrix and writes it with a heat map to `output`."""
    from fer_lab import figures
    from fer_lab.tracking.find import find_run
    from fer_lab.train import set_threads

    set_threads(cfg.threads)
    specs = [cfg.matrix] if isinstance(cfg.matrix, str) else [str(spec) for spec in cfg.matrix]
    folders = [find_run(spec, Path(cfg.runs_dir), cfg.tracking.uri) for spec in specs]
    runs = {folder.resolve().name: saved_config(folder, cfg) for folder in folders}
    columns = wanted_data(cfg, list(runs.values()))
    cells = [
        judge(folder, runs[folder.resolve().name], name, column)
        for folder in folders
        for name, column in columns.items()
    ]
    output = Path(cfg.output or "reports/matrix").expanduser()
    figures.save(picture(cells), output / "matrix.png")
    wide, long = crossed(cells), listed(cells)
    wide.show()
    title = f"{len(runs)} runs on {len(columns)} data sets"
    page = write(output, "matrix", title, [long, wide], ["matrix.png"])
    print(f"the matrix is in {page}, matrix.csv and matrix.png beside it")
    return page


def saved_config(folder: Path, cfg: DictConfig) -> DictConfig:
    """How the run was trained; UsageError where it has no weights to judge by."""
    from fer_lab.finished import refuse_without_net

    refuse_without_net(folder)
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    saved.cache_dir = cfg.cache_dir
    return saved


AS_JUDGED = ("size", "channels", "batch_size", "limit", "exclude", "bad")
"""Keys of data that the judging run says, or that only matter to learn, whatever the column is."""


def wanted_data(cfg: DictConfig, runs: Sequence[DictConfig]) -> dict[str, Column]:
    """The columns by the names that the user gives them; by default what the runs were trained on."""
    asked = OmegaConf.to_container(cfg.matrix_data or OmegaConf.create({}))
    assert isinstance(asked, dict)
    if not asked:
        return named_apart([column_of(run) for run in runs])
    columns = {}
    for name, said in asked.items():
        settings = dict(said) if isinstance(said, dict) else {"root": said}
        columns[str(name)] = Column(str(settings.pop("data", name)), settings)
    known = choices_of("data")
    if wrong := [column.choice for column in columns.values() if column.choice not in known]:
        raise UsageError(
            f"matrix_data names {', '.join(wrong)}; choices: {', '.join(known)}; a name of your own says which: "
            f"{wrong[0]}: {{data: {known[0]}, root: PATH}}"
        )
    return columns


def column_of(run: DictConfig) -> Column:
    """What a run was trained on."""
    data = OmegaConf.to_container(run.data)
    assert isinstance(data, dict)
    source = {f"source.{key}": value for key, value in data.pop("source").items() if key not in OF_SOURCE}
    plain = {str(key): value for key, value in data.items() if key not in AS_JUDGED}
    return Column(choice_of(run), plain | source)


OF_SOURCE = ("_target_", "root", "size", "channels")
"""Keys of data.source that the choice of the data set, its root and the judging run say."""


def named_apart(columns: Sequence[Column]) -> dict[str, Column]:
    """Each different column once: by its choice, with the last folder of its root where that is taken twice, and with a
    number where both are."""
    different = [one for place, one in enumerate(columns) if one not in columns[:place]]
    choices = [one.choice for one in different]
    found: dict[str, Column] = {}
    for one in different:
        last = Path(str(one.settings.get("root") or "")).name
        name = one.choice if choices.count(one.choice) == 1 else f"{one.choice} {last}".strip()
        same = sum(taken == name or taken.startswith(f"{name} #") for taken in found)
        found[f"{name} #{same + 1}" if same else name] = one
    return found


def choice_of(run: DictConfig) -> str:
    """The yaml of conf/data that names the run's data set."""
    target = run.data.source._target_
    for choice in choices_of("data"):
        if OmegaConf.load(CONF / f"data/{choice}.yaml").source._target_ == target:
            return choice
    raise UsageError(f"no yaml of conf/data names {target}, which the run was trained on")


def judge(folder: Path, run: DictConfig, name: str, column: Column) -> Cell:
    """The run's net on the faces of a data set."""
    import numpy as np

    from fer_lab.evaluate import note_look
    from fer_lab.evaluation.metrics import confusion_metrics
    from fer_lab.evaluation.uncertainty import bootstrap_confusion
    from fer_lab.lineage import copies

    judged = faces_of(folder, run, column)
    index, classes = judged.loaded.cache.index, tuple(run.classes)
    known = np.array([one in classes for one in index.classes])[index.labels[judged.rows]]
    rows = judged.rows[known]
    shared = tuple(one for one in classes if one in index.classes)
    notes = [
        *judged.notes,
        *of_classes(index, classes, judged.rows[~known]),
        *copies(folder, run, judged.loaded, judged.data, rows),
    ]
    found = shared_probabilities(folder, run, judged.loaded, rows, shared)
    note_look(folder, "matrix", index.name, ["test"], run.views)
    labels = np.array([shared.index(one) if one in shared else -1 for one in index.classes])[
        index.labels[rows]
    ]
    chosen = found.argmax(1)
    people = people_of(index, rows)
    scores = confusion_metrics(counts(labels, chosen, len(shared)))
    intervals = bootstrap_confusion(labels, chosen, len(shared), people)
    return Cell(
        folder.resolve().name,
        name,
        len(rows),
        shared,
        float(scores["accuracy"]),
        float(scores["balanced_accuracy"]),
        intervals,
        judged.drawn,
        tuple(notes),
    )


def counts(labels: NDArray[np.int64], chosen: NDArray[np.int64], size: int) -> Any:
    import torch

    return torch.bincount(torch.from_numpy(labels * size + chosen), minlength=size**2).reshape(size, size)


def people_of(index: Index, rows: NDArray[np.int64]) -> list[str] | None:
    """Who is on each face; None where nobody says, or all are one: then only the pictures can be drawn again."""
    if not index.has_subjects:
        return None
    found = [str(index.subjects[row]) for row in rows]
    return found if len(set(found)) > 1 else None


def faces_of(folder: Path, run: DictConfig, column: Column) -> Judged:
    import numpy as np

    from fer_lab.build import load_data
    from fer_lab.data.splits import Official
    from fer_lab.lineage import trained_names
    from fer_lab.ours import is_drawn

    other = other_data(run, column)
    drawn = is_drawn(other) is True
    if own := own_faces(folder, run, other):
        part = "test" if len(own.split.test) else "validation"
        rows, which = getattr(own.split, part), f"its own data, {part} part"
        notes = [which + (", which chose its epoch" if part == "validation" else "")]
        return Judged(own, rows, drawn, run.data, notes + trained_names(folder, own.cache.index, rows))
    loaded = load_data(other)
    index = loaded.cache.index
    rows = Official()(index).test if index.has_usages else np.arange(len(index))
    notes = ["official test part" if index.has_usages else "all faces: it has no official parts"]
    if same_source(other, run) and other.data.root == run.data.root:
        notes += ["not the faces that it was trained on, though in that place"]
        notes += trained_names(folder, index, rows)
    return Judged(loaded, rows, drawn, other.data, notes)


def own_faces(folder: Path, run: DictConfig, other: DictConfig) -> Loaded | None:
    """The faces of `other`, split as the run's were, where they are the very ones that it recorded."""
    from fer_lab.build import load_data
    from fer_lab.tracking.record import read_events

    if not same_source(other, run):
        return None
    events = (event for event, _ in read_events(folder) if event["event"] == "dataset")
    recorded = {event["context"]: event["digest"] for event in events}
    try:
        loaded = load_data(at_root(run, other))
    except (ValueError, UsageError, OSError):
        return None  # its split cannot be made of these, so they are others
    return loaded if recorded == {part.usage: part.digest for part in loaded.parts} else None


def at_root(run: DictConfig, other: DictConfig) -> DictConfig:
    """The run's config, with its faces where those of `other` are."""
    config = OmegaConf.create(OmegaConf.to_container(run))
    assert isinstance(config, DictConfig)
    config.data.root = other.data.root
    if "root" in config.data.source:
        config.data.source.root = other.data.root
    return config


def other_data(run: DictConfig, column: Column) -> DictConfig:
    """The run's config with the faces of a column, at the run's own size and channels."""
    from fer_lab.ours import composed

    config = OmegaConf.create(OmegaConf.to_container(run))
    other = composed(None, f"data={column.choice}")
    kept = {key: run.data[key] for key in ("size", "channels", "batch_size")}
    for key, value in (*column.settings.items(), *kept.items()):
        if value is not None:  # set, not typed: a path may have any sign in it
            OmegaConf.update(other.data, key, value, force_add=True)
    assert isinstance(config, DictConfig)
    config.data = OmegaConf.to_container(other.data, resolve=True)
    config.split = OmegaConf.to_container(other.split, resolve=True)
    return config


def same_source(config: DictConfig, run: DictConfig) -> bool:
    return bool(config.data.source._target_ == run.data.source._target_)


def of_classes(index: Index, classes: tuple[str, ...], dropped: NDArray[np.int64]) -> Iterator[str]:
    """Notes on expressions that only one side has."""
    if len(dropped):
        names = sorted({index.classes[label] for label in index.labels[dropped]})
        yield f"{len(dropped):,} faces of {', '.join(names)} left out: the net does not know it"
    if extra := [one for one in classes if one not in index.classes]:
        yield f"the probability of {', '.join(extra)} is dropped and the rest renormalised"


def shared_probabilities(
    folder: Path, run: DictConfig, loaded: Loaded, rows: NDArray[np.int64], shared: tuple[str, ...]
) -> NDArray[np.float64]:
    """(N, shared) of the run's net, renormalised over what both sides know."""
    import numpy as np

    from fer_lab.build import build_module, device_of, instantiate
    from fer_lab.data.cache import Cache
    from fer_lab.data.datamodule import FaceData
    from fer_lab.data.splits import Split
    from fer_lab.evaluate import predict
    from fer_lab.models.weights import read

    classes = tuple(run.classes)
    if len(shared) < 2 or not len(rows):
        raise UsageError(
            f"{folder.name} and {loaded.cache.index.name} share {len(shared)} expressions: {shared}"
        )
    index = renamed(loaded.cache.index, classes)
    data = FaceData(
        Cache(loaded.cache.images, index, loaded.cache.skipped),
        Split(rows, rows, rows),
        instantiate(run.augment),
        run.data.batch_size,
    )
    module = build_module(run, data, weights=None).to(device_of(run))
    module.judged.load_state_dict(read(folder / "best.pt"))
    places = [classes.index(one) for one in shared]
    told = predict(module, data, rows, run.views).astype(np.float64)
    if told.shape[1] < len(classes):
        raise UsageError(
            f"{folder.name} tells valence and arousal alone, no expressions: leave it out of the matrix"
        )
    kept = told[:, places]
    return kept / kept.sum(1, keepdims=True)


def renamed(index: Index, classes: tuple[str, ...]) -> Index:
    """The same faces, labelled with the classes of the run; -1 where it has no such class."""
    import numpy as np

    numbers = np.array([classes.index(one) if one in classes else -1 for one in index.classes])
    return replace(index, classes=classes, labels=numbers[index.labels], votes=None)


def crossed(cells: Sequence[Cell]) -> Table:
    """Runs by data sets."""
    columns = list(dict.fromkeys(cell.data for cell in cells))
    rows = []
    for run in dict.fromkeys(cell.run for cell in cells):
        mine = {cell.data: cell for cell in cells if cell.run == run}
        rows.append((run, *(f"{mine[name].words}, {mine[name].faces}" for name in columns)))
    notes = [f"{cell.run} on {cell.data}: {'; '.join(cell.notes)}." for cell in cells if cell.notes]
    note = "\n".join(
        ["95% intervals by bootstrap over faces, or over subjects where they are known.", *notes]
    )
    return Table("Accuracy in %, trained (rows) and judged (columns)", ("run", *columns), rows, note)


def listed(cells: Sequence[Cell]) -> Table:
    """A line for each run and data set."""
    header = ("run", "data", "faces", "accuracy %", "balanced accuracy %", "expressions", "to know")
    rows = [
        (
            cell.run,
            cell.data,
            cell.faces.removesuffix(" faces"),
            cell.words,
            percent(cell.balanced) + bounds(*cell.intervals["balanced_accuracy"]),
            str(len(cell.shared)),
            "; ".join(cell.notes),
        )
        for cell in cells
    ]
    return Table("Each run on each data set", header, rows)


def picture(cells: Sequence[Cell]):  # type: ignore[no-untyped-def]
    import numpy as np

    from fer_lab.evaluation.contrasts import heat_map

    runs = list(dict.fromkeys(cell.run for cell in cells))
    columns = list(dict.fromkeys(cell.data for cell in cells))
    found = {(cell.run, cell.data): cell for cell in cells}
    shares = np.array([[found[run, name].accuracy for name in columns] for run in runs])
    words = [
        [f"{percent(one.accuracy)}\n{bounds(*one.intervals['accuracy']).strip()}\n{one.faces}" for one in row]
        for row in ([found[run, name] for name in columns] for run in runs)
    ]
    return heat_map(shares, words, runs, columns)
