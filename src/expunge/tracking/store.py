"""The store of the runs: `MLFLOW_TRACKING_URI`, else SQLite in the workspace, with the same calls for both."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.db.base_sql_model import Base
from mlflow.store.tracking.dbmodels.initial_models import Base as First
from sqlalchemy.exc import SQLAlchemyError

from expunge.system.addresses import hidden, is_http, shown
from expunge.system.errors import TrackingError
from expunge.system.paths import workspace
from expunge.system.progress import log_message
from expunge.system.storage import reason
from expunge.tracking.moved import ARTIFACTS, follow

# It logs the traceback of every error of the database that it raises; `refusals` says it in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
DEFAULT_URI = SQLITE + DATABASE
PREFLIGHT_SECONDS = 5
MIGRATIONS, COPYING = "alembic_version", "_alembic_tmp_"  # the migrations' own table, prefix of temporary ones
EXPERIMENT_TAGS = {
    # Without this tag MLflow opens the experiment in its pages for language models.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "Each run of the pipeline is one run here. Below it, the original, the retrained reference and every method "
        "have one run each, with the same metrics. To compare runs, select them and choose *Compare*. The values of "
        "the retrained model are the target."
    ),
}


def tracking_uri() -> str:
    """Return `MLFLOW_TRACKING_URI`, or the URI of SQLite in the workspace, also for an experiment of DVC."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{workspace() / DATABASE}"


def connect() -> MlflowClient:
    """Return a client of the store in use; a missing database is created.

    A SQLite database is created under another name and then renamed, so that a killed process leaves no partial one.
    Processes that open it at the same time wait for the first one. If the workspace was copied or renamed, the database
    follows its artifacts. Raises TrackingError if the store cannot be opened.
    """
    uri = tracking_uri()
    with refusals("opening the store"), _alone(uri):
        if uri.startswith(SQLITE):
            _make_database(_database(uri))
            _follow(_database(uri))
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def preflight() -> None:
    """Raise TrackingError if runs cannot be logged, before any training is done.

    A server must answer within 5 seconds; MLflow's own client would retry for minutes.
    """
    uri = tracking_uri()
    if is_http(uri):
        _ask_server(uri)
    else:
        connect()


def experiment_of(client: MlflowClient, name: str) -> Experiment:
    """Return the experiment `name`, created if it is missing.

    With SQLite its artifacts lie in `mlartifacts` beside the database. Raises TrackingError if it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        uri = tracking_uri()
        local = (_database(uri).parent / ARTIFACTS).resolve().as_uri() if uri.startswith(SQLITE) else None
        try:
            client.create_experiment(name, artifact_location=local, tags=EXPERIMENT_TAGS)
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":  # another process may have created it meanwhile
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} was deleted; restore it with `mlflow experiments restore -x {found.experiment_id}`, "
            "or set register.experiment in params.yaml to another name"
        )
    return found


def end_interrupted(client: MlflowClient, experiment_id: str, request: str) -> None:
    """Mark the runs of this request (its digest) as KILLED that are still RUNNING: their process or their server died.

    A process that logs the same request at the same moment is not harmed: it sets the status of its runs at its end.
    """
    for run in client.search_runs([experiment_id], f"attributes.status = 'RUNNING' and tags.request = '{request}'"):
        client.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def fluent() -> Iterator[None]:
    """Set MLflow's global tracking URI for its functions that take no client, and restore it afterwards."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri())
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # this also removes the environment variable
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


@contextmanager
def refusals(doing: str) -> Iterator[None]:
    """Turn errors of MLflow and its database into a TrackingError that names the store and the action `doing`."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as e:
        first = hidden(str(e).split("\n", 1)[0], tracking_uri())  # the further lines are SQL and stack traces
        raise TrackingError(f"{shown(tracking_uri())}: {doing}: {reason(e) or first}") from e


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def _make_database(path: Path) -> None:
    """Create the database `path` with all tables, by renaming a finished one, unless a finished one exists.

    An unfinished one, left by a process that was killed between two migrations, is replaced: MLflow cannot resume it.
    """
    if path.exists() and not _unfinished(path):
        return
    new = path.with_name(path.name + ".new")
    for left in (new, new.with_name(new.name + "-journal"), path.with_name(path.name + "-journal")):
        left.unlink(missing_ok=True)
    client = MlflowClient(f"{SQLITE}{new}")
    client.search_experiments(max_results=1)
    client._tracking_client.store.engine.dispose()  # close all connections before the rename
    os.replace(new, path)


def _follow(path: Path) -> None:
    try:
        moved = follow(path)
    except sqlite3.Error:
        return  # not a database, or one of an older MLflow; MLflow then raises its own error
    for address in moved:
        log_message(f"{path}: artifacts are read and written beside this database now, no longer in {address}")


def _unfinished(path: Path) -> bool:
    """Return whether `path` is an MLflow database in which only the migrations' own table has rows.

    A finished one has at least MLflow's default experiment. A database with tables of other programs gives False.
    """
    known = {*Base.metadata.tables, *First.metadata.tables, MIGRATIONS}
    try:
        with closing(sqlite3.connect(path)) as db:  # opening also rolls back an uncommitted transaction
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if any(name not in known and not name.startswith(COPYING) for name in tables):
                return False
            return not any(db.execute(f'SELECT 1 FROM "{t}" LIMIT 1').fetchone() for t in tables - {MIGRATIONS})
    except sqlite3.Error:
        return False  # not a database; MLflow then raises its own error


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock file beside a SQLite database, because MLflow creates its tables in several transactions."""
    if not uri.startswith(SQLITE):
        yield
        return
    path = _database(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError as e:
        way_out = reason(e) or "set MLFLOW_TRACKING_URI to a store that can be written"
        raise TrackingError(f"{path}: the run database cannot be opened here ({e.strerror}); {way_out}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _ask_server(uri: str) -> None:
    way_out = f"start it, or unset MLFLOW_TRACKING_URI to log to {DEFAULT_URI}"
    try:
        with urllib.request.urlopen(shown(uri).rstrip("/") + "/health", timeout=PREFLIGHT_SECONDS):
            return
    except urllib.error.HTTPError as e:
        if e.code == 403:
            raise TrackingError(
                f"{shown(uri)}: the tracking server refuses this host name; start it with `--allowed-hosts`"
            ) from None
        if e.code != 401:  # the server is up and asks for credentials, which MLflow sends
            raise TrackingError(
                f"{shown(uri)}: no tracking server, since /health answers with status {e.code}; {way_out}"
            ) from None
    except (OSError, ValueError) as e:
        reason = getattr(e, "reason", e)
        raise TrackingError(f"{shown(uri)}: no tracking server answers ({reason}); {way_out}") from None
