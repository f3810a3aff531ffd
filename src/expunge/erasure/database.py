"""The database of the requests: SQLite in the workspace, or PostgreSQL by URL, with the same statements for both.

Every change is one transaction that compares the version it found (optimistic locking). If two operators change the
same request at once, the second gets an error. An event is written in the same transaction as its change and is
appended to the ledger once, afterwards.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Date,
    Engine,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from expunge.system.addresses import hidden, shown
from expunge.system.errors import RequestError
from expunge.system.files import create_durable
from expunge.system.paths import RECORDS

ENV = "EXPUNGE_REQUESTS_URL"
DEFAULT_URL = f"sqlite:///{RECORDS / 'requests.db'}"
BUSY_SECONDS = 30  # how long SQLite waits for the lock of another process

METADATA = MetaData()
REQUESTS = Table(
    "erasure_requests",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("kind", String(10), nullable=False),  # ids | subjects | classes | labels
    Column("state", String(20), nullable=False),
    Column("version", Integer, nullable=False),  # incremented by every change
    Column("received", Date, nullable=False),
    Column("months", Integer, nullable=False),  # from receipt to the due date
    Column("due", Date, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("basis", Text, nullable=False),
    Column("asked", Integer, nullable=False),  # number of values in the file, or of classes
    Column("classes", JSON, nullable=False),
    Column("file", Text),
    Column("digest", String(100), nullable=False),
    Column("batch", String(40)),
    Column("reason", Text, nullable=False),
    Column("told", Boolean, nullable=False),  # whether the recipients were notified that it is final
)
KEYS = Table(
    "erasure_keys",
    METADATA,
    Column("request", String(40), ForeignKey(REQUESTS.c.id), primary_key=True),
    Column("key", LargeBinary, nullable=False),
)
SUBJECTS = Table(
    "erasure_subjects",
    METADATA,
    Column("request", String(40), ForeignKey(REQUESTS.c.id), primary_key=True),
    Column("hmac", String(64), primary_key=True),
)
MARKS = Table(
    "erasure_marks",
    METADATA,
    Column("request", String(40), ForeignKey(REQUESTS.c.id), primary_key=True),
    Column("mark", String(64), nullable=False, unique=True),  # equal for requests that ask for the same
)
STORE_KEY = Table(
    "erasure_store_key",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", LargeBinary, nullable=False),  # for the marks
)
BATCHES = Table(
    "erasure_batches",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("open", Boolean, unique=True),  # true or null; the unique constraint allows one open batch
    Column("step", String(20), nullable=False),
    Column("version", Integer, nullable=False),
    Column("owner", String(200)),
    Column("until", Float, nullable=False),  # when the owner's lease expires, in seconds since 1970
    Column("facts", JSON, nullable=False),
)
EVENTS = Table(
    "erasure_events",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("about", String(40), nullable=False),  # id of a request or of a batch
    Column("number", Integer, nullable=False),
    Column("at", String(32), nullable=False),
    Column("who", Text, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("state", String(20)),  # state of the request after the event
    Column("reason", Text, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("entry", String(80)),  # hash of its ledger entry; null until it is published
    UniqueConstraint("about", "number"),
)
PERSONAL = (KEYS, SUBJECTS, MARKS)  # rows that are deleted when a request is final
KEY_BYTES = 32


def connect(url: str | None = None) -> Engine:
    """Open the store at `url`, else at `EXPUNGE_REQUESTS_URL`, else in the workspace, and create missing tables.

    Raises RequestError if it cannot be opened.
    """
    given = url or os.environ.get(ENV) or DEFAULT_URL
    try:
        parsed = make_url(given)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise RequestError(f"{ENV}: not the URL of a database; set it to one, such as postgresql://HOST/NAME") from None
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database:
        file = Path(parsed.database)
        # A new file is readable by its owner only. The mode of an existing one is kept: it may be shared on purpose.
        if not file.exists():
            create_durable(file, b"")
    try:
        # A server may drop a connection that was idle for hours: it is tried before it is used, and opened again.
        given_to_driver = {"timeout": BUSY_SECONDS} if sqlite else {}
        engine = create_engine(parsed, connect_args=given_to_driver, pool_pre_ping=not sqlite)
        if sqlite:
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        _create_tables(engine)
    except (SQLAlchemyError, ImportError, NoSuchModuleError) as e:
        why = hidden(str(getattr(e, "orig", None) or e).split("\n", 1)[0], given)
        raise RequestError(f"{shown(given)}: the request store cannot be opened ({why})") from None
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Run the body in one transaction. Raises RequestError if the database does not answer."""
    with _answering(engine), engine.begin() as connection:
        yield connection


@contextmanager
def _answering(engine: Engine) -> Iterator[None]:
    """Raise RequestError if the database does not answer the statements of the body."""
    try:
        yield
    except DBAPIError as e:
        if e.connection_invalidated or type(e).__name__ == "OperationalError":
            address = engine.url.render_as_string(hide_password=False)
            first = hidden(str(e.orig).split("\n", 1)[0], address)
            raise RequestError(f"{shown(address)}: the request store does not answer ({first})") from e
        raise


def overwrite_deleted(engine: Engine) -> None:
    """Remove deleted keys, marks and HMACs from the files of the database.

    SQLite overwrites them on deletion (`secure_delete`). PostgreSQL keeps old row versions until VACUUM FULL rewrites
    the table. Its write-ahead log keeps them as long as it is configured to.
    """
    if engine.dialect.name != "postgresql":
        return
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with _answering(engine), alone.connect() as connection:
        for table in PERSONAL:
            connection.execute(text(f"VACUUM FULL {table.name}"))
        connection.execute(text("CHECKPOINT"))


def _create_tables(engine: Engine) -> None:
    """Create missing tables and the store's key; try twice, because another process may do so at the same moment."""
    try:
        _create(engine)
    except SQLAlchemyError:
        _create(engine)


def _create(engine: Engine) -> None:
    with engine.begin() as c:
        METADATA.create_all(c)
        if c.execute(select(STORE_KEY.c.id)).first() is None:
            c.execute(insert(STORE_KEY).values(id=1, key=secrets.token_bytes(KEY_BYTES)))


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions: `_begin_sqlite` does
    for pragma in ("secure_delete = ON", "foreign_keys = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at the start: a transaction that reads first may fail to get it when it writes."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
