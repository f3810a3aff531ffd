"""Check that the request store and the ledger agree; either may have been restored from an old backup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from expunge.erasure.certificate import known_entries
from expunge.erasure.requests import Event, Store
from expunge.ledger.ledger import Entry, Ledger
from expunge.system.errors import LedgerError, RequestError
from expunge.system.paths import CERTIFICATES


def check(store: Store, ledger: Ledger, certificates: Path = CERTIFICATES) -> None:
    """Check the ledger against the store and the certificates.

    Raises LedgerError if the ledger lacks an entry that the store or a certificate names, and RequestError if the
    store lacks or contradicts an event in the ledger.

    Requests and batches of which the store has no event at all are not checked. After the loss of a store the operator
    begins an empty one and takes open requests in again.
    """
    try:
        ledger.verify([*store.entries(), *known_entries(certificates)])
    except LedgerError as e:
        raise LedgerError(f"{e}. Until then no request is carried out or certified") from None
    events = {f"{e.about}/{e.number}": e for e in store.all_events()}
    known = {e.about for e in events.values()}
    for entry in ledger.entries():
        if entry.facts.get("about") in known:
            _check_entry(entry, events)


def _check_entry(entry: Entry, events: Mapping[str, Event]) -> None:
    name = str(entry.facts["event"])
    event = events.get(name)
    if event is None:
        what = f"lacks the event {name} ({entry.kind})"
    elif (event.kind, event.at, event.who) != (entry.kind, entry.facts["at"], entry.facts["who"]):
        what = f"has the event {name} as {event.kind} of {event.at}, not as {entry.kind} of {entry.facts['at']}"
    else:
        return
    raise RequestError(
        f"the request store {what}, as entry {entry.seq} of the ledger says: the store was restored from a backup. "
        "Restore its newest copy. If that is lost, start with an empty store and add the open requests again"
    )
