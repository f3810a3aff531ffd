"""Follow a workspace that was copied or renamed: MLflow stores absolute paths of artifacts in its SQLite database.

Without this a copy writes its artifacts into the folder of the original, and a renamed workspace finds none of its own.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

ARTIFACTS = "mlartifacts"
# Tables and columns that hold addresses of artifacts.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow(database: Path) -> list[str]:
    """Let addresses in `database` point to the `mlartifacts` beside it, and return the addresses that were replaced.

    Only addresses that end in `mlartifacts` elsewhere are replaced, as `experiment_of` writes them, and only if the
    folder beside the database exists.
    """
    here = (database.parent / ARTIFACTS).resolve()
    if not here.is_dir() or not database.is_file():
        return []
    with closing(sqlite3.connect(database, timeout=30)) as db:
        locations = [row[0] for row in db.execute("SELECT DISTINCT artifact_location FROM experiments")]
        old = [at for at in locations if at and _elsewhere(at, here.as_uri())]
        for location in old:
            size = len(location)
            for table, column in ADDRESSES:
                db.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",
                    (here.as_uri(), size + 1, size + 1, location + "/"),
                )
        db.commit()
    return old


def _elsewhere(address: str, here: str) -> bool:
    return address.startswith("file:") and address.endswith(f"/{ARTIFACTS}") and address != here
