"""Sweep what stages that were killed left half-written.

A stage writes to `.NAME.tmp` and then renames it. If it is killed, the next run of the stage removes that directory.
But DVC may restore the outputs from its cache instead, and then the directory stays, with rows in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from expunge.sweep.journal import Journal
from expunge.sweep.lineage import SweepTarget
from expunge.sweep.report import Residue
from expunge.system.files import REPLACED, UNFINISHED

TOPS = ("data", "models", "reports")


def half_written(targets: SweepTarget, journal: Journal | None) -> Iterator[Residue]:
    """Yield every half-written output; with a journal, also remove it. Its rows are not looked up: it is of no use."""
    for top in TOPS:
        for place in sorted((targets.root / top).rglob(".*")):
            name = place.relative_to(targets.root)
            inside = any(part.startswith(".") for part in name.parts[:-1])
            if place.name.endswith((UNFINISHED, REPLACED)) and not inside:
                files = sum(p.is_file() for p in place.rglob("*")) if place.is_dir() else 1
                yield Residue(str(name), "files of a stage that was killed", files)
                if journal is not None:
                    journal.drop(place)
