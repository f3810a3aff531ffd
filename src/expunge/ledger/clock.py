"""Detect in the ledger that the clock was set back: an entry has an earlier time than an entry before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from expunge.ledger.ledger import Entry

TOLERANCE_SECONDS = 60  # routine clock corrections amount to seconds


def set_back(entries: Sequence[Entry], first: int = 1) -> list[str]:
    """Return a sentence for every entry, from number `first` on, before which the clock was set back.

    The time of such an entry is more than TOLERANCE_SECONDS before the latest time of the entries that precede it.
    """
    found: list[str] = []
    latest: Entry | None = None
    for entry in entries:
        behind = 0.0 if latest is None else _seconds(latest) - _seconds(entry)
        if latest is not None and entry.seq >= first and behind > TOLERANCE_SECONDS:
            found.append(
                f"ledger entry {entry.seq} ({entry.kind}) has the time {entry.time}, {behind:,.0f} seconds before "
                f"entry {latest.seq} of {latest.time}: the clock was set back, so times from there on show no order"
            )
        if latest is None or _seconds(entry) > _seconds(latest):
            latest = entry
    return found


def _seconds(entry: Entry) -> float:
    try:
        return datetime.fromisoformat(entry.time).timestamp()
    except ValueError:
        return float("-inf")  # the chain does not check the format of the time; such an entry cannot be compared
