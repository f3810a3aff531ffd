"""Who keeps the data source, and whether the sweep may rewrite it."""

from __future__ import annotations

from pathlib import Path

from expunge.config import Data
from expunge.data.prepare import NAMED, by_package
from expunge.sweep.report import NotPurgeable

INSTALLED = {
    "digits": ("scikit-learn's own copy of the digits", "the person who installs packages on this machine"),
    "fashion-mnist": (
        "the published archive, in an installed package or at its origin",
        "the person who installs packages",
    ),
    "fortunes": (
        "the published quotations, in an installed package or at its origin",
        "the person who installs packages",
    ),
    "emoji": ("the published archives at their origin", "the publisher of the archives"),
}
PUBLISHED = (
    "the data set of this name, in the files that it was read from or at its origin",
    "the owner of those files",
)
READ_ELSEWHERE = ("the data that the reader of another package reads", "the owner of that data")


def elsewhere(data: Data) -> NotPurgeable | None:
    """Return who keeps a source that lies outside of params.yaml's `data.path`; None for a source at that path."""
    foreign = by_package(data.source)
    if data.source.startswith(NAMED) or ((foreign or data.source in INSTALLED) and data.path is None):
        return NotPurgeable(
            f"source {data.source}", *(READ_ELSEWHERE if foreign else INSTALLED.get(data.source, PUBLISHED))
        )
    return None


def place_of(root: Path, path: Path, data: Data) -> tuple[str, bool]:
    """Return how a report names the source at `path`, and whether the sweep may rewrite it.

    Reports contain no absolute paths, so a source outside the workspace is not named. Only the reader of another
    package knows its format.
    """
    where = str(data.path) if path.resolve().is_relative_to(root.resolve()) else "source outside the workspace"
    known = not by_package(data.source) and data.source not in INSTALLED
    return where, where == str(data.path) and known and writable(path)


def writable(path: Path) -> bool:
    """Return whether the file, or every file of the folder, may be replaced.

    The mode bits are checked, not access rights: root could write files that are marked read-only.
    """
    files = [path, path.parent] if path.is_file() else [path, *(p for p in path.rglob("*"))]
    return all(p.stat().st_mode & 0o200 for p in files)
