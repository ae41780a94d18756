"""python -m fer_lab.bench [data.root=PATH] [part=step,data,…]: time training, sweeps, kernels and predictions.

    step      a training step through our stack against a bare PyTorch loop of the same work
    data      augmented images per second against torchvision's ImageFolder, v2 transforms and DataLoader
    features  an epoch of frozen VGG19 on cached features against recomputing them
    startup   --help against an empty Hydra app; `fit` against importing Lightning and MLflow
    memory    peak of a whole run, and growth over its epochs
    accuracy  by name only: a recipe on FER2013 over three seeds, with its CPU seconds (part=accuracy)

    trials    24 trials by our sweep, by Optuna in two long-lived processes, and by a process for every trial
    overhead  what a trial costs beyond its training in a warm worker
    frozen    trials on the cached features of a frozen net, in the time of ten that recompute them
    store     1,000 trials of nothing on 4 workers: the rate at the end against that at the beginning

    triton    the convolution kernels, by `python -m kernels.bench`: its report is in kernels/results

    video     a video to rows, and to an annotated copy, against an OpenCV + PyTorch loop; shares of the steps
    page      the live path of the web page: latency of a camera's frame

Each part says in its file what it compares. Peers take turns in one process (or as alternating processes), the
first round is dropped, results are checked before anything is timed; a figure is the median over the repeats of
the ratio within a round, with its lowest and highest. Where both sides use the same threads the ratio is of CPU
seconds (user + sys), which other people's work on the machine disturbs least; the wall time stands beside it.
fer_lab/results/train.json (sweep.json, …) holds all of it, train.md (…) the table; a part that is run again replaces
its own figures.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fer_lab.cli import ROOT, UsageError, main

REPORTS = {
    "train": ("step", "data", "features", "startup", "memory", "accuracy"),
    "sweep": ("trials", "overhead", "frozen", "store"),
    "triton": ("triton",),
    "predict": ("video", "page"),
}
TITLES = {
    "train": "# Speed of training",
    "sweep": "# Speed of sweeps",
    "triton": "# The kernels",
    "predict": "# Speed of prediction",
}
PARTS = tuple(part for parts in REPORTS.values() for part in parts)


def bench(cfg: DictConfig) -> None:
    """Runs the parts asked for and writes each one's figures as soon as they are there."""
    from fer_lab.benchmarks.setting import Setting

    parts = [cfg.part] if isinstance(cfg.part, str) else list(cfg.part)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"part={','.join(unknown)}; choices: {', '.join(PARTS)}")
    root = Path(cfg.data.root).expanduser().resolve() if cfg.data.root else None
    if root is not None and not (root / "train").is_dir():
        raise UsageError(
            f"data.root={cfg.data.root} has no folder train/; give FER2013 as folders train/ and test/"
        )
    output = ROOT / cfg.output
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="fer_lab_bench_", ignore_cleanup_errors=True) as place:
            setting = Setting(
                Path(place), Path(cfg.cache_dir).absolute(), root, cfg.threads, output, cfg.drawn,
                Path(cfg.runs_dir), cfg.tracking.uri or "", cfg.tracking.experiment,
            )  # fmt: skip
            taken = circumstances(Path(place))
            print(f"{part} …", flush=True)
            measure = import_module(f"fer_lab.benchmarks.{part}").measure
            figures = []
            for figure in measure(setting, **cfg.sizes[part]):
                figures.append(figure.facts())
                print(f"  {sentence(figures[-1])}", flush=True)
        write(output, part, {"taken": taken, "sizes": dict(cfg.sizes[part]), "figures": figures})
    names = [name for name, known in REPORTS.items() if set(known) & set(parts)]
    print(f"written to {output}: {', '.join(f'{name}.md, {name}.json' for name in names)}")


def circumstances(place: Path) -> dict[str, Any]:
    """Date, load, and what every run is tagged with: machine, versions, commit and command."""
    from fer_lab.identity import portable
    from fer_lab.tracking.environment import log_environment
    from fer_lab.tracking.record import open_run, read_events

    with open_run(place, "circumstances") as record:
        log_environment(record, ROOT)
    tags: dict[str, Any] = {}
    for event, _ in read_events(place / "circumstances"):
        tags |= event["values"] if event["event"] == "tags" else {}
    kept = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
    kept["command"] = portable(kept["command"])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "load_average": [round(load, 2) for load in os.getloadavg()], **kept}


def sentence(facts: Mapping[str, Any]) -> str:
    """One figure for the terminal."""
    if facts["target_is_for"] == "value":
        found, spread = f"{facts['value']} {facts['unit']}", facts["spread"]["value"]
    else:
        found = (
            f"{facts['ratio']}x ({facts['value']} / {facts['baseline']} {facts['unit']}, {facts['clock']})"
        )
        spread = facts["spread"]["ratio"]
    verdict = {True: "met", False: "MISSED", None: "no target"}[facts["met"]]
    return f"{facts['name']}: {found}, {spread[0]}..{spread[1]} over {facts['repeats']}, target {facts['target']}: {verdict}"


def write(output: Path, part: str, result: Mapping[str, Any]) -> None:
    """Into the report that the part belongs to, and into the README where the output is the record's."""
    report = next(name for name, parts in REPORTS.items() if part in parts)
    found = known(output, report) | {part: result}
    found = {name: found[name] for name in REPORTS[report] if name in found}
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{report}.json").write_text(json.dumps(found, indent=1) + "\n")
    (output / f"{report}.md").write_text(table(report, found))
    if output == ROOT / "fer_lab/results":
        readme = ROOT / "README.md"
        begin, _, rest = readme.read_text().partition("<!-- results")
        head, _, rest = rest.partition("\n")
        every = summary({name: one for report in REPORTS for name, one in known(output, report).items()})
        readme.write_text(f"{begin}<!-- results{head}\n{every}{rest[rest.index('<!-- /results') :]}")


def known(output: Path, report: str) -> dict[str, Any]:
    """The parts of a report that were measured before."""
    path = output / f"{report}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def summary(results: Mapping[str, Any]) -> str:
    """The README's table: what was reached, and against what."""
    lines = ["| measured here | value | target |", "|---|---|---|"]
    for result in results.values():
        for facts in result["figures"]:
            if not facts["target"]:
                continue
            what, spread = (
                ("value", f" {facts['unit']}") if facts["target_is_for"] == "value" else ("ratio", "×")
            )
            low, high = facts["spread"][what]
            lines.append(
                f"| {facts['name']} | {facts[what]:,}{spread} ({low:,} to {high:,}) | {facts['target']} |"
            )
    taken = max((result["taken"] for result in results.values()), key=lambda one: one["date"])
    where = f"{taken['machine.cpu']}, {taken['machine.cores']} cores, {taken.get('machine.gpu', 'no GPU')}, {taken['date'][:10]}"
    reports = [name for name, parts in REPORTS.items() if set(parts) & results.keys()]
    compared = " and ".join(f"[{name}.md](fer_lab/results/{name}.md)" for name in reports)
    return "\n".join([*lines, "", f"{where}; what each figure compares: {compared}.", ""])


def table(report: str, results: Mapping[str, Any]) -> str:
    """The results of a report as Markdown: a row per figure, then when and where each part was taken."""
    lines = [
        TITLES[report],
        "",
        f"Written by `make bench-{report}` (`python -m fer_lab.bench`); each part's file in `fer_lab/benchmarks` says what is compared. "
        "Medians over the repeats, with [lowest, highest]; a ratio is taken within each round.",
        "",
        "| figure | ours | peer | ratio | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for result in results.values():
        lines += [row(facts) for facts in result["figures"]]
    lines += ["", "What was measured:", ""]
    lines += [
        f"- {facts['name']}: {facts['what']}; {facts['repeats']} repeats"
        for result in results.values()
        for facts in result["figures"]
    ]
    lines += [
        "",
        "| part | date | commit | machine | load before | torch | command |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [origin(part, result["taken"]) for part, result in results.items()]
    return "\n".join(lines) + "\n"


def row(facts: Mapping[str, Any]) -> str:
    def cell(key: str, unit: str) -> str:
        value, spread = facts[key], facts["spread"][key]
        return "–" if value is None else f"{value:,}{unit} [{spread[0]:,}, {spread[1]:,}]"

    met = {True: "yes", False: "no", None: "–"}[facts["met"]]
    name = facts["name"] + (f" ({facts['clock']})" if facts["clock"] else "")
    unit = f" {facts['unit']}"
    return f"| {name} | {cell('value', unit)} | {cell('baseline', unit)} | {cell('ratio', '')} | {facts['target'] or '–'} | {met} |"


def origin(part: str, taken: Mapping[str, Any]) -> str:
    commit = taken.get("git.commit", "unknown")[:10] + (
        " and changes" if taken.get("git.dirty") == "true" else ""
    )
    machine = f"{taken['machine.cpu']}, {taken['machine.cores']} cores, {taken.get('machine.memory', '')}"
    return f"| {part} | {taken['date']} | {commit} | {machine} | {taken['load_average'][0]} | {taken['version.torch']} | `{taken['command']}` |"


def as_lists(arguments: list[str]) -> list[str]:
    """part=a,b as part=[a,b]: to Hydra itself a comma means several runs."""
    return [
        f"part=[{text.removeprefix('part=')}]" if text.startswith("part=") and "[" not in text else text
        for text in arguments
    ]


if __name__ == "__main__":
    sys.argv[1:] = as_lists(sys.argv[1:])
    main(bench, "bench")
