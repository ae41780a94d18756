"""How the figures came about: data, split and choice; folds; other seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np

from fer_lab.chapters.case import VIEWS, Case, plural
from fer_lab.chapters.scores import worded
from fer_lab.finished import Finished
from fer_lab.pages import Block, Code, Section, Table, Warn

SHOWN = ("accuracy", "balanced_accuracy", "f1_macro", "nll", "ece", "ccc", "ccc_valence", "ccc_arousal")


def protocol(case: Case) -> Section:
    blocks: list[Block] = [Table(("", ""), list(facts(case)), words=2)]
    if counts := counts_table(case):
        blocks.append(counts)
    if case.run.tags.get("fer.mixes_subjects") == "True":
        blocks.append(
            Warn(
                "The same people stand on both sides of this split: the figures measure identity as well as expression."
            )
        )
    if case.part.usage == "validation":
        blocks.append(
            Warn(
                "This split has no test part: the figures are of the faces that chose the epoch, so they flatter."
            )
        )
    return Section("Protocol", blocks)


def facts(case: Case) -> Iterator[tuple[str, str]]:
    run, config = case.run, case.run.config
    yield (
        "data",
        f"{case.data_name}, {config.data.size}×{config.data.size} pixels, {colours(config.data.channels)}",
    )
    split = str(run.config.split._target_).rpartition(".")[2]
    settings = ", ".join(f"{key} {value}" for key, value in run.config.split.items() if key != "_target_")
    yield "split", f"{split}{f' ({settings})' if settings else ''}"
    yield "epoch chosen by", chosen(run)
    yield "test faces", looked_at(run)
    yield "predicted from", f"each face{VIEWS.get(str(config.views), '') or ' alone'}"
    yield "intervals", "95%, bootstrap over " + drawn(case)
    yield "seed", str(config.seed)
    for tag, words in (("git.commit", "code"), ("command", "command"), ("machine.cpu", "machine")):
        if found := run.tags.get(tag):
            yield words, described(tag, found, run)


def described(tag: str, value: str, run: Finished) -> str:
    if tag == "git.commit":
        dirty = " with uncommitted changes (code.patch)" if run.tags.get("git.dirty") == "true" else ""
        return f"commit `{value[:10]}`{dirty}"
    if tag == "command":
        return f"`{value}`"
    seconds = run.fit.get("seconds")
    took = f"; trained in {duration(seconds)}" if seconds else ""
    return f"{run.tags.get('machine.gpu') or value}, {run.tags.get('machine.cores', '?')} cores{took}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def colours(channels: int) -> str:
    return "grey" if channels == 1 else "RGB"


def chosen(run: Finished) -> str:
    config, fit = run.config, run.fit
    if run.config.split.get("train_on_all"):
        return "nothing: the validation faces trained as well, so no epoch was chosen on unseen faces"
    if run.folds:
        return f"`{config.monitor}` of each fold's own validation faces"
    which = f"epoch {fit['best_epoch']} of {fit['epochs']} (counted from 0): " if "best_epoch" in fit else ""
    end = "highest" if config.mode == "max" else "lowest"
    return f"{which}the {end} `{config.monitor}`, on validation faces alone"


def looked_at(run: Finished) -> str:
    if "test" not in run.parts:
        return "none: this split has no test part"
    again = looks(run)
    later = f"; judged {plural(again, 'time')} more since, none of which is in this page" if again else ""
    when = "once in each fold" if run.folds else "once"
    return f"looked at {when}, by the best weights, after the last epoch{later}"


def looks(run: Finished) -> int:
    """How often these weights were judged on test faces since; folders of before that was noted count as one each."""
    from fer_lab.evaluate import LOOKS

    path, folders = run.folder / LOOKS, list((run.folder / "evaluations").glob("*/test.json"))
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return max(sum("test" in line["parts"] for line in lines), len(folders))


def drawn(case: Case) -> str:
    people = case.people(case.part)
    if people:
        return f"the {len(set(people))} people on the test faces"
    return (
        "faces (the data set names no people)"
        if case.data is not None
        else "faces, or people where they are named"
    )


def counts_table(case: Case) -> Table | None:
    parts = case.run.datasets
    if not parts:
        return None
    classes = list(next(iter(parts.values()))["counts"])
    rows = [
        (
            usage,
            *(f"{part['counts'].get(name, 0):,}" for name in classes),
            f"{sum(part['counts'].values()):,}",
        )
        for usage, part in parts.items()
    ]
    skipped = int(case.run.tags.get("fer.skipped_files", 0))
    note = f" {plural(skipped, 'picture')} that cannot be used were left out." if skipped else ""
    return Table(("faces", *classes, "all"), rows, f"Labelled faces of each part.{note}")


def folds(case: Case) -> Section | None:
    """How the folds of a cross-validation spread; their own intervals would each be of a few faces."""
    entries = case.run.folds.get("folds", [])
    if not entries:
        return None
    names = [name for name in SHOWN if all(name in entry["scores"] for entry in entries)]
    rows = [
        (
            str(entry["fold"]),
            f"`{entry['run']}`",
            f"{entry['count']:,}",
            *(f"{entry['scores'][name]:.4f}" for name in names),
        )
        for entry in entries
    ]
    pairs = case.run.folds.get("mean_sd", {})
    if pairs:
        rows.append(
            (
                "mean ± sd",
                "",
                "",
                *("{:.4f} ± {:.4f}".format(*pairs[name]) if name in pairs else "" for name in names),
            )
        )
    note = "The sd over folds is no error of the mean: the folds share their training faces. The intervals above are of the pooled predictions."
    return Section("Folds", [Table(("fold", "run", "faces", *map(worded, names)), rows, note, words=2)])


# ---- seeds ----


def seeds(case: Case) -> Section:
    runs = case.siblings
    if len(runs) < 2:
        return Section(
            "Seeds",
            [
                Warn(
                    "One seed. How far another would move the figures is not in their intervals, which know only other faces. "
                    "Others are trained by the same command with another seed, and found here by themselves:"
                ),
                Code([another_seed(case.run)]),
            ],
        )
    from fer_lab.evaluation import plots

    scores = {
        name: [(str(run.config.seed), run.main.scores[name]) for run in runs]
        for name in SHOWN
        if all(name in run.main.scores for run in runs)
    }
    rows = [(worded(name), *spread([value for _, value in values])) for name, values in scores.items()]
    commits = {run.tags.get("git.commit") for run in runs}
    note = "" if len(commits) == 1 else f" They were trained by {len(commits)} different commits of the code."
    listed = ", ".join(f"{run.config.seed} (`{run.name}`)" for run in runs)
    drawn = {worded(name): values for name, values in scores.items() if name != "nll"}
    words = f"{len(runs)} runs that differ in their seed alone, {case.faces(case.part)}; a point a seed, a line their mean."
    return Section(
        "Seeds",
        [
            Table(("score", "mean ± sd", "lowest", "highest"), rows, f"Seeds {listed}.{note}"),
            case.picture(plots.seeds(drawn), "seeds", words),
        ],
    )


def spread(values: list[float]) -> tuple[str, str, str]:
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    return f"{mean:.4f} ± {deviation:.4f}", f"{min(values):.4f}", f"{max(values):.4f}"


def another_seed(run: Finished) -> str:
    command = run.tags.get("command") or "python -m fer_lab.train …"
    bare = re.sub(r"\s+(seed|rerun)=\S+", "", command)
    return f"{bare} seed={int(run.config.seed) + 1}"
