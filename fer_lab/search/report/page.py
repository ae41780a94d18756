"""What a sweep leaves behind to be read: report.md, its figures, and the winner as a recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.search.confirm import Contribution, Verdict, best_trials, contributions, verdict
from fer_lab.search.ledger import VOID, ended
from fer_lab.search.report.recipe import Compose, content, groups, write_recipe

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from fer_lab.search.space.grammar import Parameter

TOP = 10
CAPTIONS = {
    "history": "Scores in the order of the trials",
    "importances": "Which settings decide",
    "slices": "Each setting alone",
    "parallel": "All settings together",
    "contour": "The two that matter most",
    "pruning": "What pruning saved",
    "pareto": "The Pareto front",
}


@dataclass(frozen=True)
class SweepFacts:
    """All that a report tells. `objectives` maps each metric to max or min; `winner` is None where nothing was
    scored or several objectives compete; `compose` makes a trial's config of its words, `compose_train` that of
    `python -m fer_lab.train` with these words alone; `final` are the winner's figures on the test faces."""

    name: str
    study: Study
    objectives: Mapping[str, str]
    parameters: Sequence[Parameter]
    winner: FrozenTrial | None
    compose: Compose
    compose_train: Compose
    command: str
    code: str
    confirm: Sequence[FrozenTrial] = ()
    ablation: Sequence[FrozenTrial] = ()
    final: Mapping[str, Any] = field(default_factory=dict)
    estimate: str = ""
    seconds: float = 0.0
    workers: int = 0

    @property
    def metric(self) -> str:
        return next(iter(self.objectives))

    @property
    def maximize(self) -> bool:
        return self.objectives[self.metric] == "max"

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """Those that count and have ended."""
        return ended(self.study)

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state.name == "COMPLETE"]

    @cached_property
    def verdict(self) -> Verdict | None:
        return verdict(self.confirm, self.study) if len(self.objectives) == 1 else None

    @cached_property
    def contributions(self) -> list[Contribution]:
        if self.winner is None:
            return []
        return contributions(self.ablation, self.confirm, self.winner.number, self.maximize)


def write_report(sweep: SweepFacts, folder: Path) -> list[Path]:
    """Writes report.md, figures/*.png and, where there is a winner, recipe/best.yaml below `folder`, each whole or
    not at all; their paths relative to it."""
    from fer_lab.search.report.plots import save_figures

    paths = save_figures(sweep.study, list(sweep.objectives), folder / "figures")
    repeat = [f"python -m fer_lab.sweep rerun N {sweep.name}   # any trial, from its settings and seed"]
    if sweep.winner is not None:
        recipe = folder / "recipe/best.yaml"
        best = sweep.compose(sweep.winner.user_attrs["overrides"])
        more = write_recipe(
            recipe, best, sweep.compose_train, [headline(sweep), f"{sweep.command} · {sweep.code}"]
        )
        words = " ".join(["recipe=best", *more])
        repeat.insert(0, f"python -m fer_lab.train --config-dir {folder} {words}   # the winner")
        paths.append(recipe)
    report, part = folder / "report.md", folder / "report.md.part"
    part.write_text("\n\n".join(sections(sweep, [path.stem for path in paths], repeat)) + "\n")
    paths.insert(0, part.replace(report))
    return [path.relative_to(folder) for path in paths]


def headline(sweep: SweepFacts) -> str:
    """The result in one or two sentences."""
    if not sweep.complete:
        return f"No score: none of {len(sweep.trials)} trials was trained to its end."
    if len(sweep.objectives) > 1:
        wanted = " and ".join(f"{metric} ({mode})" for metric, mode in sweep.objectives.items())
        return f"{len(sweep.study.best_trials)} of {len(sweep.complete)} trials are on the Pareto front of {wanted}."
    if sweep.verdict is not None:
        return f"{sweep.metric}: {sweep.verdict.sentence}"
    best, extreme = best_trials(sweep.study, 1)[0], "highest" if sweep.maximize else "lowest"
    return (
        f"Best {sweep.metric} {best.values[0]:.4f} in trial {best.number}, the {extreme} of {len(sweep.complete)} "
        "on one seed: it flatters until it is confirmed on others."
    )


def sections(sweep: SweepFacts, drawn: Sequence[str], repeat: Sequence[str]) -> Iterator[str]:
    """The report, a part at a time; what the sweep cannot say is left out."""
    yield f"# Sweep {sweep.name}"
    yield f"**{headline(sweep)}**"
    yield table(("", ""), facts(sweep))
    yield from titled("Confirmed on new seeds", confirmed(sweep))
    yield from titled("The winner against the defaults", changes(sweep))
    yield from titled("The Pareto front" if len(sweep.objectives) > 1 else "Best trials", best(sweep))
    for name in drawn:
        if name in CAPTIONS:
            yield f"## {CAPTIONS[name]}\n\n![{CAPTIONS[name]}](figures/{name}.png)"
    yield from titled("The space", space(sweep))
    yield from titled("What went wrong", failures(sweep))
    yield (
        "## Again\n\n```sh\n" + "\n".join([*repeat, f"{sweep.command}   # goes on, or shows this"]) + "\n```"
    )


def titled(title: str, text: str) -> Iterator[str]:
    if text:
        yield f"## {title}\n\n{text}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) if len(lines) > 2 else ""


def facts(sweep: SweepFacts) -> Iterator[tuple[str, str]]:
    states = Counter(state(trial) for trial in sweep.trials)
    counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in states.most_common())
    copies = sum("same_as" in trial.user_attrs for trial in sweep.trials)
    yield (
        "trials",
        f"{len(sweep.trials)}: {counts or 'none ended'}" + (f" ({copies} of them copies)" if copies else ""),
    )
    void = Counter(state(trial) for trial in sweep.study.get_trials(deepcopy=False) if state(trial) in VOID)
    if void:
        yield (
            "not counted",
            ", ".join(f"{count} {kind}" for kind, count in void.items()) + " (others stand for them)",
        )
    epochs = [
        trial.user_attrs.get("epochs", 0) for trial in sweep.trials if "same_as" not in trial.user_attrs
    ]
    if any(epochs):
        yield "epochs trained", f"{sum(epochs):,} of {max(epochs) * len(epochs):,} without pruning"
    took = timedelta(seconds=round(sweep.seconds))
    yield "time", f"{took} on {sweep.workers} worker{'s' * (sweep.workers != 1)}"
    if sweep.estimate:
        yield "estimated before", sweep.estimate
    for name, value in sweep.final.items():
        yield name, number(value)
    yield "code", sweep.code
    yield "command", f"`{sweep.command}`"


def state(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("state") or trial.state.name.lower())


def confirmed(sweep: SweepFacts) -> str:
    if sweep.verdict is None:
        return ""
    rows = []
    for place, one in enumerate(sweep.verdict.ranking, start=1):
        spread = "–" if math.isnan(one.low) else f"{one.low:.4f} to {one.high:.4f}"
        each = " ".join(f"{score:.4f}" for score in one.scores)
        rows.append([place, one.number, f"**{one.mean:.4f}**", spread, each, f"{one.search_score:.4f}"])
    header = ("", "trial", f"mean {sweep.metric}", "95% interval", "each seed", "in the search")
    return table(header, rows)


def changes(sweep: SweepFacts) -> str:
    """Key by key what the winner says and the sweep's defaults do not, with what each is worth where measured."""
    if sweep.winner is None:
        return ""
    default, best = described(sweep, []), described(sweep, sweep.winner.user_attrs["overrides"])
    worth = {one.key: worth_of(one) for one in sweep.contributions}
    keys = [key for key in {**best, **default} if best.get(key) != default.get(key)]
    rows = [
        [f"`{key}`", number(default.get(key, "–")), number(best.get(key, "–")), worth.get(key, "")]
        for key in keys
    ]
    header = ("key", "default", "winner", f"worth in {sweep.metric} (95% interval)")
    width = 4 if worth else 3
    return table(header[:width], [row[:width] for row in rows])


def described(sweep: SweepFacts, words: Sequence[str]) -> dict[str, Any]:
    """Choices of groups and dotted values of a composed config, without what a choice implies for code."""
    config = sweep.compose(words)

    def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            elif not key.startswith("_"):
                yield f"{prefix}{key}", value

    return {**groups(config, config), **dict(flat(content(config)))}


def worth_of(one: Contribution) -> str:
    spread = "" if math.isnan(one.low) else f" ({one.low:+.4f} to {one.high:+.4f})"
    return f"{one.mean:+.4f}{spread}"


def best(sweep: SweepFacts) -> str:
    """The best trials with their settings, or the whole front."""
    several = len(sweep.objectives) > 1
    sign = -1 if sweep.maximize else 1
    if several:
        shown = sorted(sweep.study.best_trials, key=lambda trial: sign * trial.values[0])
    else:
        shown = best_trials(sweep.study, TOP)
    settings = [dict(word.split("=", 1) for word in trial.user_attrs["overrides"]) for trial in shown]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    rows = [
        [
            trial.number,
            *map(score, trial.values),
            *(number(one.get(key, "–")) for key in keys),
            trial.user_attrs.get("run", ""),
        ]
        for trial, one in zip(shown, settings, strict=True)
    ]
    return table(("trial", *sweep.objectives, *keys, "run"), rows)


def space(sweep: SweepFacts) -> str:
    rows = [[f"`{one.key}`", range_of(one.distribution), condition(one)] for one in sweep.parameters]
    return table(("key", "range", "asked when"), rows)


def range_of(part: BaseDistribution) -> str:
    """In the words of a sweeps file."""
    if choices := getattr(part, "choices", None):
        return f"choice({', '.join(map(str, choices))})"
    low, high, step = part.low, part.high, part.step  # type: ignore[attr-defined]
    text = f"{low:g} to {high:g}"
    if isinstance(low, int):
        text += ", whole numbers"
    if step not in (None, 1):
        text += f", in steps of {step:g}"
    return text + (", log" if part.log else "")  # type: ignore[attr-defined]


def condition(parameter: Parameter) -> str:
    return " and ".join(f"{key}={','.join(values)}" for key, values in parameter.when) or "always"


def failures(sweep: SweepFacts) -> str:
    """Each distinct error once, with the trials that met it."""
    by_error: dict[tuple[str, str], list[int]] = {}
    for trial in sweep.trials:
        if "error" in trial.user_attrs:
            by_error.setdefault((state(trial), trial.user_attrs["error"]), []).append(trial.number)
    rows = [
        [kind.replace("_", " "), ", ".join(map(str, numbers)), error[:300]]
        for (kind, error), numbers in by_error.items()
    ]
    return table(("state", "trials", "error"), rows)


def score(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else number(value)


def number(value: Any) -> str:
    """Four digits of a fraction, words of a command line included; everything else as it is."""
    try:
        fraction = float(value)
    except (TypeError, ValueError):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{fraction:,.0f}" if fraction.is_integer() else f"{fraction:.4g}"
