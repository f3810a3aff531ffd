"""A real MLflow tracking server on loopback, and what starting any server takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} never answered:\n{log.read_text()[-3000:]}")


@contextmanager
def tracking_server(
    home: Path, database: str | None = None, artifacts: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Its address; artifacts go through it. Runs and files lie in `home` where nothing else is said."""
    port, log = free_port(), home / "tracking.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database or f"sqlite:///{home / 'mlflow.db'}"]
    command += ["--artifacts-destination", artifacts or str(home / "files")]
    own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=home, env={**os.environ, **(environment or {}), **own}, stdout=out, stderr=out
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log, seconds=180)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
