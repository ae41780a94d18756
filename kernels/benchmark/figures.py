"""Pictures of results; without matplotlib there are none, and the report says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kernels.benchmark.contest import OURS, Facts, quickest


def draw(results: Facts, folder: Path, stem: str) -> list[Path]:
    """`STEM_NAME.png` in `folder` for everything that the results hold; an empty list without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    pictures: dict[str, Callable[[Any], bool]] = {}
    if results.get("cpu", {}).get("cells"):
        pictures["peers"] = lambda figure: cpu_peers(figure, results["cpu"])
    if results.get("gpu", {}).get("cells"):
        facts = results["gpu"]
        pictures["latency"] = lambda figure: latency(figure, facts["cells"])
        pictures["ratios"] = lambda figure: ratios(figure, facts["cells"])
        pictures["ablations"] = lambda figure: ablations(figure, facts["cells"])
        pictures["layers"] = lambda figure: layers(figure, facts["layers"])
    return [path for name, paint in pictures.items() if (path := save(paint, folder / f"{stem}_{name}.png"))]


def save(paint: Callable[[Any], bool], path: Path) -> Path | None:
    """None where there is nothing to show."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(10, 6), layout="constrained")
    try:
        if not paint(figure):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    finally:
        plt.close(figure)
    return path


def cpu_peers(figure: Any, facts: Facts) -> bool:
    """Images per second of each peer, a group for each cell; the thin line spans the rounds."""
    cells = facts["cells"]
    axes = figure.subplots(1, len(cells), squeeze=False)[0]
    for axis, one in zip(axes, cells, strict=True):
        timed = {name: entry["modes"]["eager"] for name, entry in one["peers"].items() if "modes" in entry}
        rates = [one["batch"] / taken["p50"] * 1e6 for taken in timed.values()]
        spans = [
            [one["batch"] / edge(taken["rounds"]) * 1e6 for edge in (max, min)] for taken in timed.values()
        ]
        positions = range(len(timed))
        axis.barh(positions, rates, color="tab:blue")
        axis.hlines(positions, [low for low, _ in spans], [high for _, high in spans], color="black", lw=1)
        axis.set_yticks(positions, list(timed) if axis is axes[0] else [""] * len(timed))
        axis.invert_yaxis()
        axis.set_title(f"{one['size']} px, batch {one['batch']}", fontsize=10)
        axis.set_xlabel("images/s")
    figure.suptitle(
        f"VGG19, float32, threads: {facts['threads']}, no GPU; kernels not measured here", fontsize=11
    )
    return bool(cells)


def groups(cells: Sequence[Facts]) -> dict[tuple[int, str], list[Facts]]:
    """Cells by size and precision, by batch."""
    found: dict[tuple[int, str], list[Facts]] = {}
    for one in sorted(cells, key=lambda one: one["batch"]):
        found.setdefault((one["size"], one["precision"]), []).append(one)
    return found


def fastest(entry: Facts) -> float:
    return float(entry["modes"][quickest(entry)]["p50"])


def latency(figure: Any, cells: Sequence[Facts]) -> bool:
    """Microseconds against the batch size with the floor below, both axes logarithmic."""
    grouped = groups(cells)
    axes = figure.subplots(1, len(grouped), squeeze=False)[0]
    for axis, ((size, precision), members) in zip(axes, grouped.items(), strict=True):
        names = dict.fromkeys(
            name
            for one in members
            for name, entry in one["peers"].items()
            if entry["is_peer"] or name == OURS
        )
        for name in names:
            points = [
                (one["batch"], fastest(one["peers"][name]))
                for one in members
                if "modes" in one["peers"].get(name, {})
            ]
            if points:
                style = (
                    {"lw": 2.5, "color": "black", "zorder": 3} if name == OURS else {"lw": 1, "alpha": 0.8}
                )
                axis.loglog(*zip(*points, strict=True), marker="o", ms=3, label=name, **style)
        axis.loglog([one["batch"] for one in members], [one["floor"] for one in members], "k:", label="floor")
        batches = [one["batch"] for one in members]
        axis.set_xticks(batches, batches)
        axis.minorticks_off()
        axis.set(title=f"{size} px, {precision}", xlabel="batch")
    axes[0].set_ylabel("µs")
    axes[-1].legend(fontsize=6)
    return bool(cells)


def ratios(figure: Any, cells: Sequence[Facts]) -> bool:
    """Best peer / ours in every cell; white is 1, blue is ours faster."""
    grouped = groups(cells)
    batches = sorted({one["batch"] for one in cells})
    grid = [
        [
            next((one["ratio"]["value"] for one in members if one["batch"] == batch and one["ratio"]), None)
            for batch in batches
        ]
        for members in grouped.values()
    ]
    axis = figure.subplots()
    axis.imshow(
        [[float("nan") if value is None else value for value in line] for line in grid],
        cmap="RdBu",
        vmin=0,
        vmax=2,
    )
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            axis.text(column, row, "–" if value is None else f"{value:.2f}", ha="center", va="center")
    axis.set_xticks(range(len(batches)), batches)
    axis.set_yticks(range(len(grouped)), [f"{size} px, {precision}" for size, precision in grouped])
    axis.set(title="best peer / ours", xlabel="batch")
    return bool(cells)


def ablations(figure: Any, cells: Sequence[Facts]) -> bool:
    """What ours takes without one of its features, over what it takes; in float16, all precisions would not fit."""
    bars = {
        f"{one['size']} px, batch {one['batch']}": variants(one)
        for one in cells
        if one["precision"] == "float16" and variants(one)
    }
    if not bars:
        return False
    axes = figure.subplots(1, len(bars), squeeze=False)[0]
    for axis, (title, values) in zip(axes, bars.items(), strict=True):
        axis.barh(list(values), list(values.values()))
        axis.axvline(1, color="black", lw=1)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel("its time / ours", fontsize=7)
        axis.tick_params(labelsize=7, labelleft=axis is axes[0])
    return True


def variants(one: Facts) -> dict[str, float]:
    """By name, in the mode in which the whole is the fastest; `launched from Python` is the whole without a graph."""
    mine = one["peers"].get(OURS, {})
    if "modes" not in mine:
        return {}
    mode, whole = quickest(mine), fastest(mine)
    found = {"launched from Python": mine["modes"]["eager"]["p50"] / whole}
    for name, entry in one["peers"].items():
        if name.startswith(f"{OURS} ") and mode in entry.get("modes", {}):
            found[name.removeprefix(f"{OURS} ")] = entry["modes"][mode]["p50"] / whole
    return found


def layers(figure: Any, tables: Sequence[Facts]) -> bool:
    """Microseconds of each layer: ours, the faster of cuDNN's ways, the floor."""
    if not tables:
        return False
    axes = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for axis, one in zip(axes, tables, strict=True):
        rows = [row for row in one["rows"] if "modes" in row["peers"].get(OURS, {}) and row["ratio"]]
        positions = range(len(rows))
        axis.bar(
            [place - 0.2 for place in positions],
            [row["peers"][OURS]["modes"][row["best"]["mode"]]["p50"] for row in rows],
            0.4,
            label=OURS,
        )
        peers = [row["peers"][row["best"]["name"]]["modes"][row["best"]["mode"]]["p50"] for row in rows]
        axis.bar([place + 0.2 for place in positions], peers, 0.4, label="cuDNN")
        axis.plot(positions, [row["floor"] for row in rows], "k_", ms=14, label="floor")
        axis.set_xticks(positions, [row["layer"] for row in rows], rotation=60, fontsize=7)
        axis.set_title(f"{one['size']} px, batch {one['batch']}, {one['precision']}", fontsize=9)
        axis.set_ylabel("µs")
    axes[0].legend(fontsize=7)
    return True
