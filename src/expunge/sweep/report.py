"""What a sweep found and did: counts and places, never an id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ResidueKind(StrEnum):
    """Whether a residue stands in the way of a certificate."""

    erased = "erased"  # it holds what was to be erased, so it blocks
    duplicate = "duplicate"  # a retained row of somebody else with the same content: listed, and left


@dataclass(frozen=True)
class Residue:
    """`count` pieces of `what` (rows, files, model versions, ...) at `where`, a path or the name of a store."""

    where: str
    what: str
    count: int = 1
    kind: ResidueKind = ResidueKind.erased

    def as_dict(self) -> dict[str, Any]:
        return {"where": self.where, "what": self.what, "count": self.count, "kind": str(self.kind)}


@dataclass(frozen=True)
class NotPurgeable:
    """What this command cannot remove, and who must."""

    where: str
    what: str
    who: str

    def as_dict(self) -> dict[str, str]:
        return {"where": self.where, "what": self.what, "who": self.who}


@dataclass
class SweepReport:
    """`found` before, `purged` by this sweep, `left` found when it looked again. A dry run purges nothing.

    What could not be purged stands apart: it is no failure of the sweep, and somebody else's to do.
    """

    applied: bool
    found: list[Residue] = field(default_factory=list)
    purged: list[Residue] = field(default_factory=list)
    not_purgeable: list[NotPurgeable] = field(default_factory=list)
    left: list[Residue] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.left

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """JSON values, sorted, the same for the same findings."""
        return {
            name: sorted((entry.as_dict() for entry in getattr(self, name)), key=lambda e: tuple(map(str, e.values())))
            for name in ("found", "purged", "not_purgeable", "left")
        }

    def did(self, residues: Iterable[Residue]) -> None:
        """Found and purged."""
        residues = list(residues)
        self.found += residues
        self.purged += residues
