"""Who leads a sweep, and who is tied with it: `python -m fer_lab.report sweep=NAME`.

Read from the sweep's own files (sweep.yaml, trials.jsonl) and the records of its runs, without the store. Settings,
figures and the winner as a recipe are in report.md, which the sweep writes itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError
from fer_lab.tables import Table, write

if TYPE_CHECKING:
    from fer_lab.search.confirm import Confirmed

TOP = 10
VOID = ("lost", "interrupted", "surplus")
SHARES = ("val/accuracy",)
"""Metrics that are a share of the validation faces, for which the number of faces alone gives an interval."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A trial: its score in the search on `count` validation faces (None: not known), and over new seeds if it was
    confirmed."""

    number: int
    words: tuple[str, ...]
    score: float
    count: int | None
    run: str
    confirmed: Confirmed | None


@dataclass(frozen=True)
class Board:
    """`entries` are the best trials of different settings, `trials` how many were trained to their end."""

    name: str
    metric: str
    maximize: bool
    entries: Sequence[Entry]
    trials: int

    @cached_property
    def ranking(self) -> list[Entry]:
        """Confirmed ones first, by their mean over the new seeds; the others by the score that the search saw."""
        sign = 1 if self.maximize else -1

        def key(entry: Entry) -> tuple[int, float]:
            seeds = len(entry.confirmed.scores) if entry.confirmed else 0
            return min(seeds, 2), sign * (entry.confirmed.mean if entry.confirmed else entry.score)

        return sorted(self.entries, key=key, reverse=True)

    @cached_property
    def ties(self) -> dict[int, list[str]]:
        """By trial the others that it cannot be told from; `?` after one of which nothing can be said."""
        from fer_lab.evaluation.paired import ALPHA, holm

        pairs = list(combinations(self.ranking, 2))
        chances = [self.chance(first, second) for first, second in pairs]
        known = [place for place, chance in enumerate(chances) if not math.isnan(chance)]
        adjusted = dict(zip(known, holm([chances[place] for place in known]), strict=True))
        found: dict[int, list[str]] = {entry.number: [] for entry in self.ranking}
        for place, (first, second) in enumerate(pairs):
            if (p := adjusted.get(place)) is None or p >= ALPHA:
                doubt = "?" if p is None else ""
                found[first.number].append(f"{second.number}{doubt}")
                found[second.number].append(f"{first.number}{doubt}")
        return found

    def chance(self, first: Entry, second: Entry) -> float:
        """Two-sided p of no difference: of the seeds where both were confirmed, else of the shares of faces; nan where
        neither says anything."""
        from fer_lab.evaluation.binomial import same_share
        from fer_lab.search.confirm import probability

        if first.confirmed and second.confirmed:
            sure = probability(first.confirmed, second.confirmed, self.maximize)
            return 2 * min(sure, 1 - sure)
        if self.metric in SHARES and first.count and second.count:
            return same_share(first.score, second.score, first.count, second.count)
        return math.nan


def leaderboard(cfg: DictConfig) -> Path:
    """Prints the best trials with intervals and ties; writes leaderboard.md and leaderboard.csv."""
    from fer_lab.sweep import contract_of

    folder = contract_of(str(cfg.sweep), [f"runs_dir={cfg.runs_dir}"]).parent
    board = read_board(folder)
    table = Table(
        f"Leaderboard of sweep {board.name}", HEADER, [row(board, one) for one in board.ranking], note(board)
    )
    table.show()
    output = Path(cfg.output).expanduser() if cfg.output else folder / "leaderboard"
    page = write(output, "leaderboard", f"Sweep {board.name}", [table])
    print(
        f"{sentence(board)} The leaderboard is in {page}; {folder / 'report.md'} has the settings and figures."
    )
    return page


def read_board(folder: Path) -> Board:
    """Raises UsageError where the sweep has no score, or several objectives."""
    contract = OmegaConf.load(folder / "sweep.yaml")
    objectives = {str(key): str(mode) for key, mode in contract.objectives.items()}
    if len(objectives) > 1:
        raise UsageError(
            f"sweep {folder.name} has {len(objectives)} objectives ({', '.join(objectives)}), so nobody leads: see the "
            f"Pareto front in {folder / 'report.md'}"
        )
    ((metric, mode),) = objectives.items()
    studies = read_studies(folder)
    latest = max((name for name in studies if "/" not in name), key=revision, default="")
    trials = complete(studies.get(latest, {}))
    if not trials:
        raise UsageError(f"sweep {folder.name} has no trial that was trained to its end: nothing to rank yet")
    seeds = seeds_of(complete(studies.get(f"{latest}/confirm", {})))
    best = best_of(trials, mode == "max", kept=set(seeds))
    entries = [entry(trial, seeds.get(trial["number"], {}), folder.parent) for trial in best]
    return Board(folder.name, metric, mode == "max", entries, len(trials))


def read_studies(folder: Path) -> dict[str, dict[int, Line]]:
    """By study and number the last whole line of trials.jsonl."""
    found: dict[str, dict[int, Line]] = {}
    path = folder / "trials.jsonl"
    for text in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # its writer was killed
        found.setdefault(line["study"], {})[line["number"]] = line
    return found


def revision(study: str) -> int:
    """A sweep whose space was changed goes on as NAME#2."""
    return int(study.partition("#")[2] or 1)


def complete(lines: Mapping[int, Line]) -> list[Line]:
    return [
        line
        for _, line in sorted(lines.items())
        if line["state"] == "COMPLETE"
        and line["user_attrs"].get("state") not in VOID
        and math.isfinite(line["values"][0])
    ]


def best_of(trials: Sequence[Line], maximize: bool, kept: set[int]) -> list[Line]:
    """The TOP trials of different settings, and all that were confirmed."""
    ordered = sorted(trials, key=lambda line: -line["values"][0] if maximize else line["values"][0])
    distinct: dict[str, Line] = {}
    for line in ordered:
        distinct.setdefault(json.dumps(line["params"], sort_keys=True), line)
    return [line for place, line in enumerate(distinct.values()) if place < TOP or line["number"] in kept]


def seeds_of(confirmations: Sequence[Line]) -> dict[int, dict[int, float]]:
    """{trial: {seed: score}}"""
    found: dict[int, dict[int, float]] = {}
    for line in confirmations:
        facts = line["user_attrs"]
        found.setdefault(facts["of"], {})[facts["seed"]] = line["values"][0]
    return found


def entry(line: Line, seeds: Mapping[int, float], runs: Path) -> Entry:
    from fer_lab.search.confirm import Confirmed, interval

    facts, score = line["user_attrs"], float(line["values"][0])
    words, number, scores = tuple(facts["overrides"]), int(line["number"]), tuple(seeds.values())
    confirmed = Confirmed(number, words, score, scores, *interval(scores)) if scores else None
    run = str(facts.get("run", ""))
    return Entry(number, words, score, validation_faces(runs / run) if run else None, run, confirmed)


def validation_faces(folder: Path) -> int | None:
    """How many faces gave the score, out of the run's record."""
    from fer_lab.tracking.record import read_events

    for event, _ in read_events(folder):
        if event["event"] == "dataset" and event["context"] == "validation":
            return sum(event["counts"].values())
    return None


HEADER = ("", "trial", "over new seeds", "seeds", "in the search", "tied with", "settings", "run")


def row(board: Board, one: Entry) -> tuple[str, ...]:
    place = board.ranking.index(one) + 1
    tied = ", ".join(board.ties[one.number]) or "none"
    seeds = str(len(one.confirmed.scores)) if one.confirmed else ""
    over = str(one.confirmed) if one.confirmed else ""
    return (
        str(place),
        str(one.number),
        over,
        seeds,
        searched(board, one),
        tied,
        " ".join(one.words),
        one.run,
    )


def searched(board: Board, one: Entry) -> str:
    from fer_lab.evaluation.binomial import wilson

    if board.metric not in SHARES or not one.count:
        return f"{one.score:.4f}"
    low, high = wilson(one.score, one.count)
    return f"{one.score:.4f} [{low:.4f}, {high:.4f}]"


def note(board: Board) -> str:
    faces = next((one.count for one in board.entries if one.count), None)
    kinds = [f"{board.metric}; {board.trials} trials were trained to their end."]
    if faces and board.metric in SHARES:
        kinds.append(
            f"In the search: one seed, binomial 95% interval of {faces:,} validation faces; the best of many scores "
            "flatters."
        )
    kinds.append(
        "Over new seeds: mean with its 95% t interval. Tied: Holm's p over all pairs >= 0.05, of the seeds where both "
        "were confirmed, else of two shares (on the same faces too cautious: it ties what a paired test might part)."
    )
    return " ".join(kinds)


def sentence(board: Board) -> str:
    leader = board.ranking[0]
    tied = board.ties[leader.number]
    confirmed = "" if leader.confirmed else " on the search's own seed alone"
    if len(board.ranking) == 1:
        return f"Trial {leader.number} is the only one that was trained to its end."
    if not tied:
        return f"Trial {leader.number} leads{confirmed}; none of the other {len(board.ranking) - 1} is tied with it."
    return f"Trial {leader.number} leads{confirmed}, tied with {len(tied)} of the other {len(board.ranking) - 1}."
