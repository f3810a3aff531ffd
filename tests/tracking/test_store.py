"""Test the choice, the check and the creation of the tracking store, on SQLite files and on real servers."""

from __future__ import annotations

import fcntl
import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest

from expunge.system.errors import TrackingError
from expunge.system.paths import workspace
from expunge.tracking import CHALLENGER, aliased, connect, find_version, preflight, register_model, tracking_uri
from expunge.tracking.store import shown
from tests.killing import in_a_child
from tests.servers import free_port
from tests.tracking.test_registry import submission
from tests.tracking.test_runs import log


def test_default_is_sqlite_in_the_working_directory(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri() == "sqlite:///mlflow.db"


def test_an_experiment_of_dvc_logs_into_the_workspace_that_started_it(tmp_path, monkeypatch):
    """DVC runs `dvc exp run --temp` in a folder that it deletes, and names the workspace in DVC_ROOT."""
    folder = tmp_path / ".dvc/tmp/exps/standalone/tmp1"
    folder.mkdir(parents=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(folder)
    assert workspace() == tmp_path and tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    for elsewhere, root in ((tmp_path, tmp_path), (folder, folder), (folder, tmp_path / "other")):
        monkeypatch.chdir(elsewhere)
        monkeypatch.setenv("DVC_ROOT", str(root))
        assert workspace() == Path() and tracking_uri() == "sqlite:///mlflow.db"


def test_a_copied_and_a_renamed_workspace_have_artifacts_of_their_own(new_database, tmp_path, monkeypatch, capsys):
    """MLflow stores absolute paths, with which a copy wrote into the old folder and a renamed one found nothing."""
    first, copied, renamed = (tmp_path / name for name in ("first", "copied", "renamed 2"))
    first.mkdir()
    (first / "mlflow.db").write_bytes(new_database.read_bytes())
    (first / "results.md").write_text("# Results\n")

    def at(folder: Path) -> Path:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        return folder

    ids, s = log(artifacts=[at(first) / "results.md"]), submission(tmp_path, "mlp")
    register_model(s)
    assert "no longer in" not in capsys.readouterr().err
    shutil.copytree(first, copied)
    before = sorted(first.rglob("*"))
    own = log(artifacts=[at(copied) / "results.md"])
    assert own.experiment == ids.experiment and sorted(first.rglob("*")) == before
    assert "no longer in" in capsys.readouterr().err
    at(tmp_path)
    shutil.rmtree(first)
    copied.rename(renamed)
    at(renamed)
    client = connect()
    for run in (ids.parent, own.parent):
        assert [f.path for f in client.list_artifacts(run)] == ["results.md"]
        read = mlflow.artifacts.download_artifacts(run_id=run, artifact_path="results.md", tracking_uri=tracking_uri())
        assert Path(read).read_text() == "# Results\n"
    assert aliased(client, s.name, CHALLENGER).version == "1"
    assert not register_model(s).new  # The version is loaded back from its new place.
    capsys.readouterr()
    connect()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_same_calls_work_through_a_real_server(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    preflight()
    (tmp_path / "results.md").write_text("# Results\n")
    ids = log(artifacts=[tmp_path / "results.md"])
    read = mlflow.artifacts.download_artifacts(run_id=ids.parent, artifact_path="results.md")
    assert Path(read).read_text() == "# Results\n"
    s = submission(tmp_path, "mlp")
    version = register_model(s)
    assert version.new and not register_model(s).new
    client = connect()
    assert aliased(client, s.name, CHALLENGER).version == version.version
    assert find_version(client, s.name, "sha256:else") is None and aliased(client, "no-such-model", CHALLENGER) is None
    given = mlflow.pyfunc.load_model(f"models:/{s.name}@{CHALLENGER}").predict(s.inputs)
    np.testing.assert_allclose(given, s.expected, atol=1e-5)
    assert mlflow.get_tracking_uri() == server  # MLflow's global address must not change.
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(("mlflow.db", "mlruns", "mlartifacts"))]


def test_an_unreachable_server_is_reported_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"no tracking server answers.*unset MLFLOW_TRACKING_URI") as e:
        preflight()
    assert time.monotonic() - began < 30 and "secret" not in str(e.value)


@pytest.mark.parametrize(
    ("status", "message"), [(404, "answers with status 404"), (403, "--allowed-hosts"), (401, None)]
)
def test_what_answers_may_not_be_a_usable_server(status, message, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{other.server_port}")
        if message is None:
            preflight()  # The server asks for a password, which MLflow sends later.
        else:
            with pytest.raises(TrackingError, match=message):
                preflight()
        other.shutdown()


def test_a_database_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match="cannot be opened here"):
        preflight()
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrackingError, match=r"mlflow\.db: opening the store"):
        preflight()


def test_opening_waits_while_another_process_makes_the_tables(store):
    opened = threading.Event()
    with store.with_name("mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Thread(target=lambda: (connect(), opened.set())).start()
        assert not opened.wait(1.5)  # If nothing holds the lock, opening takes 0.1 s.
    assert opened.wait(300)


def opens_and_is_killed(database: Path, until: int) -> int:
    """Call `connect()` in a process that is killed at its `until`-th statement (0: never). Return their number."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    return in_a_child(connect, until, lambda name, path: False)[1]


@pytest.mark.parametrize("until", [40, *(pytest.param(n, marks=pytest.mark.slow) for n in (300, 1500))])
def test_a_store_whose_creation_was_killed_is_created_again(until, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    opens_and_is_killed(tmp_path / "mlflow.db", until)
    assert not (tmp_path / "mlflow.db").exists() and (tmp_path / "mlflow.db.new").exists()
    assert connect().search_experiments()[0].name == "Default"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.slow
def test_a_half_migrated_store_of_an_earlier_version_is_created_again(tmp_path, monkeypatch):
    """Earlier versions let MLflow create the tables in place.

    A database that holds a row of data, or whose tables are not MLflow's, is never replaced.
    """
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    in_a_child(lambda: mlflow.MlflowClient(tracking_uri()).search_experiments(), 300, lambda name, path: False)
    shutil.copy(database, tmp_path / "kept.db")
    with sqlite3.connect(tmp_path / "kept.db") as db:
        assert db.execute("SELECT * FROM alembic_version").fetchone()
        db.execute("INSERT INTO experiments (name) VALUES ('mine')")
    assert connect().search_experiments()[0].name == "Default"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'kept.db'}")
    with suppress(TrackingError):  # MLflow may be able to complete the migration, or fail.
        connect()
    with sqlite3.connect(tmp_path / "kept.db") as db:
        assert ("mine",) in db.execute("SELECT name FROM experiments").fetchall()
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE addresses (name TEXT)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    connect()
    with sqlite3.connect(tmp_path / "other.db") as db:
        assert db.execute("SELECT count(*) FROM addresses").fetchone() == (0,)


@pytest.mark.slow
def test_several_processes_may_open_a_new_database(tmp_path):
    code = "from expunge.tracking.store import connect, experiment_of; print(experiment_of(connect(), 'x').name)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and out.split() == [b"x"], err.decode()[-2000:]
    assert (tmp_path / "mlflow.db").is_file()


def test_passwords_are_not_shown():
    assert shown("https://me:secret@host:5000/x") == "https://host:5000/x"
    assert shown("sqlite:////tmp/a@b.db") == "sqlite:////tmp/a@b.db"
