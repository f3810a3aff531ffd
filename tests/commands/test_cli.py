"""The command-line program prints its version, short help and completion, and errors set its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.pipeline import ENVIRONMENT, ROOT
from tests.servers import free_port


@pytest.fixture
def expunge(tmp_path):
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "expunge", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)

    return run


def test_version_help_and_completion_are_printed(expunge):
    assert expunge("--version").stdout == f"expunge {version('expunge')}\n"
    for arguments in (["-h"], ["request", "-h"], ["review", "-h"]):
        shown = expunge(*arguments)
        assert shown.returncode == 0 and "Usage: " in shown.stdout, shown.stderr
    assert "--install-completion" in expunge("-h").stdout


def test_the_user_interface_on_a_busy_port_is_an_error(expunge, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        output = expunge("ui", "--port", str(port))
    assert output.returncode == 2 and f"port {port} of this machine cannot be used" in output.stderr
    assert not list(tmp_path.iterdir())


def test_the_user_interface_makes_a_missing_database_before_its_server_starts(tmp_path):
    """MLflow's server creates the tables one by one, and an `expunge watch` started meanwhile must not interfere.

    It used to take them for an unfinished database and replaced it. The server then stopped with "attempt to write a
    readonly database".
    """
    command = [sys.executable, "-u", "-m", "expunge", "ui", "--port", str(free_port())]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert "MLflow UI: http" in process.stdout.readline()
            with closing(sqlite3.connect(tmp_path / "mlflow.db")) as db:  # MLflow creates this experiment last.
                assert db.execute("SELECT name FROM experiments").fetchall() == [("Default",)]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_show_prints_json_on_request(expunge, tmp_path):
    assert expunge("show", "--json").returncode == 2
    summary = {"schema": 1, "selected": None}
    Path(tmp_path / "reports").mkdir()
    (tmp_path / "reports/summary.json").write_text(json.dumps(summary))
    assert json.loads(expunge("show", "--json").stdout) == summary
