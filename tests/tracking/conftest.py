from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import tracking_server


@pytest.fixture(scope="session")
def new_database(tmp_path_factory) -> Path:
    """A database with MLflow's tables in it; making them takes seconds, copying them nothing."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def store(new_database, tmp_path, monkeypatch) -> Path:
    """An empty SQLite store of its own, in use through the environment; the working directory is the test's."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(new_database.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def server(new_database, tmp_path_factory) -> Iterator[str]:
    """A real tracking server on loopback, artifacts through it; yields its address."""
    home = tmp_path_factory.mktemp("server")
    (home / "mlflow.db").write_bytes(new_database.read_bytes())
    with tracking_server(home) as address:
        yield address
