"""The report of a sweep: what it found and removed, as counts and places, without ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ResidueKind(StrEnum):
    """The kind of a residue, which decides whether it blocks a certificate."""

    erased = "erased"  # holds content that was to be erased, and blocks
    duplicate = "duplicate"  # a retained row with the content of an erased one; listed, and does not block


@dataclass(frozen=True)
class Residue:
    """A finding: `count` items of `what` (rows, files, model versions, ...) at `where`, a path or a store's name."""

    where: str
    what: str
    count: int = 1
    kind: ResidueKind = ResidueKind.erased

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return {"where": self.where, "what": self.what, "count": self.count, "kind": str(self.kind)}


@dataclass(frozen=True)
class NotPurgeable:
    """A finding that the sweep cannot remove, and who must remove it."""

    where: str
    what: str
    who: str

    def as_dict(self) -> dict[str, str]:
        """Return the fields by name, for JSON."""
        return {"where": self.where, "what": self.what, "who": self.who}


@dataclass
class SweepReport:
    """Findings of a sweep: `found` before it, `purged` by it, and `left` after it. A dry run purges nothing.

    `not_purgeable` is separate: such findings are no failure of the sweep, and somebody else must remove them.
    """

    applied: bool
    found: list[Residue] = field(default_factory=list)
    purged: list[Residue] = field(default_factory=list)
    not_purgeable: list[NotPurgeable] = field(default_factory=list)
    left: list[Residue] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is left; what only others can remove does not count."""
        return not self.left

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the findings as sorted JSON values; equal findings give equal output."""
        return {
            name: sorted((entry.as_dict() for entry in getattr(self, name)), key=lambda e: tuple(map(str, e.values())))
            for name in ("found", "purged", "not_purgeable", "left")
        }

    def add(self, other: SweepReport) -> None:
        """Add the findings of `other` that are not among those of this report."""
        for name in ("found", "purged", "not_purgeable", "left"):
            mine = getattr(self, name)
            mine += [entry for entry in getattr(other, name) if entry not in mine]

    def did(self, residues: Iterable[Residue]) -> None:
        """Record `residues` as found and purged."""
        residues = list(residues)
        self.found += residues
        self.purged += residues
