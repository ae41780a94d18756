"""Theirs beside ours: `python -m fer_lab.report anchors [record=[RUN,…]]`.

The figures of the reference systems are in anchors.yaml, ours in results/anchors.json (see fer_lab.ours).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError, choices_of
from fer_lab.ours import OurRun, Ours, composed, differences, record, recorded, said_by, same, together
from fer_lab.tables import Table, bounds, percent, write

PLACE = Path(__file__).with_name("anchors.yaml")
STATUSES = ("comparable", "ambiguous", "erroneous")
PARTS = ("train", "validation", "test")
SMALLER_IS_BETTER = ("rmse", "nll", "brier", "ece")
SAME_FACES = ("split.", "data.limit", "data.source")
"""Settings that change which faces train or judge, whatever recipe it is."""

HEADER = ("system", "what", "protocol", "metric", "theirs", "ours", "difference", "verdict", "status")


@dataclass(frozen=True)
class Protocol:
    """How a figure was taken: `part` of our split answers it, `count` faces judge (None: not said), `by_subject` where
    they are several of each person, so that their number alone gives no interval."""

    data: str
    part: str
    says: str
    count: int | None = None
    classes: int | None = None
    ours: tuple[str, ...] = ()
    by_subject: bool = False


@dataclass(frozen=True)
class Anchor:
    """A published figure: one `value` (with its 95% `interval` where given) or a `range`; neither where none is stated.
    `starts_from` is the data set of the net whose weights it starts from."""

    system: str
    protocol: Protocol
    metric: str
    what: str
    status: str
    recipe: str | None
    value: float | None = None
    interval: tuple[float, float] | None = None
    range: tuple[float, float] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    starts_from: str | None = None

    @property
    def best_last(self) -> int:
        """1 where larger is better, -1 where smaller is."""
        return -1 if self.metric.startswith(SMALLER_IS_BETTER) else 1

    @property
    def is_score(self) -> bool:
        """Not a setting, nor a whole matrix."""
        return " " not in self.metric and self.metric not in ("dropout", "momentum")

    @property
    def spread(self) -> tuple[float, float]:
        """Its 95% interval: as given, else the binomial one of an accuracy of so many independent faces, else nan."""
        from fer_lab.evaluation.binomial import wilson

        if self.interval:
            return self.interval
        protocol = self.protocol
        if self.value is None or not protocol.count or protocol.by_subject or self.metric != "accuracy":
            return math.nan, math.nan
        return wilson(self.value, protocol.count)

    @property
    def theirs(self) -> str:
        if self.range:
            return f"{self.say(self.range[0])} to {self.say(self.range[1])}"
        if self.value is None:
            return "not stated" if self.is_score else "see why"
        return self.say(self.value) + (bounds(*self.spread) if self.is_percent else "")

    @property
    def is_percent(self) -> bool:
        return self.is_score and not self.metric.startswith(
            ("ccc", "pcc", "rmse", "kappa", "mcc", "nll", "brier")
        )

    def say(self, value: float) -> str:
        if self.is_percent:
            return percent(value)
        return f"{value:.3f}" if self.is_score else f"{value:g}"


def anchors(path: Path = PLACE) -> list[Anchor]:
    """All of the file; raises UsageError that names every entry which cannot be."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    protocols = {name: Protocol(**facts) for name, facts in content["protocols"].items()}
    found, faults = [], []
    for number, facts in enumerate(content["anchors"]):
        entry = {key: value for key, value in facts.items() if value is not None} | {
            "recipe": facts["recipe"]
        }
        protocol = protocols.get(entry["protocol"])
        if protocol is None or entry["status"] not in STATUSES:
            faults.append(
                f"anchor {number} ({entry['what']}): protocol {entry['protocol']}, {entry['status']}"
            )
            continue
        entry["overrides"] = entry.pop("with", {})
        found.append(Anchor(**(entry | {"protocol": protocol})))
    if faults:
        known = f"protocols: {', '.join(protocols)}; statuses: {', '.join(STATUSES)}"
        raise UsageError("\n".join([*faults, known]))
    return found


@cache
def access() -> dict[str, dict[str, Any]]:
    """Of each data set how it is given out, and whether that is to anybody."""
    return OmegaConf.to_container(OmegaConf.load(PLACE).data)  # type: ignore[return-value]


def answers(anchor: Anchor, runs: Sequence[OurRun]) -> list[Ours]:
    """Ours of the recipe that reproduces the anchor, as close to it as there are, and of those that compete with it."""
    if not anchor.is_score:
        return []
    same_classes = [run for run in runs if anchor.protocol.classes in (None, run.classes)]
    found = []
    for recipe in candidates(anchor):
        wanted = expected(anchor, recipe)
        of_recipe = [run for run in same_classes if run.recipe == recipe and agrees(run, wanted)]
        kinds = together(of_recipe, anchor.protocol.part, anchor.metric)
        found += sorted(kinds, key=lambda ours: distance(anchor, ours))[:1]
    return found


def distance(anchor: Anchor, ours: Ours) -> tuple[int, int, int]:
    return len(marks(anchor, ours)), len(deviations(anchor, ours.runs[0])), -len(ours.runs)


def candidates(anchor: Anchor) -> list[str]:
    """The recipe that reproduces it, then ours that compete."""
    reproducing = [anchor.recipe] if anchor.recipe else []
    return list(dict.fromkeys([*reproducing, *anchor.protocol.ours]))


def expected(anchor: Anchor, recipe: str) -> dict[str, str]:
    """The changes to the recipe that the anchor itself asks for."""
    if recipe != anchor.recipe or recipe not in choices_of("recipe") or not anchor.overrides:
        return {}
    return differences(recipe, anchor.overrides)


def agrees(run: OurRun, wanted: Mapping[str, str]) -> bool:
    return all(same(run.changes.get(key, value), value) for key, value in wanted.items())


def marks(anchor: Anchor, ours: Ours) -> list[str]:
    """What keeps ours from standing beside the anchor: other faces, another split, a start from faces that judge or,
    where it should reproduce the anchor, other settings, a recipe that has changed or a start from other data."""
    run, count = ours.runs[0], ours.scores[0].count
    found = (
        [] if run.drawn is False else ["drawn faces" if run.drawn else "the data are gone: drawn or real?"]
    )
    if run.data != anchor.protocol.data:
        found.append(f"on {run.data}")
    if anchor.protocol.count and abs(count - anchor.protocol.count) > 0.01 * anchor.protocol.count:
        found.append(f"on {count:,} faces, not {anchor.protocol.count:,}")
    found += [
        f"{one.run}, which it started from, learned {one.seen:,} of them" for one in run.lenders if one.seen
    ]
    reproduces = run.recipe == anchor.recipe
    settings = deviations(anchor, run)
    return found + [text for key, text in settings.items() if reproduces or key.startswith(SAME_FACES)]


def deviations(anchor: Anchor, run: OurRun) -> dict[str, str]:
    """What the run does otherwise than its recipe and the anchor's own overrides; a recipe that has changed since."""
    wanted = expected(anchor, run.recipe)
    other = {key: f"{key}={value}" for key, value in run.changes.items() if key not in wanted}
    missing = {key: f"without {key}={value}" for key, value in wanted.items() if key not in run.changes}
    changed = {"recipe": "recipe changed since"} if run.recipe_changed else {}
    found = other | missing | changed
    if run.lenders and asks_for_weights(anchor, run.recipe):
        found.pop("model.weights", None)
        if anchor.starts_from and anchor.starts_from != run.lenders[0].data:
            found["model.weights"] = f"not from a net of {anchor.starts_from}"
    return found


def asks_for_weights(anchor: Anchor, recipe: str) -> bool:
    """Whether the recipe, or the anchor that it reproduces, starts from the net of another run."""
    if recipe == anchor.recipe and anchor.starts_from:
        return True
    own = str(said_by(recipe)["model"].get("weights") if recipe in choices_of("recipe") else "")
    return own == "???" or own.startswith("runs:/")


def verdict(anchor: Anchor, ours: Ours) -> tuple[str, str]:
    """The difference in words, and beaten, tied or below: by whether its interval excludes that there is none."""
    if anchor.status == "erroneous" or (anchor.value is None and anchor.range is None) or marks(anchor, ours):
        return "", ""
    low, high = gap(anchor, ours)
    if math.isnan(low):
        return "", "no interval, so no verdict"
    words = "tied" if low <= 0 <= high else "beaten" if (low > 0) == (anchor.best_last > 0) else "below"
    if anchor.value is None:
        return "", words
    scale, digits = (100, 2) if anchor.is_percent else (1, 3)
    numbers = [f"{scale * one:+.{digits}f}" for one in (ours.mean - anchor.value, low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]", words


def gap(anchor: Anchor, ours: Ours) -> tuple[float, float]:
    """95% interval of ours - theirs; of a range the distance to its nearer end."""
    from fer_lab.evaluation.binomial import difference
    from fer_lab.evaluation.uncertainty import Interval

    interval = Interval(*ours.interval)
    if math.isnan(interval.low):
        return interval
    if anchor.value is not None:
        return difference(ours.mean, interval, anchor.value, Interval(*anchor.spread))
    assert anchor.range is not None
    return interval.low - anchor.range[1], interval.high - anchor.range[0]


def written(anchor: Anchor, ours: Ours) -> str:
    """Ours in words: mean, spread of the seeds, interval, recipe and what marks it."""
    spread = "" if ours.deviation is None else f" ± {anchor.say(ours.deviation)}"
    low, high = ours.interval
    around = "" if math.isnan(low) else f" [{anchor.say(low)}, {anchor.say(high)}]"
    seeds = f"{len(ours.runs)} seeds" if len(ours.runs) > 1 else "one seed: its spread is not in it"
    marked = marks(anchor, ours)
    warning = f" NOT COMPARABLE: {', '.join(marked)}" if marked else ""
    settings = [text for text in deviations(anchor, ours.runs[0]).values() if text not in marked]
    source = ", ".join([ours.runs[0].recipe, *settings, *origins(ours.runs[0]), seeds, *clean(anchor, ours)])
    return f"{anchor.say(ours.mean)}{spread}{around} ({source}){warning}"


def origins(run: OurRun) -> list[str]:
    """The data of the nets that it started from, the nearest first."""
    found = [one.data or f"data that nobody knows ({one.run} is not at hand)" for one in run.lenders]
    return [f"from a net of {' of one of '.join(found)}"] if found else []


def clean(anchor: Anchor, ours: Ours) -> list[str]:
    """The same on the test faces that have no copy elsewhere, where an audit knew them."""
    found = [run.parts.get(f"{anchor.protocol.part}_clean", {}).get(anchor.metric) for run in ours.runs]
    scores = [score for score in found if score is not None]
    if not scores or len(scores) < len(found):
        return []
    mean = sum(score.value for score in scores) / len(scores)
    return [f"{anchor.say(mean)} on the {scores[0].count:,} faces without copies"]


@cache
def why_not_run(recipe: str = "") -> str:
    """Why there is nothing of ours, out of the recipe itself."""
    if not recipe:
        return "no recipe of ours answers it"
    if recipe not in choices_of("recipe"):
        return f"not run here: conf/recipe has no {recipe}"
    config = composed(recipe)
    chosen = config.hydra.runtime.choices
    reasons = []
    known = access().get(str(chosen.data), {})
    if known and not known["at_hand"]:
        reasons.append(f"{chosen.data} is not at hand")
    if config.trainer.accelerator in ("gpu", "cuda"):
        reasons.append(f"it needs a GPU (trainer={chosen.trainer})")
    if not reasons:
        reasons.append(f"python -m fer_lab.train recipe={recipe} data.root=PATH runs it")
    return f"not run here: {'; '.join(reasons)}"


def rows(runs: Sequence[OurRun]) -> Iterator[tuple[str, ...]]:
    """A line for each anchor, and one for each further recipe of ours that competes with it."""
    for anchor in anchors():
        head = (anchor.system, described(anchor), anchor.protocol.says, anchor.metric, anchor.theirs)
        tail = anchor.status + (f": {anchor.why}" if anchor.why else "")
        found = answers(anchor, runs)
        if not found:
            yield (*head, why_not_run(*candidates(anchor)[:1]) if anchor.is_score else "", "", "", tail)
        for place, ours in enumerate(found):
            start = head if place == 0 else ("", "", "", "", "")
            yield (*start, written(anchor, ours), *verdict(anchor, ours), tail if place == 0 else "")


def described(anchor: Anchor) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in anchor.overrides.items())
    return f"{anchor.what}, {settings}" if settings else anchor.what


NOTE = (
    "Shares in per cent, [95% interval]; ± is the standard deviation between seeds. Ours: the faces, and of several seeds "
    "their spread (Student's t); of one seed the faces alone. Theirs: as published, else of the number of faces that judge; "
    "one net, so the spread of its seeds is not in it. Difference: ours minus theirs, with the interval of both. On the "
    "same faces it is too wide for those two nets; theirs counts as exact where it has no interval (several faces of each "
    "person, or no count), and is too narrow then. beaten / below: it excludes 0, of one seed for that net alone."
)


def show(cfg: DictConfig) -> Path:
    """Records the runs of `record`, prints the table, and writes anchors.md and anchors.csv to `output`."""
    from fer_lab.tracking.find import find_run

    specs = [cfg.record] if isinstance(cfg.record, str) else list(cfg.record or [])
    if specs:
        folders = [find_run(str(spec), Path(cfg.runs_dir), cfg.tracking.uri) for spec in specs]
        for one in record(folders):
            print(f"recorded {one.run} as {one.recipe}, seed {one.seed}")
    runs = recorded()
    table = Table("Theirs and ours", HEADER, list(rows(runs)), NOTE)
    shown(table).show()
    tables = [table, *([provenance(runs)] if runs else []), licences()]
    page = write(Path(cfg.output or "reports/anchors").expanduser(), "anchors", "Anchors", tables)
    print(f"{len(anchors())} anchors, {len(runs)} runs of ours: {page} and {page.with_suffix('.csv')}")
    return page


def shown(table: Table) -> Table:
    """What fits a terminal: without protocols and reasons, which the files have."""
    kept = [place for place, name in enumerate(table.header) if name not in ("protocol", "difference")]
    lines = [
        [row[place].partition(": ")[0] if place == 8 else row[place] for place in kept] for row in table.rows
    ]
    return Table(table.title, [table.header[place] for place in kept], lines, table.note)


def licences() -> Table:
    lines = [
        (name, facts["licence"], "yes" if facts["at_hand"] else "no") for name, facts in access().items()
    ]
    return Table("Data sets", ("data", "how it is had", "at hand for everybody"), lines)


def provenance(runs: Sequence[OurRun]) -> Table:
    """Where each of our figures comes from."""
    lines = [
        (one.run, one.recipe, str(one.seed), "drawn" if one.drawn else "unknown" if one.drawn is None else "real",
         one.command, one.machine, one.date, one.commit)
        for one in runs
    ]  # fmt: skip
    header = ("run", "recipe", "seed", "faces", "command", "machine", "date", "commit")
    return Table("Our runs", header, lines)
