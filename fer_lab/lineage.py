"""Where a run's weights come from: the runs that it started from, and which of the faces that judge it taught them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError
from fer_lab.tracking.record import read_events

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fer_lab.build import Loaded
    from fer_lab.data.faces import Index
    from fer_lab.data.shards import Images
    from fer_lab.finished import Finished

COMPARED_BYTES = 4 * 10**9
"""Of pictures that trained a run, up to which they are read once more to look for copies."""


@dataclass(frozen=True)
class Lender:
    """A run that lent its weights, trained on `data` (empty: not at hand, so nobody knows); `seen` of the faces that
    judge the borrower trained it, by their names."""

    run: str
    data: str
    seen: int


def lenders_of(run: Finished) -> tuple[Lender, ...]:
    """The runs whose weights it started from, and theirs, as far as they can be found."""
    found, seen, weights, place = [], set(), lent(run.config), run.folder
    while weights and weights not in seen:
        seen.add(weights)
        folder = lender_folder(weights, place)
        if folder is None:
            found.append(Lender(weights, "", 0))
            break
        data = (event["name"] for event, _ in read_events(folder) if event["event"] == "dataset")
        found.append(Lender(folder.resolve().name, next(data, ""), seen_by(folder, run)))
        weights, place = lent(OmegaConf.load(folder / "config.yaml")), folder
    return tuple(found)


def lent(config: Any) -> str:
    """The weights of another run that a config starts from; empty where it names none."""
    weights = str(OmegaConf.select(config, "model.weights") or "")
    return weights if weights.startswith("runs:/") or weights.endswith(".pt") else ""


def lender_folder(weights: str, borrower: Path) -> Path | None:
    """The folder of the run that has these weights, beside its borrower's or at its own path; None: not at hand."""
    from fer_lab.tracking.find import find_run
    from fer_lab.tracking.record import TrackingError

    if not weights.startswith("runs:/"):
        folder = Path(weights).expanduser().parent
    else:
        try:
            folder = find_run(weights, borrower.resolve().parent)
        except TrackingError:
            return None
    return folder if (folder / "config.yaml").exists() else None


def seen_by(folder: Path, run: Finished) -> int:
    """How many of the faces that judge a run trained the one in `folder`, if that had the same data set."""
    names = {event["name"] for event, _ in read_events(folder) if event["event"] == "dataset"}
    record = folder / "split.json"
    if not record.exists() or not names & {part["name"] for part in run.datasets.values()}:
        return 0
    trained = set(json.loads(record.read_text("utf-8")).get("train", ()))
    return len(trained.intersection(run.main.names))


def trained_names(folder: Path, index: Index, rows: NDArray[np.int64]) -> list[str]:
    """A note where faces that are judged stand among those that trained the run."""
    record = folder / "split.json"
    trained = set(json.loads(record.read_text())["train"]) if record.exists() else set()
    seen = sum(index.names[row] in trained for row in rows)
    return [f"LEAK: {seen:,} of its faces trained this run"] if seen else []


def copies(
    folder: Path, run: DictConfig, judged: Loaded, read_as: DictConfig, rows: NDArray[np.int64]
) -> Iterator[str]:
    """A note where the faces at `rows` are, pixel for pixel, among those that trained the run or one that it
    started from, and where nobody could look."""
    from fer_lab.build import load_data

    images = judged.cache.images
    for place, config, words in ancestors(folder, run):
        nobody = "nobody looked for copies"
        if config is None:
            yield f"{words} is not at hand: {nobody}"
            continue
        if any(config.data.get(key, usual) != read_as.get(key, usual) for key, usual in CUT.items()):
            yield f"the faces that {words} were cut out otherwise: {nobody}"
            continue
        if trained_count(place) * images[0].nbytes > COMPARED_BYTES:
            yield f"the faces that {words} are too many to look for copies here: `fer_lab.audit` does"
            continue
        try:
            trained = load_data(looked_at(config, read_as))
        except (ValueError, UsageError, OSError):
            yield f"the faces that {words} are not at hand: {nobody}"
            continue
        known = set(prints(trained.cache.images, trained.split.train))
        if found := sum(one in known for one in prints(images, rows)):
            yield f"LEAK: {found:,} of its faces {words}, pixel for pixel"


CUT = {"crop": "none", "margin": 0.0}
"""Keys of data that say what of a photograph is a face, and what they are where nobody says."""


def trained_count(folder: Path) -> int:
    """How many faces trained a run, as far as it says so."""
    record = folder / "split.json"
    return len(json.loads(record.read_text())["train"]) if record.exists() else 0


def looked_at(config: DictConfig, judged: DictConfig) -> DictConfig:
    """The config of what trained a run, its faces read at the size and channels of those that are judged."""
    config = OmegaConf.create(OmegaConf.to_container(config))  # type: ignore[assignment]
    for place in (config.data, config.data.source):
        for key in ("size", "channels"):
            if key in place:
                place[key] = judged[key]
    return config


def prints(images: Images, rows: NDArray[np.int64]) -> Iterator[bytes]:
    """A fingerprint of each picture."""
    for start in range(0, len(rows), 1024):
        for image in images[rows[start : start + 1024]]:
            yield blake2b(image.tobytes(), digest_size=16).digest()


def ancestors(folder: Path, run: DictConfig) -> Iterator[tuple[Path, DictConfig | None, str]]:
    """The run, the run whose weights it started from, and so on, each with its folder; at last None where one of them
    is not at hand."""
    words, config, seen = "trained it", run, {folder.resolve()}
    while True:
        yield folder, config, words
        weights, words = lent(config), "trained the net that it started from"
        if not weights:
            return
        place = lender_folder(weights, folder)
        if place is None:
            yield folder, None, f"the net that it started from ({weights})"
            return
        if place.resolve() in seen:
            return
        seen.add(place.resolve())
        loaded = OmegaConf.load(place / "config.yaml")
        assert isinstance(loaded, DictConfig)
        loaded.cache_dir = run.cache_dir
        folder, config = place, loaded
