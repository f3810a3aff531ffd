"""Test that the tracking server of docker/ records which account moved the alias `champion`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.pipeline import ROOT
from tests.servers import end, free_port, wait_for

ADMIN, PASSWORD = "admin", "a-long-password-of-a-test"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Yield the address of a tracking server with the settings of docker/mlflow-auth.ini, but on SQLite."""
    settings = (ROOT / "docker/mlflow-auth.ini").read_text()
    (old,) = [line for line in settings.splitlines() if line.startswith("database_uri")]
    (tmp_path / "auth.ini").write_text(settings.replace(old, f"database_uri = sqlite:///{tmp_path / 'auth.db'}"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "docker"),
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-a-test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        f"sqlite:///{tmp_path / 'mlflow.db'}",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log, seconds=300)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def as_account(monkeypatch, name: str, password: str = PASSWORD) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


@pytest.mark.long
@pytest.mark.slow
def test_the_account_that_moved_the_alias_is_on_the_version_and_cannot_be_forged(server, monkeypatch):
    from mlflow.server.auth.client import AuthServiceClient

    as_account(monkeypatch, ADMIN)
    client = MlflowClient(server, registry_uri=server)
    AuthServiceClient(server).create_user("reader", PASSWORD)
    client.create_registered_model("m")
    for _ in range(2):
        client.create_model_version("m", source="s3://bucket/model")
    client.set_registered_model_alias("m", "challenger", "2")
    assert "moved_by" not in client.get_model_version("m", "2").tags
    client.set_registered_model_alias("m", "champion", "1")
    assert client.get_model_version("m", "1").tags["moved_by"] == ADMIN
    with pytest.raises(MlflowException, match="403"):
        client.set_model_version_tag("m", "1", "moved_by", "somebody else")
    with pytest.raises(MlflowException, match="403"):
        client.delete_model_version_tag("m", "1", "moved_by")
    client.set_model_version_tag("m", "1", "reason", "tags of another name can be set")
    # A person who may only read cannot move the alias, and leaves no name.
    as_account(monkeypatch, "reader")
    with pytest.raises(MlflowException):
        client.set_registered_model_alias("m", "champion", "2")
    assert "moved_by" not in client.get_model_version("m", "2").tags
    assert client.get_model_version_by_alias("m", "champion").version == "1"
