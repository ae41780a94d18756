"""Results as Markdown and CSV. Everything here is a function of the results alone, so that recorded ones can be
rendered again anywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from kernels.benchmark.contest import OURS, Facts, lacks_peers

NO_GPU = (
    "**There was no GPU here: nothing below says how fast the kernels are, and no speed of theirs is claimed.** "
    "Checked without one: what they compute, what they compile to, and that a swapped program survives its way through "
    "files. The processor's times are of other people's software on the same net."
)
NOT_MEASURED = "No GPU results are recorded; not measured."


def markdown(results: Facts, recorded: Sequence[Facts] = ()) -> str:
    """The whole report; `recorded` are results of earlier runs on GPUs, named with their device and date."""
    sections = [
        "# The kernels",
        "Written by `make bench-triton` (`python -m kernels.bench`); by hand nothing.",
        *([] if "gpu" in results else [NO_GPU]),
    ]
    for part, render in SECTIONS.items():
        if part in results:
            facts = results[part]
            sections.append(f"## {TITLES[part]}")
            sections += missing(facts) or render(facts)
    if "gpu" not in results:
        sections.append("## On GPUs")
        sections += [section for one in recorded if "gpu" in one for section in gpu(one["gpu"])] or [
            NOT_MEASURED
        ]
    sections += ["## Where", where(results)]
    return "\n\n".join(sections) + "\n"


def missing(facts: Facts) -> list[str]:
    """Why a part has nothing to show; empty where it has."""
    if "absent" in facts:
        return [f"Absent: {facts['absent']}."]
    return [f"Broken off:\n\n```\n{facts['broken']}\n```"] if "broken" in facts else []


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """`–` for None."""
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.4g}"
    return str(value)


def parity(facts: Facts) -> list[str]:
    precisions = list(dict.fromkeys(case["precision"] for case in facts["cases"]))
    names = dict.fromkeys((case["case"], case["kernel"]) for case in facts["cases"])
    found = {(case["case"], case["precision"]): case for case in facts["cases"]}
    allowed = {case["precision"]: case["allowed"] for case in facts["cases"]}
    rows = [
        [name, kernel, *(found[name, precision]["error"] for precision in precisions)]
        for name, kernel in names
    ]
    head = ["layer", "kernel", *(f"{precision} (<= {allowed[precision]:g})" for precision in precisions)]
    return [
        f"Triton's interpreter against float64: the largest difference over the largest result, outputs NaN before. "
        f"{len(facts['cases'])} cases, {len(facts['failed'])} failed{listed(facts['failed'])}. The interpreter multiplies "
        "tf32 in full: a GPU's tf32 products are not checked here.",
        table(head, rows),
    ]


def listed(names: Sequence[str]) -> str:
    return f" ({'; '.join(names)})" if names else ""


def matrix(facts: Facts) -> list[str]:
    cases = facts["cases"]
    found = [
        f"{one['name']}, {one['precision']}, {one['target']}: {fault}"
        for one in cases
        for fault in one["faults"]
    ]
    rows = []
    for target in dict.fromkeys(one["target"] for one in cases):
        for precision in dict.fromkeys(one["precision"] for one in cases):
            chosen = [one for one in cases if (one["target"], one["precision"]) == (target, precision)]
            rows.append(matrix_row(target, precision, chosen))
    head = [
        "target", "precision", "kernels", "faults", "spills", "registers", "shared memory", "multiplied by", "loop",
    ]  # fmt: skip
    return [
        f"Compiled ahead of time with Triton {facts['triton']}, no device: {len(cases)} kernels in {facts['seconds']} s, "
        f"{len(found)} faults{listed(found)}.",
        table(head, rows),
    ]


def matrix_row(target: str, precision: str, cases: Sequence[Facts]) -> list[Any]:
    """From the least to the most of each; the loop is counted in instructions."""
    compiled = [one for one in cases if "registers" in one]

    def span(values: Iterable[int], unit: str = "") -> str:
        every = sorted(values)
        return f"{every[0]:,}–{every[-1]:,}{unit}" if every else "–"

    return [
        target,
        precision,
        len(cases),
        sum(bool(one["faults"]) for one in cases),
        sum(one["spills"] for one in compiled),
        span(one["registers"] for one in compiled),
        span((one["shared"] for one in compiled), " B"),
        ", ".join(sorted({one["matrix"] or "nothing" for one in compiled})),
        span(sum(one["loop"].values()) for one in compiled if one["loop"]),
    ]


def swap(facts: Facts) -> list[str]:
    size = facts["megabytes"]
    return [
        f"{facts['net']}: exported with a dynamic batch, saved ({size['exported']} MB), loaded, swapped to "
        f"{facts['precision']} ({facts['swapped']} layers, {len(facts['kept'])} kept{listed(facts['kept'])}), saved "
        f"({size['swapped']} MB), loaded by a fresh process and run on {facts['batch']} images: relative error "
        f"{facts['error']['relative']:g} against the original (<= {facts['allowed']:g}), "
        f"{'failed' + listed(facts['failed']) if facts['failed'] else 'passed'}. On a processor the torch twins compute."
    ]


def floors(facts: Facts) -> list[str]:
    batches = list(facts["by_batch"][0]["floors"])
    rows = [[row["size"], row["precision"], row["way"], *row["floors"].values()] for row in facts["by_batch"]]
    layers = [
        [row["layer"], row["gflop"], row["mb"], row["floor"], row["bound"]] for row in facts["by_layer"]
    ]
    size, batch, precision = (facts["layers_of"][key] for key in ("size", "batch", "precision"))
    return [
        f"A model, not a measurement: microseconds on {facts['machine']}, from arithmetic and memory traffic alone, without "
        "launches. What our kernels are measured against, and what fusing can gain at most.",
        table(["px", "precision", "fused", *(f"batch {batch}" for batch in batches)], rows),
        f"Layer by layer, {size} px, batch {batch}, {precision}:",
        table(["layer", "GFLOP", "MB", "µs", "bound by"], layers),
    ]


def cpu(facts: Facts) -> list[str]:
    sections = [
        f"{facts['net']}, float32, threads: {facts['threads']}, {facts['machine']}. Peers take turns over "
        f"{facts['plan']['rounds']} rounds; medians [least, most] of all calls. Errors are against float64; who computed "
        "something else is not timed. Times against each other hold; alone, they are this machine's."
    ]
    for one in facts["cells"]:
        sections += [f"### {one['size']} px, batch {one['batch']}", cpu_cell(one)]
    return sections


def cpu_cell(facts: Facts) -> str:
    first = next(iter(facts["peers"]))
    usual = facts["peers"][first].get("modes", {}).get("eager", {}).get("p50")
    rows = []
    for name, entry in facts["peers"].items():
        if "modes" not in entry:
            rows.append([name, reason(entry), *[None] * 7])
            continue
        taken, error = entry["modes"]["eager"], entry["error"]
        rate = facts["batch"] / taken["p50"] * 1e6
        rows.append([
            name, f"{taken['p50'] / 1e3:.4g} [{taken['least'] / 1e3:.4g}, {taken['most'] / 1e3:.4g}]", rate,
            usual and usual / taken["p50"], facts["flops"] / taken["p50"] / 1e3, error["largest"], error["top1"],
            taken["samples"], entry["build_seconds"],
        ])  # fmt: skip
    head = [
        "peer", "ms", "images/s", f"{first} / it", "GFLOP/s", "largest error", "top-1 as float64", "calls", "s to build",
    ]  # fmt: skip
    return table(head, rows)


NOT_TIMED = ("left out", "absent", "failed", "wrong", "not captured")


def reason(entry: Facts) -> str:
    return next((f"{key}: {entry[key]}" for key in NOT_TIMED if key in entry), "not timed")


def gpu(facts: Facts) -> list[str]:
    taken = facts["taken"]
    device = taken["gpu"]
    sections = [
        f"**{device['name']}, {taken['date'][:10]}.** {facts['net']}. {facts['machine']}. Driver, clock, its most, power: "
        f"{device['driver, clock, its most, power'] or 'unknown'}. torch "
        f"{taken['versions']['torch']}, Triton {taken['versions'].get('triton', 'absent')}, cuDNN {device['cudnn']}.",
        "### Targets",
        table(["figure", "target", "measured", "met"], ([r["name"], r["target"], "not measured" if r["value"] is None else r["value"], r["met"]] for r in facts["targets"])),
        "### Ours against the best peer",
        headline(facts),
        "Times in µs: a CUDA graph's replay, medians; ratio is best peer / ours, graph against graph, [lowest, highest] over the "
        "rounds: below 1 the peer is faster. Launched: the same of what Python launches, call by call. A 99th percentile is "
        "given from 100 calls. Layers tuned: how many of the net's have a measured tile, and the seconds that tuning took now. "
        "Where a variant of ours is denied its tuned tile, it gets the model's choice, which is not tuned.",
        *losses(facts),
        "### All peers",
    ]  # fmt: skip
    for one in facts["cells"]:
        sections += [f"{one['size']} px, batch {one['batch']}, {one['precision']}:", gpu_cell(one)]
    for batch in facts["layers"]:
        size, count, precision = batch["size"], batch["batch"], batch["precision"]
        sections += [f"### Layers: {size} px, batch {count}, {precision}", layer_table(batch["rows"])]
    return sections


def headline(facts: Facts) -> str:
    rows = []
    for one in facts["cells"]:
        mine, place = one["peers"].get(OURS, {}), [one["size"], one["precision"], one["batch"]]
        if not one["ratio"]:
            why = "no peer was timed" if "modes" in mine else reason(mine)
            why = "peers were left out" if lacks_peers(one) else why
            rows.append([*place, why, *[None] * 10, tuned(one)])
            continue
        best = one["best"]
        taken = mine["modes"][best["mode"]]
        theirs = one["peers"][best["name"]]["modes"][best["mode"]]
        rate = one["flops"] / taken["p50"] / 1e6
        rows.append([
            *place, taken["p50"], taken["p99"], taken["samples"], best["name"], theirs["p50"], span(one), launched(one),
            one["batch"] / taken["p50"] * 1e6, rate,
            f"{100 * rate / one['peak']:.0f} %", f"{100 * one['floor'] / taken['p50']:.0f} %", tuned(one),
        ])  # fmt: skip
    head = [
        "px", "precision", "batch", "ours", "p99", "calls", "best peer", "its time", "ratio", "launched", "images/s", "TFLOP/s",
        "of the product", "of the floor", "layers tuned",
    ]  # fmt: skip
    return table(head, rows)


def span(verdict: Facts) -> str:
    rounds = verdict["ratio"]["rounds"]
    return f"{verdict['ratio']['value']} [{min(rounds)}, {max(rounds)}]"


def launched(one: Facts) -> str | None:
    verdict = one["launched"]
    return f"{span(verdict)}, {verdict['best']['name']}" if verdict and verdict["ratio"] else None


def tuned(one: Facts) -> str:
    """Of how many layers the tile was measured; the model chose the others'."""
    found = one.get("tuning")
    return f"{found['tuned']} of {found['layers']}, {found['seconds']} s" if found else "none"


def losses(facts: Facts) -> list[str]:
    """A line for each cell that a peer wins, with the reason as far as its layers tell it."""
    tables = {(one["size"], one["batch"], one["precision"]): one["rows"] for one in facts["layers"]}
    lines = []
    for one in facts["cells"]:
        if one["ratio"] and one["ratio"]["value"] < 1:
            rows = tables.get((one["size"], one["batch"], one["precision"]))
            place = f"{one['size']} px, {one['precision']}, batch {one['batch']}"
            lines.append(f"- Below 1: {place}, {one['ratio']['value']}: {why_lost(rows)}.")
    return ["\n".join(lines)] if lines else []


def why_lost(rows: Sequence[Facts] | None) -> str:
    if rows is None:
        return "its layers were not measured, the reason is not known"
    slower = [row for row in rows if row["ratio"] and row["ratio"]["value"] < 1]
    if not slower:
        return "no layer by itself is slower than cuDNN's, what lies between them is (launches, cold caches)"
    named = ", ".join(f"{row['layer']} {row['ratio']['value']}" for row in slower)
    return f"slower than cuDNN's by themselves: {named}"


def gpu_cell(facts: Facts) -> str:
    rows = []
    for name, entry in facts["peers"].items():
        if "modes" not in entry:
            rows.append([name, reason(entry), *[None] * 8])
            continue
        modes, error = entry["modes"], entry["error"]
        graph = modes.get("graph", {})
        rows.append([
            name, modes["eager"]["p50"], graph.get("p50", entry.get("not captured")), graph.get("p99"), graph.get("samples"),
            modes.get("graph, cold L2", {}).get("p50"), error["relative"], error["top1"], entry["build_seconds"],
            entry["peak_bytes"] and entry["peak_bytes"] / 1e6,
        ])  # fmt: skip
    head = [
        "", "launched", "graph", "p99", "replays", "cold L2", "relative error", "top-1 as float64", "s to build", "MB",
    ]  # fmt: skip
    return table(head, rows)


def layer_table(rows: Sequence[Facts]) -> str:
    """Against cuDNN alone: whole nets' other peers have no layers."""
    lines = []
    for one in rows:
        mine, best = one["peers"][OURS], one["best"]
        if not one["ratio"]:
            lines.append([one["layer"], reason(mine), *[None] * 6])
            continue
        taken = mine["modes"][best["mode"]]["p50"]
        theirs = one["peers"][best["name"]]["modes"][best["mode"]]["p50"]
        tile = " ".join(f"{key}={value}" for key, value in one["tile"].items())
        lines.append([
            one["layer"], taken, theirs, best["name"], one["ratio"]["value"], one["floor"], f"{100 * one['floor'] / taken:.0f} %", tile,
        ])  # fmt: skip
    head = [
        "layer", "ours µs", "cuDNN µs", "cuDNN's faster way", "cuDNN / ours", "floor µs", "of the floor", "tile",
    ]  # fmt: skip
    return table(head, lines)


def faults(results: Facts) -> list[str]:
    """Every check that did not pass. A peer that is wrong is shown, but it is no fault of ours."""
    found = [
        f"{part}: {name}"
        for part in ("parity", "matrix", "swap", "gpu")
        for name in results.get(part, {}).get("failed", [])
    ]
    for one in results.get("matrix", {}).get("cases", []):
        found += [
            f"matrix: {one['name']}, {one['precision']}, {one['target']}: {fault}" for fault in one["faults"]
        ]
    contests = list(results.get("gpu", {}).get("cells", []))
    contests += [row for one in results.get("gpu", {}).get("layers", []) for row in one["rows"]]
    for one in contests:
        for name, entry in one["peers"].items():
            if name.startswith(OURS) and ("modes" not in entry or "not captured" in entry):
                found.append(
                    f"gpu, {one['size']} px, batch {one['batch']}, {one['precision']}: {name} {reason(entry)}"
                )
    return found


def where(results: Facts) -> str:
    rows = []
    for part, facts in results.items():
        taken = facts["taken"]
        device = taken.get("gpu", {}).get("name", "no GPU")
        versions = ", ".join(f"{name} {number}" for name, number in taken["versions"].items())
        rows.append([
            part, taken["date"], taken.get("commit"), f"{taken['cpu']}, {taken['cores']} cores, {device}",
            taken.get("load"), f"`{taken['command']}`", versions,
        ])  # fmt: skip
    return table(["part", "date", "commit", "machine", "load before", "command", "versions"], rows)


SECTIONS = {"parity": parity, "matrix": matrix, "swap": swap, "floors": floors, "cpu": cpu, "gpu": gpu}
TITLES = {
    "parity": "What the kernels compute",
    "matrix": "What they compile to",
    "swap": "Swapped, from file to file",
    "floors": "The least that VGG19 can take",
    "cpu": "On a processor, without them",
    "gpu": "On a GPU",
}

COLUMNS = ("device", "size", "batch", "precision", "peer", "mode", "p50 us", "p99 us", "least us", "most us", "samples", "relative error", "top1", "state")  # fmt: skip


def rows_of(results: Facts) -> str:
    """CSV: a line for each peer and mode of each cell, of the processor and of the GPU."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for part in ("cpu", "gpu"):
        for one in results.get(part, {}).get("cells", []):
            taken_on = results[part]["taken"]
            device = taken_on.get("gpu", {}).get("name") if part == "gpu" else taken_on["cpu"]
            for name, entry in one["peers"].items():
                head = [device, one["size"], one["batch"], one["precision"], name]
                error = entry.get("error", {})
                for mode, taken in entry.get("modes", {"": {}}).items():
                    times = [taken.get(key) for key in ("p50", "p99", "least", "most", "samples")]
                    state = "timed" if taken else reason(entry)
                    writer.writerow([*head, mode, *times, error.get("relative"), error.get("top1"), state])
    return text.getvalue()
