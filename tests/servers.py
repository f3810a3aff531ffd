"""Start real servers on loopback: MLflow's tracking server and an S3 store."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The S3 store accepts any credentials.
S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> None:
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
    """Yield the address of a tracking server that also serves artifacts. By default its files are in `home`."""
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
        wait_for(f"http://127.0.0.1:{port}/health", process, log, seconds=300)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server that a test started, by force if it does not stop within 30 seconds."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _seaweed_ports() -> list[int]:
    """Return four free ports. SeaweedFS also listens on each plus 10,000, which must be below the ephemeral ports."""
    while True:
        first = random.randrange(20_000, 22_700, 10)
        try:
            for port in (first + i + more for i in range(4) for more in (0, 10_000)):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
            return [first + i for i in range(4)]
        except OSError:
            continue


@contextmanager
def object_store(home: Path, bucket: str) -> Iterator[tuple[str, Any]]:
    """Yield the address of a SeaweedFS server with an empty bucket, and a client."""
    import boto3
    from botocore.config import Config

    ports = dict(zip(("master", "volume", "filer", "s3"), _seaweed_ports(), strict=True))
    command = ["timeout", "600", str(Path(sys.executable).parent / "weed"), "server", f"-dir={home}", "-s3"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", *(f"-{name}.port={port}" for name, port in ports.items())]
    url, log = f"http://127.0.0.1:{ports['s3']}", home / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=home, stdout=out, stderr=out)
    try:
        wait_for(f"{url}/status", process, log)
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=S3_KEYS["AWS_DEFAULT_REGION"],
            config=Config(retries={"max_attempts": 10, "mode": "adaptive"}),
        )
        client.create_bucket(Bucket=bucket)
        yield url, client
    finally:
        end(process)
