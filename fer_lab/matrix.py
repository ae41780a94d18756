"""Nets on faces of other data sets: `python -m fer_lab.report matrix=[RUN,…] matrix_data={fer2013: PATH, jaffe: PATH}`.

A row for each run, a column for each data set, on the expressions that both have, matched by name. Of its own data set a
run judges the test part of its own split; of another one the official test part, or all of it where it has no parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
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
    from fer_lab.data.shards import Images
    from fer_lab.evaluation.uncertainty import Interval

COMPARED_BYTES = 4 * 10**9
"""Of pictures that trained a run, up to which they are read once more to look for copies."""


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


class Judged(NamedTuple):
    """The faces that a run judges of a data set; `notes` say which they are."""

    loaded: Loaded
    rows: NDArray[np.int64]
    drawn: bool
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
        judge(folder, runs[folder.resolve().name], name, settings)
        for folder in folders
        for name, settings in columns.items()
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
    if not (folder / "best.pt").exists() or not (folder / "config.yaml").exists():
        raise UsageError(
            f"{folder} has no config.yaml and best.pt: it finished no epoch, or is a cross-validation or a trial, which "
            "keep no single net; name a run that was trained whole"
        )
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    saved.cache_dir = cfg.cache_dir
    return saved


def wanted_data(cfg: DictConfig, runs: Sequence[DictConfig]) -> dict[str, dict[str, Any]]:
    """{choice of data=…: its settings, root first}; by default what the runs were trained on."""
    asked = OmegaConf.to_container(cfg.matrix_data or OmegaConf.create({}))
    assert isinstance(asked, dict)
    if not asked:
        return {choice_of(run): {"root": run.data.root} for run in runs}
    known = choices_of("data")
    if wrong := [str(name) for name in asked if name not in known]:
        raise UsageError(f"matrix_data names {', '.join(wrong)}; choices: {', '.join(known)}")
    return {
        str(name): dict(settings) if isinstance(settings, dict) else {"root": settings}
        for name, settings in asked.items()
    }


def choice_of(run: DictConfig) -> str:
    """The yaml of conf/data that names the run's data set."""
    target = run.data.source._target_
    for choice in choices_of("data"):
        if OmegaConf.load(CONF / f"data/{choice}.yaml").source._target_ == target:
            return choice
    raise UsageError(f"no yaml of conf/data names {target}, which the run was trained on")


def judge(folder: Path, run: DictConfig, name: str, settings: Mapping[str, Any]) -> Cell:
    """The run's net on the faces of a data set."""
    import numpy as np

    from fer_lab.evaluation.metrics import confusion_metrics
    from fer_lab.evaluation.uncertainty import bootstrap_confusion

    judged = faces_of(folder, run, name, settings)
    index, classes = judged.loaded.cache.index, tuple(run.classes)
    known = np.array([one in classes for one in index.classes])[index.labels[judged.rows]]
    rows = judged.rows[known]
    shared = tuple(one for one in classes if one in index.classes)
    notes = [
        *judged.notes,
        *of_classes(index, classes, judged.rows[~known]),
        *copies(folder, run, judged, rows),
    ]
    found = shared_probabilities(folder, run, judged.loaded, rows, shared)
    labels = np.array([shared.index(one) if one in shared else -1 for one in index.classes])[
        index.labels[rows]
    ]
    chosen = found.argmax(1)
    people = [str(index.subjects[row]) for row in rows] if index.has_subjects else None
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


def faces_of(folder: Path, run: DictConfig, name: str, settings: Mapping[str, Any]) -> Judged:
    from fer_lab.build import load_data
    from fer_lab.data.splits import Official
    from fer_lab.ours import is_drawn

    config = other_data(run, name, settings)
    own = same_source(config, run)
    loaded = load_data(config)
    index, split, drawn = loaded.cache.index, loaded.split, is_drawn(config) is True
    if own:
        part = "test" if len(split.test) else "validation"
        rows = getattr(split, part)
        notes = [f"its own data, {part} part" + (", which chose its epoch" if part == "validation" else "")]
        return Judged(loaded, rows, drawn, notes + trained_names(folder, index, rows))
    if index.has_usages:
        rows = Official()(index).test
        return Judged(loaded, rows, drawn, ["official test part"])
    return Judged(loaded, all_rows(index), drawn, ["all faces: it has no official parts"])


def all_rows(index: Index) -> NDArray[np.int64]:
    import numpy as np

    return np.arange(len(index))


def other_data(run: DictConfig, name: str, settings: Mapping[str, Any]) -> DictConfig:
    """The run's config with another data set at the run's own size and channels."""
    from fer_lab.ours import composed

    config = OmegaConf.create(OmegaConf.to_container(run))
    assert isinstance(config, DictConfig)
    words = [f"data={name}", *(f"data.{key}={value}" for key, value in settings.items() if value is not None)]
    other = composed(None, *words)
    kept = {key: run.data[key] for key in ("size", "channels", "batch_size")}
    data = OmegaConf.to_container(other.data, resolve=True)
    assert isinstance(data, dict)
    if data["source"]["_target_"] == run.data.source._target_:
        config.data.root = data["root"]
        config.data.source = {
            **config.data.source,
            **({"root": data["root"]} if "root" in data["source"] else {}),
        }
        return config
    config.data = {**data, **kept}
    config.split = OmegaConf.to_container(other.split, resolve=True)
    return config


def same_source(config: DictConfig, run: DictConfig) -> bool:
    return bool(config.data.source._target_ == run.data.source._target_)


def trained_names(folder: Path, index: Index, rows: NDArray[np.int64]) -> list[str]:
    """A note where faces that are judged stand among those that trained the run."""
    record = folder / "split.json"
    trained = set(json.loads(record.read_text())["train"]) if record.exists() else set()
    seen = sum(index.names[row] in trained for row in rows)
    return [f"LEAK: {seen:,} of its faces trained this run"] if seen else []


def copies(folder: Path, run: DictConfig, judged: Judged, rows: NDArray[np.int64]) -> Iterator[str]:
    """A note where judged faces are, pixel for pixel, among those that trained the run or the one it started from."""
    from fer_lab.build import load_data
    from fer_lab.data.faces import DataError

    images = judged.loaded.cache.images
    for config, words in ancestors(folder, run):
        try:
            trained = load_data(config)
        except (DataError, UsageError, OSError):
            yield f"the faces that {words} are not at hand: nobody looked for copies"
            continue
        learned = trained.cache.images
        if learned.shape[1:] != images.shape[1:]:
            continue  # another size: no two can be equal
        if len(trained.split.train) * learned[0].nbytes > COMPARED_BYTES:
            yield f"the faces that {words} are too many to look for copies here: `fer_lab.audit` does"
            continue
        known = set(prints(learned, trained.split.train))
        if found := sum(one in known for one in prints(images, rows)):
            yield f"LEAK: {found:,} of its faces {words}, pixel for pixel"


def prints(images: Images, rows: NDArray[np.int64]) -> Iterator[bytes]:
    """A fingerprint of each picture."""
    for start in range(0, len(rows), 1024):
        for image in images[rows[start : start + 1024]]:
            yield blake2b(image.tobytes(), digest_size=16).digest()


def ancestors(folder: Path, run: DictConfig) -> Iterator[tuple[DictConfig, str]]:
    """The run, the run whose weights it started from, and so on."""
    from fer_lab.tracking.find import find_run
    from fer_lab.tracking.record import TrackingError

    words = "trained it"
    config: DictConfig | None = run
    while config is not None:
        yield config, words
        weights, words = str(config.model.get("weights") or ""), "trained the net that it started from"
        config = None
        if weights.startswith("runs:/"):
            try:
                place = find_run(weights, folder.resolve().parent)
            except TrackingError:
                return
            loaded = OmegaConf.load(place / "config.yaml")
            assert isinstance(loaded, DictConfig)
            loaded.cache_dir = run.cache_dir
            config = loaded


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
