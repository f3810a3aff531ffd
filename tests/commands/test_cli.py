"""The command-line program prints its version, short help and completion, and errors set its exit status."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import psutil
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


@pytest.mark.slow
def test_the_user_interface_on_a_busy_port_is_an_error(expunge, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        output = expunge("ui", "--port", str(port))
    assert output.returncode == 2 and f"port {port} of this machine cannot be used" in output.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_user_interface_makes_a_missing_database_before_its_server_starts(tmp_path):
    """MLflow's server creates the tables one by one, and an `expunge watch` started meanwhile must not interfere.

    It used to take them for an unfinished database and replaced it. The server then stopped with "attempt to write a
    readonly database".
    """
    (tmp_path / "params.yaml").write_text("")
    command = [sys.executable, "-u", "-m", "expunge", "ui", "--port", str(free_port())]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "workflowType=machine_learning" in process.stdout.readline()
            with closing(sqlite3.connect(tmp_path / "mlflow.db")) as db:  # MLflow creates this experiment last.
                assert db.execute("SELECT name FROM experiments").fetchall() == [("Default",)]
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_server_of_the_user_interface_ends_with_the_command(tmp_path):
    """MLflow's server consists of several processes, which used to go on after SIGTERM."""
    inner = "import time; print(1, flush=True); time.sleep(600)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    run = f"run_as_group([sys.executable, '-c', {outer!r}], dict(os.environ))"
    code = f"import os, sys; from expunge.cli import run_as_group; {run}"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(300) == 128 + signal.SIGTERM and len(children) == 2
        assert psutil.wait_procs(children, 300)[1] == []


@pytest.mark.slow
def test_no_store_is_made_in_a_folder_that_is_no_workspace(expunge, tmp_path):
    """The user interface and the list of requests used to make a database in any folder."""
    for arguments in (["ui"], ["request", "list"], ["watch", "--once"], ["predict", "in.parquet", "out.parquet"]):
        said = expunge(*arguments)
        assert said.returncode == 2 and "no workspace" in said.stderr and "expunge init" in said.stderr, arguments
        assert not list(tmp_path.iterdir()), arguments
    (tmp_path / "params.yaml").write_text("")
    assert expunge("request", "list").returncode == 0


def test_without_a_prefect_server_worker_and_deploy_say_so_in_one_line(tmp_path):
    (tmp_path / "flows").mkdir()
    (tmp_path / "prefect.yaml").write_text("")
    url = f"http://me:secret@127.0.0.1:{free_port()}/api"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src"), "PREFECT_API_URL": url}
    for command in ("worker", "deploy"):
        done = subprocess.run(
            [sys.executable, "-m", "expunge", command], cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "no Prefect server answers" in done.stderr and "secret" not in done.stderr


def test_show_prints_json_on_request(expunge, tmp_path):
    assert expunge("show", "--json").returncode == 2
    summary = {"schema": 1, "selected": None}
    Path(tmp_path / "reports").mkdir()
    (tmp_path / "reports/summary.json").write_text(json.dumps(summary))
    assert json.loads(expunge("show", "--json").stdout) == summary
