"""From whatever a user calls a run to its folder."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from fer_lab.tracking.address import redacted, tracking_uri
from fer_lab.tracking.record import SPOOL, TrackingError
from fer_lab.tracking.store import FORWARDED, first_line, forwarded, open_client

MODELS = "models:/"


def find_run(spec: str, runs_dir: str | Path, uri: str | None = None) -> Path:
    """The folder of a run, given as folder name or its unique beginning, path, MLflow run id or `runs:/ID`; or as
    the model that was registered from it, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    A run that only MLflow holds is downloaded into `runs_dir`. Raises TrackingError that lists near names.
    """
    runs_dir = Path(runs_dir)
    if spec.strip().startswith(MODELS):
        spec = _run_of_model(spec.strip(), tracking_uri(uri))
    wanted = spec.strip().removeprefix("runs:/").rstrip("/")
    for folder in (Path(wanted), runs_dir / wanted):
        if wanted and ((folder / SPOOL).exists() or (folder / "config.yaml").exists()):
            return folder
    folders = _folders(runs_dir)
    matches = [folder for folder in folders if wanted and folder.name.startswith(wanted)]
    matches = matches or [folder for folder in folders if wanted in _mlflow_ids(folder)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(folder.name for folder in matches[-8:])
        raise TrackingError(
            f"run={spec} fits {len(matches)} runs in {runs_dir}: {names}; type more of the name"
        )
    if re.fullmatch(r"[0-9a-f]{32}", wanted):
        return _download(wanted, runs_dir, tracking_uri(uri))
    raise TrackingError(f"run={spec} is not in {runs_dir}, and is no MLflow run id; {_hint(wanted, folders)}")


def _folders(runs_dir: Path) -> list[Path]:
    """Trained here or downloaded, oldest first."""
    found = {path.parent for name in (SPOOL, FORWARDED) for path in runs_dir.glob(f"[!.]*/{name}")}
    return sorted(found, key=lambda folder: (folder.stat().st_mtime, folder.name))


def _mlflow_ids(folder: Path) -> Iterator[str]:
    return (entry.get("run_id", "") for entry in forwarded(folder).values())


def _hint(wanted: str, folders: list[Path]) -> str:
    names = [folder.name for folder in folders]
    if not names:
        return "no run is there yet; `python -m fer_lab.train` makes one"
    near = get_close_matches(wanted, names, n=3)
    return f"did you mean {', '.join(near)}?" if near else f"the latest are {', '.join(names[-5:][::-1])}"


def _run_of_model(spec: str, uri: str) -> str:
    """The id of the run that a registered model is of."""
    named = re.fullmatch(r"models:/([^@/]+)(?:@([^@/]+)|/(\d+))", spec)
    if named is None:
        raise TrackingError(
            f"run={spec}: expected models:/NAME@ALIAS or models:/NAME/VERSION, such as @champion"
        )
    name, alias, version = named.groups()
    try:
        client = open_client(uri)
        if alias:
            return str(client.get_model_version_by_alias(name, alias).run_id)
        return str(client.get_model_version(name, version).run_id)
    except Exception as error:
        raise TrackingError(
            f"run={spec} cannot be had from {redacted(uri)}: {first_line(error)}{_registered(uri)}"
        ) from error


def _registered(uri: str) -> str:
    """What may be meant instead, where the store answers at all."""
    with suppress(Exception):
        models = open_client(uri).search_registered_models(max_results=5)
        names = [f"{MODELS}{one.name}@{alias}" for one in models for alias in one.aliases]
        return f"; registered there: {', '.join(names)}" if names else "; no model is registered there"
    return ""


def _download(run_id: str, runs_dir: Path, uri: str) -> Path:
    runs_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=runs_dir) as work:
        try:
            client = open_client(uri)
            run = client.get_run(run_id)
            client.download_artifacts(run_id, "", work)
        except Exception as error:
            raise TrackingError(
                f"run={run_id} is not in {runs_dir} and cannot be had from {redacted(uri)}: {first_line(error)}"
            ) from error
        (Path(work) / FORWARDED).write_text(json.dumps({redacted(uri): {"run_id": run_id}}))
        name = run.data.tags.get("fer.run") or run.info.run_name or run_id
        folder = runs_dir / re.sub(r"[^\w.=,+@ -]", "_", name)
        folder = runs_dir / f"{folder.name}-{run_id[:8]}"  # a name that no training here takes
        if not folder.exists():
            Path(work).rename(folder)
            Path(work).mkdir()
    return folder
