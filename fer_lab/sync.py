"""Send to MLflow what runs still owe it: `python -m fer_lab.sync [runs=runs] [uri=ADDRESS]`.

A run writes to its folder first. What a store that was down has missed, and the end of runs that were killed,
is sent by the next training that reaches the store, or now by this. Exit code 1 if something is left.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    settings = _parse(arguments)
    from fer_lab.tracking.address import tracking_uri
    from fer_lab.tracking.forward import sync
    from fer_lab.tracking.record import TrackingError, run_folders

    runs = Path(settings["runs"])
    if not run_folders(runs):
        print(f"{runs.absolute()} holds no runs; give their folder with runs=PATH", file=sys.stderr)
        return 2
    try:
        reports = sync(runs, tracking_uri(settings["uri"]) if settings["uri"] else None)
    except TrackingError as error:
        print(error, file=sys.stderr)
        return 2
    for report in reports:
        kept = f", {report.left} kept: {report.reason}" if report.left else ""
        print(f"{report.name}: {report.sent} events sent{kept}")
    print(
        f"{len(reports)} of {len(run_folders(runs))} runs owed something" if reports else "nothing was owed"
    )
    return int(any(report.left for report in reports))


def _parse(arguments: list[str] | None) -> dict[str, str]:
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.sync",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="runs=FOLDER (runs), uri=ADDRESS (each run's own)"
    )
    settings = {"runs": "runs", "uri": ""}
    for text in parser.parse_args(arguments).settings:
        key, equals, value = text.partition("=")
        if not equals or key not in settings:
            parser.error(f"{text!r} is not understood; use runs=FOLDER or uri=ADDRESS")
        settings[key] = value
    return settings


if __name__ == "__main__":
    sys.exit(main())
