"""What our own runs reached, as results/anchors.json holds it: read from finished runs, never typed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import CONF, UsageError, choices_of
from fer_lab.identity import NEUTRAL, WITHOUT_EFFECT, portable
from fer_lab.lineage import Lender, lenders_of
from fer_lab.tracking.record import flatten, read_events

if TYPE_CHECKING:
    from fer_lab.finished import Finished

RESULTS = Path(__file__).parent / "results/anchors.json"
UNTOLD = (
    "seed",
    "split.fold",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "data.source.root",
)
"""Beside identity.WITHOUT_EFFECT, what may differ between runs of one recipe without making it another."""

FOUND = ("classes", "class_count", "output_count", "size", "task.classes", "balance.classes", "cache_dir")
"""What the data add to a config, so no recipe says it."""
ABSENT = "absent"
"""The value of a key that a command line took away."""


@dataclass(frozen=True)
class Score:
    """`value` of a metric on `count` faces; the 95% interval is nan to nan where none was taken."""

    value: float
    count: int
    low: float
    high: float


@dataclass(frozen=True)
class OurRun:
    """A finished run. `changes` is what it does otherwise than its recipe, which had the digest `recipe_digest` then;
    `parts` {part: {metric: Score}}; `drawn` is true where its faces were drawn by fer_lab, None where the data are gone
    and nobody can say; `lenders` are the runs whose weights it started from, the nearest first."""

    run: str
    recipe: str
    seed: int
    changes: Mapping[str, str]
    data: str
    classes: int
    drawn: bool | None
    digests: Mapping[str, str]
    parts: Mapping[str, Mapping[str, Score]]
    command: str
    machine: str
    date: str
    commit: str
    recipe_digest: str = ""
    lenders: Sequence[Lender] = ()

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> OurRun:
        parts = {
            part: {metric: Score(**score) for metric, score in scores.items()}
            for part, scores in facts["parts"].items()
        }
        lenders = tuple(Lender(**one) for one in facts.get("lenders", ()))
        return cls(**{**facts, "parts": parts, "lenders": lenders})

    @property
    def recipe_changed(self) -> bool:
        """Whether the recipe says something else today than when this run was recorded."""
        return self.recipe not in choices_of("recipe") or self.recipe_digest != recipe_digest(self.recipe)

    @property
    def kind(self) -> tuple[str, ...]:
        """The same for runs that differ in their seed alone."""
        changes = sorted(f"{key}={value}" for key, value in self.changes.items())
        digests = (f"{part} {self.digests[part]}" for part in sorted(self.digests))
        lenders = (f"from {lender.data}" for lender in self.lenders)
        return (self.recipe, self.recipe_digest, *changes, *digests, *lenders)


@dataclass(frozen=True)
class Ours:
    """Runs of one kind, their scores of one metric together."""

    runs: Sequence[OurRun]
    scores: Sequence[Score]

    @property
    def mean(self) -> float:
        return statistics.fmean(score.value for score in self.scores)

    @property
    def deviation(self) -> float | None:
        """Between seeds; None for a single one."""
        return statistics.stdev(score.value for score in self.scores) if len(self.scores) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """95%: the faces could have been others and, of several seeds, the seeds as well: Student's t of so few. The
        squares of both halves add up; that of the faces is the mean of the runs' own, on either side. The spread of a
        single seed is not in it."""
        seeds = self.half_of_seeds**2
        below, above = (
            (statistics.fmean((score.value - end(score)) ** 2 for score in self.scores) + seeds) ** 0.5
            for end in (lambda score: score.low, lambda score: score.high)
        )
        return self.mean - below, self.mean + above

    @property
    def half_of_seeds(self) -> float:
        """Half the 95% t interval of the mean over the seeds; 0 of a single one."""
        from scipy.special import stdtrit

        if self.deviation is None:
            return 0.0
        count = len(self.scores)
        return float(stdtrit(count - 1, 0.975)) * self.deviation / math.sqrt(count)


def together(runs: Iterable[OurRun], part: str, metric: str) -> list[Ours]:
    """The runs that have this metric, those of one kind side by side."""
    kinds: dict[tuple[str, ...], list[OurRun]] = {}
    for run in runs:
        if metric in run.parts.get(part, {}):
            kinds.setdefault(run.kind, []).append(run)
    return [Ours(found, [run.parts[part][metric] for run in found]) for found in kinds.values()]


def recorded() -> list[OurRun]:
    if not RESULTS.exists():
        return []
    return [OurRun.of(facts) for facts in json.loads(RESULTS.read_text("utf-8"))["runs"]]


def record(folders: Sequence[Path]) -> list[OurRun]:
    """Adds finished runs to the results, in place of what was there under the same name; returns what was added."""
    added = [our_run(folder) for folder in folders]
    names = {one.run for one in added}
    kept = [one for one in recorded() if one.run not in names]
    runs = sorted([*kept, *added], key=lambda one: (*one.kind, one.seed))
    RESULTS.write_text(json.dumps({"runs": [asdict(one) for one in runs]}, indent=1) + "\n", "utf-8")
    return added


def our_run(folder: Path) -> OurRun:
    """Raises UsageError where the run follows no recipe or was not judged to its end."""
    from fer_lab.finished import read_run

    run = read_run(folder)
    recipe, tags = recipe_of(run), run.tags
    processor = tags.get("machine.gpu") or tags.get("machine.cpu") or "unknown machine"
    begun = min((event["time"] for event, _ in read_events(folder)), default=0)
    changed = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    return OurRun(
        run=run.name,
        recipe=recipe,
        seed=int(run.config.seed),
        changes=changes(run.config, recipe, words_of(tags)),
        data=next((part["name"] for part in run.datasets.values()), ""),
        classes=len(run.config.classes),
        drawn=is_drawn(run.config),
        digests={part: facts["digest"] for part, facts in run.datasets.items()},
        parts=scores_of(run),
        command=portable(tags.get("command", "")),
        machine=f"{processor}, {tags.get('machine.cores', '?')} cores",
        date=f"{datetime.fromtimestamp(begun / 1000, UTC):%Y-%m-%d}",
        commit=tags.get("git.commit", "unknown") + changed,
        recipe_digest=recipe_digest(recipe),
        lenders=lenders_of(run),
    )


def recipe_of(run: Finished) -> str:
    """The recipe named on its command line, or the one that its name is."""
    named = [word.partition("=")[2] for word in words_of(run.tags) if word.startswith("recipe=")]
    known = choices_of("recipe")
    for name in (*named, str(run.config.name)):
        if name in known:
            return name
    raise UsageError(
        f"run {run.name} follows no recipe (its name is {run.config.name}); choices: {', '.join(known)}"
    )


def words_of(tags: Mapping[str, str]) -> list[str]:
    return tags.get("command", "").replace("'", "").split()


def scores_of(run: Finished) -> dict[str, dict[str, Score]]:
    """Of the judged parts and of their faces without copies elsewhere, where an audit knew them (test_clean), and the
    training accuracy of the epoch that was kept."""
    unknown = (math.nan, math.nan)
    found: dict[str, dict[str, Score]] = {}
    for part in ("validation", "test", "test_clean"):
        path = run.folder / f"figures/{part}.json"
        facts = json.loads(path.read_text("utf-8")) if path.exists() else {}
        bounds = facts.get("intervals_95", {})
        for metric, value in facts.get("scores", {}).items():
            score = Score(value, facts["count"], *bounds.get(metric, unknown))
            found.setdefault(part, {})[metric] = score
    for event, _ in read_events(run.folder):
        values = event["values"] if event["event"] == "metrics" else {}
        if "train/accuracy" in values and event["step"] == run.fit.get("best_epoch"):
            count = sum(run.datasets.get("train", {}).get("counts", {}).values())
            found["train"] = {"accuracy": Score(float(values["train/accuracy"]), count, *unknown)}
    return found


def is_drawn(config: DictConfig) -> bool | None:
    """Whether fer_lab drew the faces: its own data set, or a folder that carries the mark of draw.py."""
    from fer_lab.data.draw import MARK

    if config.data.source._target_.endswith(".Synthetic"):
        return True
    root = Path(str(config.data.root or "")).expanduser()
    if not config.data.root or not root.exists():
        return None
    notes = [place / "README" for place in (root, *list(root.parents)[:2])]
    return any(note.is_file() and MARK in note.read_text("utf-8", "replace") for note in notes)


def changes(config: DictConfig, recipe: str, words: Sequence[str] = ()) -> dict[str, str]:
    """What a run's config says otherwise than its recipe does by itself, as {key: value}.

    What only follows from another change, as the net's channels from the model's, is not told again. A key that the run
    lacks is told where its command line, `words`, took it away; else the program has got it since, and its default is
    what was done before.
    """
    plain = with_stand_ins(recipe)
    for key in (*WITHOUT_EFFECT, *FOUND):
        adopt(plain, config, key)
    if "output_count" not in config:  # a run of before there were tasks
        adopt(plain, OmegaConf.create({"output_count": config.get("class_count")}), "output_count")
    own, said = flat(config), flat(plain)
    told = {key for key in own if "${" not in said.get(key, "") and differs(own, said, key)}
    for key in told & said.keys():
        adopt(plain, config, key)
    followed = flat(plain, resolve=True)
    found = {key: own[key] for key in own if differs(own, followed, key) or key in told}
    removed = tuple(word.removeprefix("~").partition("=")[0] for word in words if word.startswith("~"))
    found |= {key: ABSENT for key in followed.keys() - own.keys() if within(key, removed)}
    return {key: found[key] for key in sorted(found) if tells(key)}


def within(key: str, places: Iterable[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def differs(first: Mapping[str, str], second: Mapping[str, str], key: str) -> bool:
    return not same(first.get(key, "None"), second.get(key, "None"))


def adopt(plain: DictConfig, config: DictConfig, key: str) -> None:
    """Gives `plain` the value that `config` has, if it has one."""
    value = OmegaConf.select(config, key)
    if value is not None:
        OmegaConf.update(plain, key, value, merge=False, force_add=True)


@cache
def recipe_digest(recipe: str) -> str:
    """Of what the recipe says today, comments, order and what is as if it was not said aside."""
    from fer_lab.data.faces import digest

    said = flatten(said_by(recipe))
    idle = {("data.margin", "0.0"), *((key, str(value)) for key, value in NEUTRAL.items())}
    told = sorted(item for item in said.items() if tells(item[0]) and item[1] != "None" and item not in idle)
    return digest(*(f"{key}={value}" for key, value in told))


STAND_IN = {"classes": [], "class_count": 0, "output_count": 0, "size": 0, "name": "", "cache_dir": ""}
"""For what the data say, where two recipes are compared without any."""


def differences(recipe: str, overrides: Mapping[str, Any]) -> dict[str, str]:
    """The `changes` of a run that follows the recipe with these overrides."""
    return changes_by(recipe, *(f"{key}={value}" for key, value in overrides.items()))


@cache
def changes_by(recipe: str, *words: str) -> dict[str, str]:
    config = OmegaConf.create(OmegaConf.to_container(with_stand_ins(recipe, *words), resolve=True))
    return changes(config, recipe)  # type: ignore[arg-type]


def with_stand_ins(recipe: str, *words: str) -> DictConfig:
    """A recipe that can be resolved without any data."""
    return OmegaConf.create(said_by(recipe, *words) | STAND_IN)


@cache
def said_by(recipe: str, *words: str) -> dict[str, Any]:
    """What a recipe says, with what refers to other keys as it stands there."""
    settings = OmegaConf.to_container(composed(recipe, *words))
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items() if key != "hydra"}


def same(first: str, second: str) -> bool:
    """As words or as numbers: 8 is 8.0."""
    try:
        return first == second or float(first) == float(second)
    except ValueError:
        return False


def tells(key: str) -> bool:
    return not within(key, (*WITHOUT_EFFECT, *UNTOLD, *FOUND))


def composed(recipe: str | None, *words: str) -> DictConfig:
    """`python -m fer_lab.train recipe=… …` as a config; also from within an entry point."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    overrides = [*([f"recipe={recipe}"] if recipe else []), *words]
    if GlobalHydra.instance().is_initialized():
        return hydra.compose("train", overrides=overrides, return_hydra_config=True)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=overrides, return_hydra_config=True)


def flat(config: DictConfig, resolve: bool = False) -> dict[str, str]:
    """Dotted keys and their values as text."""
    settings = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(settings, dict)
    return flatten({str(key): value for key, value in settings.items()})
