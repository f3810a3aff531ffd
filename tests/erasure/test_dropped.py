"""Test a completion whose PostgreSQL drops all connections at a drawn statement: the next run finishes it.

Every event is there once, as after a kill.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import psycopg2
import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text

from expunge.erasure import database
from expunge.erasure.requests import Store
from expunge.ledger.ledger import Ledger
from expunge.system.errors import RequestError
from tests.erasure.promoted_batch import finish, promoted
from tests.erasure.test_kill import check
from tests.sweep import people_workspace

ROUNDS = 6
TEMPLATE = "before"


def create_database(server: str, name: str, template: str = "template1") -> str:
    """Create a database on the server and return its URL."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def before(postgres, tmp_path_factory) -> Path:
    """Return a workspace with two promoted requests, which are in the database TEMPLATE."""
    root = people_workspace.workspace(tmp_path_factory.mktemp("dropped") / "workspace", [5])
    store = Store.open(create_database(postgres, TEMPLATE))
    promoted(store, root)
    with chdir(root):
        store.publish(Ledger(Path("ledger.jsonl")))
    store.engine.dispose()
    return root


@contextmanager
def dropping(url: str, at: int) -> Iterator[list[int]]:
    """Drop every connection to the database before its `at`-th statement or commit (0: never); yield their number."""
    seen = [0]

    def count(*_: object) -> None:
        seen[0] += 1
        if seen[0] == at:
            drop(url)

    for name in ("before_cursor_execute", "commit"):
        event.listen(Engine, name, count)
    try:
        yield seen
    finally:
        for name in ("before_cursor_execute", "commit"):
            event.remove(Engine, name, count)


def drop(url: str) -> None:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    connection.close()


@pytest.fixture(scope="module")
def statements(postgres, before, tmp_path_factory) -> int:
    """Return the number of statements and commits of an undisturbed completion."""
    root = Path(shutil.copytree(before, tmp_path_factory.mktemp("dropped") / "undisturbed"))
    url = create_database(postgres, "undisturbed", TEMPLATE)
    with dropping(url, 0) as seen:
        assert finish(root, url) == "completed"
    check(root, before, url)
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_connections_dropped_at_any_statement(seed, postgres, before, statements, tmp_path):
    root = Path(shutil.copytree(before, tmp_path / "workspace"))
    url = create_database(postgres, f"t{secrets.token_hex(4)}", TEMPLATE)
    at = int(np.random.default_rng(seed).integers(1, statements + 1))
    with dropping(url, at):
        try:
            finish(root, url)
        except RequestError as e:
            assert "the request store" in str(e) and "\n" not in str(e)
    assert finish(root, url) in ("completed", "nothing to do")
    check(root, before, url)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_connection_that_was_dropped_while_idle_is_opened_again(url):
    """Stages run for hours between two statements, and firewalls drop what is idle."""
    store = Store.open(url)
    assert store.all() == []
    drop(url)
    assert store.all() == [] and store.entries() == []
    drop(url)
    database.overwrite_deleted(store.engine)
    store.engine.dispose()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_connection_dropped_while_deleted_keys_are_overwritten_is_one_line(url):
    store = Store.open(url)
    with dropping(url, 1), pytest.raises(RequestError, match=r"the request store does not answer \("):
        database.overwrite_deleted(store.engine)
    store.engine.dispose()
