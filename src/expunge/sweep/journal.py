"""New directories beside the old ones, then one moment from which they count: a crash leaves the old state or the new.

Everything is staged first under `.NAME.swept`. Writing the journal is the commit: before it, the staged copies are
dropped by the next sweep; after it, the next sweep finishes the swaps. In between the tombstones, which are swapped
first, keep every stage from reading what is not swapped yet.
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
    """Where the new state of the file or directory `target` is made."""
    return target.with_name(f".{target.name}{SUFFIX}")


@dataclass
class Journal:
    """`swaps`: paths relative to `root` whose staged state replaces them. `drops`: paths that go.

    `notes`: what the steps after the swaps need, and cannot find out any more.
    """

    root: Path
    swaps: list[str] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> Journal | None:
        """The journal of a sweep that was interrupted after its commit. What another one staged before its own is
        dropped."""
        path = root / JOURNAL
        if path.is_file():
            try:
                return cls(root, **json.loads(path.read_text(encoding="utf-8")))
            except (json.JSONDecodeError, TypeError) as e:
                raise DataError(f"{path}: not the journal of a sweep ({e}); restore it from a backup") from None
        for top in ("data", "models"):
            for leftover in sorted((root / top).rglob(f".*{SUFFIX}")):
                _remove(leftover)
        return None

    def swap(self, target: Path) -> Path:
        """Where to write the new state of `target`; an empty place."""
        self.swaps.append(self._name(target))
        place = staged(target)
        _remove(place)
        return place

    def drop(self, target: Path) -> None:
        self.drops.append(self._name(target))

    def commit(self) -> None:
        """From here on the new state counts: it is on the disk before the journal is."""
        for name in self.swaps:
            place = staged(self.root / name)
            for path in [place, *(place.rglob("*") if place.is_dir() else [])]:
                sync(path)
        entry = {"swaps": self.swaps, "drops": self.drops, "notes": self.notes}
        text = json.dumps(entry, indent=2, sort_keys=True) + "\n"
        write_durable(self.root / JOURNAL, text.encode(), mode=0o666)

    def finish(self) -> None:
        """Swap what is not swapped yet. Any number of times, from any state that a crash leaves."""
        for name in self.swaps:
            target = self.root / name
            place, old = staged(target), target.with_name(f".{target.name}{OLD}")
            if place.is_file():  # in one step
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
        """Relative to the root where it lies below it; tombstones may lie elsewhere."""
        return (target.relative_to(self.root) if target.is_relative_to(self.root) else target.resolve()).as_posix()

    def close(self) -> None:
        """Every step after the swaps is done too."""
        (self.root / JOURNAL).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
