"""Look at the runs in a browser: `python -m fer_lab.ui [--port 5000] [--host 127.0.0.1] [--uri ADDRESS]`.

One worker, this machine only, no telemetry and no job runner: MLflow's own default takes 1.8 GB.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def main(arguments: list[str] | None = None) -> int:
    chosen = _parse(arguments)
    from fer_lab.tracking.address import default_root, redacted, tracking_uri
    from fer_lab.tracking.record import TrackingError

    try:
        uri = tracking_uri(chosen.uri)
    except TrackingError as error:
        return _refuse(str(error))
    if uri.startswith("http"):
        return _refuse(f"{redacted(uri)} is a server already: open it in the browser")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return _refuse(f"no runs yet in {uri}; `make train` makes the first one")
    if reason := _taken(chosen.host, chosen.port):
        return _refuse(
            f"port {chosen.port} on {chosen.host} is not free ({reason}); try --port {chosen.port % 65535 + 1}"
        )
    if chosen.host not in LOOPBACK:
        print(_warning(chosen.host, chosen.port, chosen.allowed_hosts), file=sys.stderr)
    print(f"runs of {redacted(uri)} at http://{chosen.host}:{chosen.port}  (Ctrl-C stops it)", flush=True)
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else default_root()
    return _serve(_command(uri, folder, chosen), folder)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fer_lab.ui", description=__doc__.splitlines()[0].split(":")[0]
    )
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument(
        "--host", default="127.0.0.1", help="another address opens the runs to the network, unprotected"
    )
    parser.add_argument(
        "--uri", help="the store (default: MLFLOW_TRACKING_URI, or mlflow.db in the project's root)"
    )
    parser.add_argument("--allowed-hosts", help="names under which browsers may ask for it, comma separated")
    return parser.parse_args(arguments)


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _taken(host: str, port: int) -> str:
    """Why the port cannot be listened on, or nothing."""
    if not 0 < port < 65536:
        return "ports are 1 to 65535"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        return str(error)
    return ""


def _warning(host: str, port: int, allowed: str | None) -> str:
    name = socket.gethostname()
    told = (
        ""
        if allowed
        else f"\nMLflow refuses names it does not know: add --allowed-hosts {name}:{port},{name}"
    )
    return f"Listening on {host}: who reaches this machine reads, changes and deletes all runs; there is no password.{told}"


def _command(uri: str, folder: Path, chosen: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", chosen.host, "--port", str(chosen.port)]
    command += [
        "--artifacts-destination",
        str(folder / "mlruns"),
    ]  # files of those who log through this server
    return command + (["--allowed-hosts", chosen.allowed_hosts] if chosen.allowed_hosts else [])


def _serve(command: list[str], folder: Path) -> int:
    environment = os.environ | ENVIRONMENT
    if os.name == "posix":  # in place of this process, so that signals reach the server
        os.chdir(folder)
        os.execvpe(command[0], command, environment)
    return subprocess.call(command, cwd=folder, env=environment)


if __name__ == "__main__":
    sys.exit(main())
