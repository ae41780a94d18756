"""python -m fer_lab.report run=ID | compare=[A,B] | sweep=NAME | matrix=[A,B] | anchors [record=[A]]: what is known of runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fer_lab.cli import UsageError, main

WORDS = ("anchors",)


def report(cfg: DictConfig) -> Any:
    asked = [name for name in REPORTS if cfg[name] not in (None, False)]
    if len(asked) != 1:
        raise UsageError(
            f"name one of run=ID, compare=[A,B], sweep=NAME, matrix=[A,B] or anchors; {len(asked)} are named"
            + (f": {', '.join(asked)}" if asked else "")
        )
    if cfg.record is not None and asked != ["anchors"]:
        raise UsageError(
            f"record={cfg.record} goes with anchors: python -m fer_lab.report anchors record=[RUN]"
        )
    return REPORTS[asked[0]](cfg)


def page(cfg: DictConfig) -> Path:
    """runs/ID/report/index.html and report.md, kept with the run; returns the first."""
    from fer_lab.chapters.book import bind
    from fer_lab.finished import read_run
    from fer_lab.pages import write_page
    from fer_lab.tracking.find import find_run

    refuse_wrong_numbers(cfg)
    run = read_run(find_run(str(cfg.run), Path(cfg.runs_dir), cfg.tracking.uri))
    output = Path(cfg.output).expanduser() if cfg.output else run.folder / "report"
    output.mkdir(parents=True, exist_ok=True)
    written = write_page(bind(run, cfg, output), output)
    keep(run.folder, cfg, output)
    for path in written:
        print(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
    return written[0]


def refuse_wrong_numbers(cfg: DictConfig) -> None:
    wrong = [f"{key}={cfg[key]}: expected 0 or more" for key in ("faces", "suspects") if cfg[key] < 0]
    if wrong:
        raise UsageError("\n".join(wrong))


def keep(folder: Path, cfg: DictConfig, output: Path) -> None:
    """Logs the page, and the temperature it fitted, to the run; one whose record is elsewhere keeps them on disk alone."""
    from fer_lab.evaluation.calibration import FILE, read_temperature
    from fer_lab.tracking.address import redacted, tracking_uri
    from fer_lab.tracking.forward import sync_run
    from fer_lab.tracking.record import RunRecord, open_run

    folder = folder.resolve()
    if not RunRecord(folder).id:
        return
    with open_run(folder.parent, folder.name) as record:
        if fitted := read_temperature(folder):
            record.tags({"fer.temperature": f"{fitted.value:.4f}"})
            record.artifact(FILE)
        if output.resolve().is_relative_to(folder):
            record.artifact(output)
        uri = tracking_uri(cfg.tracking.uri)
        home = uri if record.uri in ("", redacted(uri)) else record.uri
    sent = sync_run(folder, home)
    if sent.left:
        print(
            f"kept in {folder}, not yet in {redacted(home)}: {sent.reason}; python -m fer_lab.sync sends it"
        )


def compare(cfg: DictConfig) -> Any:
    from fer_lab.compare import compare

    return compare(cfg)


def leaderboard(cfg: DictConfig) -> Any:
    from fer_lab.standings import leaderboard

    return leaderboard(cfg)


def matrix(cfg: DictConfig) -> Any:
    from fer_lab.matrix import matrix

    return matrix(cfg)


def anchors(cfg: DictConfig) -> Any:
    from fer_lab.anchors import show

    return show(cfg)


REPORTS: dict[str, Callable[[DictConfig], Any]] = {
    "run": page,
    "compare": compare,
    "sweep": leaderboard,
    "matrix": matrix,
    "anchors": anchors,
}


def begin(words: list[str]) -> None:
    """`anchors` is a word of its own; everything else is key=value."""
    sys.argv[1:] = [f"{word}=true" if word in WORDS else word for word in words]
    main(report, "report")


if __name__ == "__main__":
    begin(sys.argv[1:])
