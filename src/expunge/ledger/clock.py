"""A clock that was set back shows in the ledger: an entry whose time is earlier than that of an entry before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from expunge.ledger.ledger import Entry

TOLERANCE_SECONDS = 60  # clocks are corrected by seconds every day


def set_back(entries: Sequence[Entry], first: int = 1) -> list[str]:
    """A sentence for every entry that is more than TOLERANCE_SECONDS earlier than the latest one before it, from the
    entry with the number `first` on."""
    found: list[str] = []
    latest: Entry | None = None
    for entry in entries:
        behind = 0.0 if latest is None else _seconds(latest) - _seconds(entry)
        if latest is not None and entry.seq >= first and behind > TOLERANCE_SECONDS:
            found.append(
                f"ledger entry {entry.seq} ({entry.kind}) has the time {entry.time}, {behind:,.0f} seconds before "
                f"entry {latest.seq} of {latest.time}: the clock was set back, and times from there on show no order"
            )
        if latest is None or _seconds(entry) > _seconds(latest):
            latest = entry
    return found


def _seconds(entry: Entry) -> float:
    try:
        return datetime.fromisoformat(entry.time).timestamp()
    except ValueError:
        return float("-inf")  # signed and chained, but no time: it cannot be compared
