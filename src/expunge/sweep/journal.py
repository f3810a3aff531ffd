"""The journal of a sweep makes the replacement of files and directories atomic.

A crash leaves the old state or the new one.

Everything is staged first under `.NAME.swept`. Writing the journal is the commit. After a crash before it, the next
sweep removes the staged copies; after it, the next sweep finishes the swaps. Until then the tombstones, which are
swapped first, keep every stage from reading what is not swapped yet.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.system.errors import DataError
from expunge.system.files import sync, write_durable

JOURNAL = Path(".expunge/sweep/journal.json")
SUFFIX = ".swept"
OLD = ".before-sweep"


def staged(target: Path) -> Path:
    """Return the path at which the new state of the file or directory `target` is staged."""
    return target.with_name(f".{target.name}{SUFFIX}")


@dataclass
class Journal:
    """A `Journal` holds the changes of one sweep.

    `swaps` are paths, relative to `root`, to be replaced by their staged state. `drops` are paths to remove. `notes`
    are what the steps after the swaps need and can no longer determine once the files are replaced.
    """

    root: Path
    swaps: list[str] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> Journal | None:
        """Return the journal of a sweep that was interrupted after its commit.

        If there is none, remove what a sweep interrupted before its commit has staged, and return None. Raises
        DataError for an unreadable journal.
        """
        path = root / JOURNAL
        if path.is_file():
            try:
                return cls(root, **json.loads(path.read_text(encoding="utf-8")))
            except (json.JSONDecodeError, TypeError) as e:
                raise DataError(
                    f"{path}: cannot be read as the journal of a sweep ({e}); restore it from a backup"
                ) from None
        for top in ("data", "models"):
            for leftover in sorted((root / top).rglob(f".*{SUFFIX}")):
                _remove(leftover)
        return None

    def swap(self, target: Path) -> Path:
        """Register `target` for replacement, and return the path, now empty, to write its new state to."""
        self.swaps.append(self._name(target))
        place = staged(target)
        _remove(place)
        return place

    def drop(self, target: Path) -> None:
        """Register `target` for removal."""
        self.drops.append(self._name(target))

    def commit(self) -> None:
        """Write the journal, from which on the new state counts; the staged files are synced to the disk first."""
        for name in self.swaps:
            place = staged(self.root / name)
            for path in [place, *(place.rglob("*") if place.is_dir() else [])]:
                sync(path)
        entry = {"swaps": self.swaps, "drops": self.drops, "notes": self.notes}
        text = json.dumps(entry, indent=2, sort_keys=True) + "\n"
        write_durable(self.root / JOURNAL, text.encode(), mode=0o666)

    def finish(self) -> None:
        """Do the swaps and removals that are not done yet. Can be repeated from any state that a crash leaves."""
        for name in self.swaps:
            target = self.root / name
            place, old = staged(target), target.with_name(f".{target.name}{OLD}")
            if place.is_file():  # for files the replacement is a single atomic step
                os.replace(place, target)
            elif place.exists():
                if target.exists():
                    _remove(old)
                    os.replace(target, old)
                os.replace(place, target)
            _remove(old)
        for name in self.drops:
            _remove(self.root / name)

    def _name(self, target: Path) -> str:
        """Return the path relative to the root, or the absolute path for tombstones that are stored elsewhere."""
        return (target.relative_to(self.root) if target.is_relative_to(self.root) else target.resolve()).as_posix()

    def close(self) -> None:
        """Remove the journal once all steps after the swaps are done."""
        (self.root / JOURNAL).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
