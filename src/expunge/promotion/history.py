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
    `by_hand`: moves of the alias past the ledger that were seen since the last decision.
    `last`: hash of the last entry about this model. `head`: of the ledger's last entry, about whichever model.
    """

    standing: tuple[Entry, ...]
    promoted: tuple[Entry, ...]
    by_hand: tuple[Entry, ...]
    last: str
    head: str

    @classmethod
    def of(cls, entries: Sequence[Entry], model: str) -> History:
        withdrawn = {e.facts["entry"] for e in entries if e.kind == WITHDRAWN}
        standing: list[Entry] = []
        promoted: list[Entry] = []
        by_hand: list[Entry] = []
        for entry in entries:
            if entry.facts.get("model") != model or entry.hash in withdrawn:
                continue
            if entry.kind == BY_HAND:
                by_hand.append(entry)
                if standing and standing[-1].facts["version"] == entry.facts["version"]:
                    by_hand.clear()  # put back, by hand too
            elif entry.kind == PROMOTION:
                by_hand.clear()
                standing.append(entry)
                promoted.append(entry)
            elif entry.kind == ROLLBACK:
                by_hand.clear()
                while standing and standing[-1].facts["version"] != entry.facts["version"]:
                    standing.pop()
        last = next((e.hash for e in reversed(entries) if e.facts.get("model") == model), GENESIS)
        return cls(tuple(standing), tuple(promoted), tuple(by_hand), last, entries[-1].hash if entries else GENESIS)

    @property
    def champion(self) -> dict[str, Any] | None:
        """Facts of the promotion that stands."""
        return dict(self.standing[-1].facts) if self.standing else None

    @property
    def serving(self) -> str | None:
        """The version that the alias pointed to when it was last looked at."""
        last = self.by_hand or self.standing
        return last[-1].facts["version"] if last else None

    def requests(self) -> dict[str, str]:
        """Every request that a promoted version, or one that serves by hand, had forgotten -> the version; the
        forgetting of a promoted one is not taken back."""
        by_hand = {e.facts["request"]: e.facts["version"] for e in self.by_hand if e.facts.get("request")}
        return by_hand | {entry.facts["request"]: entry.facts["version"] for entry in self.promoted}
