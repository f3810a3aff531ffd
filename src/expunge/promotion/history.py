"""What the ledger says of a model: which versions were promoted, which of them stands, what must stay forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.ledger.ledger import GENESIS, Entry

PROMOTION, ROLLBACK, WITHDRAWN = "promotion", "rollback", "withdrawn"
BY_HAND = "moved by hand"  # seen, not decided: it changes nothing of what stands


@dataclass(frozen=True)
class History:
    """The decisions about one model, oldest first.

    `standing`: promotions that were not taken back; the last is the champion, the one before what a rollback restores.
    `promoted`: every promotion that took effect, taken back or not.
    `head`: hash of the ledger's last entry, about whichever model.
    """

    standing: tuple[Entry, ...]
    promoted: tuple[Entry, ...]
    head: str

    @classmethod
    def of(cls, entries: Sequence[Entry], model: str) -> History:
        withdrawn = {e.facts["entry"] for e in entries if e.kind == WITHDRAWN}
        standing: list[Entry] = []
        promoted: list[Entry] = []
        for entry in entries:
            if entry.facts.get("model") != model or entry.hash in withdrawn:
                continue
            if entry.kind == PROMOTION:
                standing.append(entry)
                promoted.append(entry)
            elif entry.kind == ROLLBACK:
                while standing and standing[-1].facts["version"] != entry.facts["version"]:
                    standing.pop()
        return cls(tuple(standing), tuple(promoted), entries[-1].hash if entries else GENESIS)

    @property
    def champion(self) -> dict[str, Any] | None:
        """Facts of the promotion that stands."""
        return dict(self.standing[-1].facts) if self.standing else None

    def requests(self) -> dict[str, str]:
        """Every request that a promoted version had forgotten -> the version; forgetting is not taken back."""
        return {entry.facts["request"]: entry.facts["version"] for entry in self.promoted}
