"""Search places that should never contain an id: reports, Data Docs, MLflow, Prefect, Git."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator, Set
from pathlib import Path

import yaml

from expunge.sweep.id_scanner import IdScanner
from expunge.sweep.report import NotPurgeable, Residue
from expunge.sweep.targets import Targets
from expunge.system.paths import ACTIVATIONS, DATA_DOCS, REPORTS

Found = Residue | NotPurgeable
MAINTAINER = "the maintainer of the repository: rewrite its history, here and in every clone"


def id_scanner(targets: Targets) -> IdScanner:
    """Return a scanner for the ids of erased rows and for people of whom no row is retained."""
    return IdScanner([*targets.ids, *targets.subjects])


def reports(targets: Targets, apply: bool) -> Iterator[Found]:
    """Yield the reports and Data Docs that contain an id; with `apply`, delete them. The pipeline writes them again."""
    for path, _ in id_scanner(targets).below(targets.root / REPORTS):
        inside = path.is_relative_to(targets.root / DATA_DOCS)
        yield Residue(str(DATA_DOCS if inside else path.relative_to(targets.root)), "files with ids")
        if apply:
            path.unlink()


def mlflow(targets: Targets, apply: bool) -> Iterator[Found]:
    """Search the artifacts and the database of the default store. A server's are its administrator's task."""
    wanted = id_scanner(targets)
    for path, _ in wanted.below(targets.root / "mlartifacts"):
        yield Residue("MLflow artifacts", "files with ids")
        if apply:
            path.unlink()
    database = targets.root / "mlflow.db"
    if wanted.distinct and database.is_file():
        for table, count in _rows_with(database, wanted):
            what = f"{count} rows of the table {table} with ids"
            yield NotPurgeable(
                "MLflow database", what, "the person who logged them: delete those runs, then run `mlflow gc`"
            )


def prefect_home() -> Path:
    """Return the folder of Prefect's own files, from PREFECT_HOME or its default."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")


def prefect(targets: Targets, apply: bool) -> Iterator[Found]:
    """Search stored results, and the database of a Prefect server on this machine.

    Our tasks exchange strings and store no results, so a result with an id has another origin; with `apply` it is
    deleted. Rows of the database must be deleted with Prefect's own commands.
    """
    wanted = id_scanner(targets)
    home = prefect_home()
    storage = Path(os.environ.get("PREFECT_LOCAL_STORAGE_PATH") or home / "storage")
    for path, _ in wanted.below(storage):
        yield Residue("Prefect results", "files with ids")
        if apply:
            path.unlink()
    database = home / "prefect.db"
    if wanted.distinct and database.is_file():
        for table, count in _rows_with(database, wanted):
            what = f"{count} rows of the table {table} with ids"
            yield NotPurgeable(
                "Prefect database", what, "the administrator of the Prefect server: run `prefect flow-run delete`"
            )
    if "PREFECT_API_URL" in os.environ and wanted.distinct:
        yield NotPurgeable(
            "Prefect server",
            "a database that was not searched; parameters and logs of flow runs should hold no ids",
            "the administrator of the Prefect server",
        )


def _rows_with(database: Path, wanted: IdScanner) -> Iterator[tuple[str, int]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            rows = connection.execute(f'select * from "{table}"')
            count = sum(any(wanted.count(str(v).encode()) for v in row if v is not None) for row in rows)
            if count:
                yield table, count


def history(root: Path, objects: Set[str]) -> Iterator[NotPurgeable]:
    """Yield the number of Git commits whose dvc.lock or `.dvc` files name removed data.

    `objects`: hashes of the data that is still stored. The commits contain hashes, not data. To remove them a
    maintainer has to rewrite the history.
    """
    if not _is_repository(root):
        return
    command = ("log", "--all", "--format=commit %H", "--raw", "--no-abbrev", "--", "*dvc.lock", "*.dvc")
    missing: dict[str, bool] = {}
    pointing = 0
    for block in _git(root, *command).decode(errors="replace").split("commit ")[1:]:
        blobs = [line.split()[3] for line in block.splitlines() if line.startswith(":")]
        for blob in set(blobs) - missing.keys():
            named = set() if set(blob) == {"0"} else _named(_git(root, "cat-file", "blob", blob))
            missing[blob] = not named <= objects
        pointing += any(missing[blob] for blob in blobs)
    if pointing:
        yield NotPurgeable("git", f"{pointing} commits that name removed data, but do not contain it", MAINTAINER)


def ids_in_history(targets: Targets) -> Iterator[NotPurgeable]:
    """Yield the number of Git blobs, reachable or not, that contain an id."""
    wanted = id_scanner(targets)
    if not wanted.distinct or not _is_repository(targets.root):
        return
    blobs = sum(kind == "blob" and wanted.count(content) > 0 for kind, content in _blobs(targets.root))
    if blobs:
        yield NotPurgeable("git", f"{blobs} versions of files that contain ids of erased rows", MAINTAINER)


def _named(lock: bytes) -> set[str]:
    """Return the hashes of cached outputs below data/ in a dvc.lock, or of the files that a `.dvc` file tracks."""
    try:
        lock_content = yaml.load(lock, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
        stages = lock_content["stages"].values() if "stages" in lock_content else [lock_content]
        outs = [out for stage in stages for out in stage.get("outs", [])]
        return {
            out["md5"]
            for out in outs
            if "md5" in out and ("stages" not in lock_content or str(out["path"]).startswith("data/"))
            if out["path"] != str(ACTIVATIONS)  # activations are not cached
        }
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return set()


def _is_repository(root: Path) -> bool:
    return subprocess.run(["git", "rev-parse"], cwd=root, capture_output=True).returncode == 0


def _blobs(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the kind and content of every Git object, packed or loose."""
    command = ["git", "cat-file", "--batch", "--batch-all-objects"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while header := process.stdout.readline():
            _, kind, size = header.decode().split()
            content = process.stdout.read(int(size))
            process.stdout.read(1)
            yield kind, content


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True).stdout
