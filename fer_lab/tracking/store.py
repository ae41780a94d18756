"""Sends the record in a run's folder to an MLflow store; the only file of fer_lab that imports mlflow.

It does so inside functions, because that import takes seconds and belongs in the forwarder's thread.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from fer_lab.tracking.address import redacted
from fer_lab.tracking.calls import calls
from fer_lab.tracking.record import SPOOL, Event, RunRecord, read_events

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # both are read when mlflow is imported
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the forwarder tries again by itself
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

FORWARDED = "forwarded.json"
FORWARD_LOCK = ".forward.lock"
ALL_RUNS = 3  # mlflow.entities.ViewType.ALL, with the deleted ones
UPLOAD_SECONDS = "600"
STATUS = {
    "running": "RUNNING", "finished": "FINISHED", "pruned": "FINISHED",
    "failed": "FAILED", "diverged": "FAILED", "killed": "KILLED",
}  # fmt: skip
BATCH = {"metrics": 800, "params": 80, "tags": 80}
"""Rows per call, below MLflow's limits of 1000, 100 and 100, of 1000 in all, and of 1 MB."""
RUN_NAME, PARENT = "mlflow.runName", "fer.parent"
"""Tags of a record that say how MLflow shows the run, and which record's run it is nested in."""
PARENT_SECONDS = 2
"""How long to wait for a process that holds a parent's record but has not yet made its run."""
REFUSALS = (
    "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "BAD_REQUEST",
)  # fmt: skip


class Refused(Exception):
    """The store answers, and says no for good; trying again later does not help."""


class Connection(NamedTuple):
    client: MlflowClient
    experiment_id: str


def connect(uri: str, experiment: str) -> Connection:
    """A client and its experiment; a fresh database is created under a lock, since MLflow's own first start
    breaks when several processes do it at once."""
    with _database_lock(uri):
        _create_database(uri)
        client = open_client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return Connection(client, _create_experiment(client, uri, experiment))
    if found.lifecycle_stage != "active":
        raise Refused(
            f"experiment {experiment!r} was deleted in {redacted(uri)}: bring it back with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or choose another with tracking.experiment=NAME"
        )
    return Connection(client, found.experiment_id)


def open_client(uri: str) -> MlflowClient:
    """MLflow's client for the store, without its chatter in the terminal."""
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create_database(uri: str) -> None:
    """A fresh sqlite file appears whole: one left half made by a killed process would refuse all who come after."""
    if not uri.startswith("sqlite:///"):
        return
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        open_client(f"sqlite:///{part}").search_experiments()
        part.rename(path)


def _database_lock(uri: str) -> AbstractContextManager[object]:
    if not uri.startswith("sqlite:///"):
        return nullcontext()
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=120)


def _create_experiment(client: MlflowClient, uri: str, experiment: str) -> str:
    location = None  # a server knows its own
    if uri.startswith("sqlite:///"):
        folder = re.sub(r"[^\w.-]", "_", experiment)
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / folder).as_uri()
    try:
        return client.create_experiment(experiment, artifact_location=location)
    except Exception:
        found = client.get_experiment_by_name(experiment)  # another process was first
        if found is None:
            raise
        return found.experiment_id


class Sender:
    """Sends what a run's folder holds beyond the offset kept in its forwarded.json, one entry per store."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        self.record = RunRecord(folder)
        self.folder, self.uri, self.experiment = folder, uri, experiment
        self._connection: Connection | None = None
        self.reload()

    def reload(self) -> None:
        """Read again what was sent, by whoever sent it."""
        entry = forwarded(self.folder).get(redacted(self.uri), {})
        self.offset: int = entry.get("offset", 0)
        self.run_id: str = entry.get("run_id", "")
        self.late: list[Event] = entry.get("late", [])
        self._doubtful = True  # the last sending may have arrived without being noted

    def pending(self) -> int:
        """Number of events that the store does not have."""
        return len(self.late) + sum(1 for _ in read_events(self.folder, self.offset))

    def pending_bytes(self) -> int:
        """Size of the files that are still to be sent."""
        events = (event for event, _ in read_events(self.folder, self.offset) if event["event"] == "artifact")
        files = (self.folder / event["path"] for event in events)
        return sum(file.stat().st_size for file in files if file.is_file())

    def send(self) -> int:
        """Send all events there are; returns their number. Raises Refused, or whatever a dead store causes."""
        if not owes(self.folder, self.uri):
            return 0
        try:
            self.open()
            if self._doubtful:
                self._send_late_files()
            events = list(read_events(self.folder, self.offset))
            for group, offset in calls(events, self.offset):
                self._send_group(group)
                self._note(offset)
            if events:
                self._note(events[-1][1])
            self._doubtful = False
        except BaseException:
            self._doubtful, self._connection = True, None
            raise
        return len(events)

    def open(self) -> None:
        """Connect, and make the MLflow run where there is none."""
        self._connection = self._connection or connect(self.uri, self.experiment)
        self._ensure_run()

    @property
    def _client(self) -> MlflowClient:
        assert self._connection is not None
        return self._connection.client

    def _note(self, offset: int) -> None:
        self.offset = offset
        entry = {"run_id": self.run_id, "experiment": self.experiment, "offset": offset, "late": self.late}
        fresh = self.folder / f"{FORWARDED}.new"
        fresh.write_text(json.dumps(forwarded(self.folder) | {redacted(self.uri): entry}, indent=1))
        fresh.replace(self.folder / FORWARDED)

    def _ensure_run(self) -> None:
        """Open the MLflow run of this folder, or make one; a run that the store has lost is sent from its start."""
        if self.run_id and not self._doubtful:
            return
        assert self._connection is not None
        experiment_id = self._connection.experiment_id
        self.record = RunRecord(self.folder)
        run = self._find(experiment_id)
        if run is not None:
            self.run_id = run.info.run_id
            self._check_active(run)
            return
        tags = {"fer.id": self.record.id, "fer.run": self.record.name, "fer.signature": self.record.signature}
        started = next(event["time"] for event, _ in read_events(self.folder))
        name = self.record.tag(RUN_NAME) or self.record.name
        run = self._client.create_run(experiment_id, start_time=started, tags=tags, run_name=name)
        self.run_id, self.late, self._doubtful = run.info.run_id, [], False
        self._note(0)

    def _find(self, experiment_id: str) -> Run | None:
        """The MLflow run of this folder, by the id noted here or, if that was lost, by the record's own."""
        if self.run_id:
            try:
                return self._client.get_run(self.run_id)
            except Exception as error:
                if not _is_refusal(error):
                    raise
        mine = f"tags.`fer.id` = '{self.record.id}'"
        found = self._client.search_runs([experiment_id], mine, run_view_type=ALL_RUNS, max_results=1)
        return found[0] if found else None

    def _check_active(self, run: Run) -> None:
        if run.info.lifecycle_stage != "active":
            raise Refused(
                f"run {self.record.name} was deleted in {redacted(self.uri)}: "
                f"bring it back with `mlflow runs restore --run-id {self.run_id}`"
            )

    def _send_group(self, events: list[Event]) -> None:
        try:
            self._send_events(events)
        except Exception as error:
            self._check_active(self._client.get_run(self.run_id))  # raises as well if the store is down
            if events[0]["event"] == "artifact":
                self.late.append(events[0])
                log.warning(
                    "%s of run %s is sent later: %s", events[0]["path"], self.record.name, first_line(error)
                )
            elif not _is_refusal(error):
                raise
            elif len(events) == 1:
                log.warning("MLflow refuses a part of %s: %s", self.folder, first_line(error))
            else:
                for event in events:
                    self._send_group([event])

    def _send_late_files(self) -> None:
        """Files whose store was down or closed to us while the tracking store took everything else."""
        late, self.late = self.late, []
        for event in late:
            self._send_group([event])
        if late:
            self._note(self.offset)

    def _send_events(self, events: list[Event]) -> None:
        match events[0]["event"]:
            case "params" | "tags" | "metrics":
                self._send_numbers(events)
            case "artifact":
                self._send_artifact(events[0])
            case "dataset":
                self._send_datasets(events)
            case "state":
                self._send_state(events[0])

    def _send_numbers(self, events: list[Event]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        def values(kind: str) -> Iterator[tuple[Event, str, Any]]:
            chosen = (event for event in events if event["event"] == kind)
            return ((event, _key(key), value) for event in chosen for key, value in event["values"].items())

        metrics = [Metric(key, float(v), event["time"], event["step"]) for event, key, v in values("metrics")]
        params = {key: Param(key, str(value)[:6000]) for _, key, value in values("params")}
        tags = {key: RunTag(key, str(value)[:8000]) for _, key, value in values("tags") if key != RUN_NAME}
        if PARENT in tags and (parent := self._parent_id(tags[PARENT].value)):
            tags["mlflow.parentRunId"] = RunTag("mlflow.parentRunId", parent)
        if metrics and self._doubtful:
            metrics = self._unknown(metrics)
        rows: dict[str, list[Any]] = {
            "metrics": metrics, "params": list(params.values()), "tags": list(tags.values())
        }  # fmt: skip
        for call in range(max(-(-len(rows[kind]) // size) for kind, size in BATCH.items())):
            part = {kind: rows[kind][call * size : (call + 1) * size] for kind, size in BATCH.items()}
            self._client.log_batch(self.run_id, part["metrics"], part["params"], part["tags"])

    def _parent_id(self, name: str) -> str:
        """The MLflow run of the record `name` beside this one, made now if nobody has sent anything of it; else empty."""
        folder = self.folder.parent / name
        if not (folder / SPOOL).exists():
            log.warning("run %s belongs to %s, which is not there: it will stand alone", self.folder, name)
            return ""
        if known := mlflow_run_id(folder, self.uri):
            return known
        with FileLock(folder / FORWARD_LOCK, timeout=PARENT_SECONDS, thread_local=False):
            parent = Sender(folder, self.uri, RunRecord(folder).experiment or self.experiment)
            parent.open()
        return parent.run_id

    def _unknown(self, metrics: Sequence[Metric]) -> list[Metric]:
        known = self._client.get_run(self.run_id).data.metrics
        names = {metric.key for metric in metrics} & set(known)
        seen = {(name, m.step) for name in names for m in self._client.get_metric_history(self.run_id, name)}
        return [metric for metric in metrics if (metric.key, metric.step) not in seen]

    def _send_artifact(self, event: Event) -> None:
        path = self.folder / event["path"]
        if not path.exists():
            log.warning("artifact %s of run %s is gone and is not sent", event["path"], self.record.name)
            return
        with _patience(UPLOAD_SECONDS):
            if path.is_dir():
                target = posixpath.join(event["folder"], path.name)
                self._client.log_artifacts(self.run_id, str(path), target)
            else:
                self._client.log_artifact(self.run_id, str(path), event["folder"] or None)

    def _send_datasets(self, events: list[Event]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        def made(event: Event) -> Dataset:
            return Dataset(
                name=event["name"],
                digest=event["digest"][:36],  # MLflow's limit; the whole one is in the profile
                source_type="local",
                source=json.dumps({"path": event["source"]}),
                profile=json.dumps({"faces": event["counts"], "digest": event["digest"]}),
            )

        usage = "mlflow.data.context"
        inputs = [DatasetInput(made(event), [InputTag(usage, event["context"])]) for event in events]
        self._client.log_inputs(self.run_id, inputs)

    def _send_state(self, event: Event) -> None:
        from mlflow.entities import RunTag

        tags = {"fer.state": event["state"], "fer.reason": event.get("reason", "")[:8000]}
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items() if value])
        if event["state"] == "running":
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            self._client.set_terminated(self.run_id, STATUS[event["state"]], end_time=event["time"])


def _key(name: str) -> str:
    """A name that MLflow accepts for metrics, params and tags."""
    return posixpath.normpath(re.sub(r"[^\w\-./: ]", "_", name)).lstrip("/.")[:250]


def _is_refusal(error: Exception) -> bool:
    return getattr(error, "error_code", "") in REFUSALS


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for one line of a terminal."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    if line.startswith("API request"):  # urllib3's whole history of the attempt
        cause = re.search(r"\[Errno -?\d+\] [^\"')(]+|timed out", line)
        line = cause[0].strip() if cause else line
    return line[:300]


@contextmanager
def _patience(seconds: str) -> Iterator[None]:
    """A longer HTTP limit, since a server may need minutes to put a checkpoint away."""
    before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = seconds
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before


def owes(folder: Path, uri: str) -> bool:
    """Whether the store still misses a part of the record (or its last line is not whole yet)."""
    entry = forwarded(folder).get(redacted(uri), {})
    spool = folder / SPOOL
    size = spool.stat().st_size if spool.exists() else 0
    return bool(entry.get("late")) or entry.get("offset", 0) != size


def mlflow_run_id(folder: Path, uri: str) -> str:
    """The run that a folder has in a store; empty while nothing of it was sent."""
    return str(forwarded(folder).get(redacted(uri), {}).get("run_id", ""))


def forwarded(folder: Path) -> dict[str, dict[str, Any]]:
    """What was sent: for each store's address the run_id, the experiment and the byte offset in the record."""
    try:
        return json.loads((folder / FORWARDED).read_text())
    except (FileNotFoundError, ValueError):
        return {}
