"""The promotion history of a model in the ledger: promoted versions, the champion, and the requests to cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.ledger.ledger import GENESIS, Entry

PROMOTION, ROLLBACK, WITHDRAWN = "promotion", "rollback", "withdrawn"
BY_HAND = "moved by hand"  # an observation, not a decision: the champion on record does not change


@dataclass(frozen=True)
class History:
    """The decisions about one model, oldest first.

    `standing`: promotions that were not rolled back; the last is the champion, and a rollback restores the one before.
    `promoted`: every promotion that took effect, whether rolled back or not.
    `by_hand`: moves of the alias without an entry of their own decision, observed since the last decision.
    `last`: hash of the last entry about this model. `head`: hash of the ledger's last entry about any model.
    """

    standing: tuple[Entry, ...]
    promoted: tuple[Entry, ...]
    by_hand: tuple[Entry, ...]
    last: str
    head: str

    @classmethod
    def of(cls, entries: Sequence[Entry], model: str) -> History:
        """Derive the history of `model` from all entries of the ledger; withdrawn decisions do not count."""
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
                    by_hand.clear()  # the alias was moved back by hand as well
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
        """Return the facts of the champion's promotion; None without a champion."""
        return dict(self.standing[-1].facts) if self.standing else None

    @property
    def serving(self) -> str | None:
        """Return the version that the alias pointed to when it was last observed."""
        last = self.by_hand or self.standing
        return last[-1].facts["version"] if last else None

    def requests(self) -> dict[str, str]:
        """Return the requests that promoted versions, or versions set by hand, have forgotten, mapped to the version.

        Requests of promoted versions stay in it after a rollback: what they forgot must stay forgotten.
        """
        by_hand = {e.facts["request"]: e.facts["version"] for e in self.by_hand if e.facts.get("request")}
        return by_hand | {entry.facts["request"]: entry.facts["version"] for entry in self.promoted}
