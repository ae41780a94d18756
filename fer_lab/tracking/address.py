"""Which tracking store: the address, its default, and what is wrong with it, known before anything is trained."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from fer_lab.tracking.record import TrackingError


def default_root() -> Path:
    """The checkout that holds this file, or the working folder when fer_lab is installed elsewhere."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


def tracking_uri(uri: str | None = None, root: Path | None = None) -> str:
    """The store to use: `uri`, else MLFLOW_TRACKING_URI, else sqlite in the project's root.

    Raises TrackingError for an address that cannot be a store; whether it answers is not asked.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not uri:
        return f"sqlite:///{((root or default_root()) / 'mlflow.db').resolve().as_posix()}"
    scheme = uri.split("://")[0] if "://" in uri else ""
    if scheme == "sqlite":
        return _checked_sqlite(uri)
    if scheme in ("http", "https"):
        return _checked_server(uri)
    if scheme.split("+")[0] in ("postgresql", "mysql", "mssql") or uri.startswith("databricks"):
        return uri
    if scheme == "file" and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return uri
    raise TrackingError(
        f"tracking.uri={redacted(uri)} is no tracking store; give sqlite:////absolute/path/mlflow.db, "
        "http://host:port of an `mlflow server`, postgresql://…, or leave it out for mlflow.db here"
    )


def redacted(uri: str) -> str:
    """The address without its password, as it is written to files and messages."""
    return re.sub(r"://([^:/@]*):[^@/]*@", r"://\1:***@", uri)


def _checked_sqlite(uri: str) -> str:
    path = Path(uri.removeprefix("sqlite:///").split("?")[0]).absolute()
    if not uri.startswith("sqlite:///") or path.is_dir() or not path.name:
        raise TrackingError(f"tracking.uri={uri} names no file; give sqlite:////absolute/path/mlflow.db")
    if path.exists() and not _is_database(path):
        raise TrackingError(f"tracking.uri={uri}: {path} is not an SQLite database; name another file")
    writable = path if path.exists() else next(parent for parent in path.parents if parent.exists())
    if not os.access(writable, os.W_OK) or (writable != path and not writable.is_dir()):
        raise TrackingError(f"tracking.uri={uri}: {writable} cannot be written; name another file")
    return f"sqlite:///{path.as_posix()}"


def _is_database(path: Path) -> bool:
    """Asked of SQLite, since to open and close the file here would free it from the locks that this process holds on
    it, while another thread writes to it: two writers at once destroy it (sqlite.org/howtocorrupt.html, 2.2)."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=0)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:  # somebody is writing to it, or has died of it
        return True
    except sqlite3.DatabaseError:
        return False
    return True


def _checked_server(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise TrackingError(
            f"tracking.uri={redacted(uri)} has no host or a wrong port; give http://host:port"
        )
    return uri.rstrip("/")
