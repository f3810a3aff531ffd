"""Detect in the ledger that the clock was set back: an entry has an earlier time than an entry before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from expunge.ledger.ledger import Entry

TOLERANCE_SECONDS = 60  # routine clock corrections amount to seconds


def set_back(entries: Sequence[Entry]) -> dict[int, str]:
    """Return a sentence for every entry, by its number, before which the clock was set back.

    The time of such an entry is more than TOLERANCE_SECONDS before the latest time of the entries that precede it.
    """
    found: dict[int, str] = {}
    latest, latest_seconds = None, float("-inf")
    for entry in entries:
        seconds = _seconds(entry)
        behind = latest_seconds - seconds
        if latest is not None and behind > TOLERANCE_SECONDS:
            found[entry.seq] = (
                f"ledger entry {entry.seq} ({entry.kind}) has the time {entry.time}, {behind:,.0f} seconds before "
                f"entry {latest.seq} of {latest.time}: the clock was set back, so times from there on show no order"
            )
        if latest is None or seconds > latest_seconds:
            latest, latest_seconds = entry, seconds
    return found


def _seconds(entry: Entry) -> float:
    try:
        return datetime.fromisoformat(entry.time).timestamp()
    except ValueError:
        return float("-inf")  # the chain does not check the format of the time; such an entry cannot be compared
