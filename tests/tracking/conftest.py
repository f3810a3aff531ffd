"""Fixtures for the tests of tracking: an empty SQLite store and a real tracking server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import tracking_server


@pytest.fixture(scope="session")
def new_database(tmp_path_factory) -> Path:
    """Return a database with MLflow's empty tables. Creating them takes seconds, so tests copy the file."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def store(new_database, tmp_path, monkeypatch) -> Path:
    """Return an empty SQLite store in `tmp_path`, which becomes the working directory of the test."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(new_database.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def server(new_database, tmp_path_factory) -> Iterator[str]:
    """Yield the address of a real tracking server on loopback, which also serves artifacts."""
    home = tmp_path_factory.mktemp("server")
    (home / "mlflow.db").write_bytes(new_database.read_bytes())
    with tracking_server(home) as address:
        yield address
