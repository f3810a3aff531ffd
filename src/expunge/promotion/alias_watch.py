"""Check moves of the alias `champion` that were made in MLflow's user interface: record them or undo them.

MLflow's registry cannot reject a move. The user therefore writes the reason and a name as tags of the version; if the
server records the account that moved the alias (docker/who_moved.py), this account is the name. Between the move and
the next check the version is served unchecked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expunge.promotion.promoter import MOVED_BY, Promoter
from expunge.system.errors import LedgerError
from expunge.tracking import MlflowClient, Version, description_of, drop_tag, set_tag

REASON, BY, REFUSED = "reason", "by", "not_promoted"
NO_REASON = "the alias was moved in the registry; the version has no tag `reason`"
WATCHER = "watcher"
_IN_DESCRIPTION = re.compile(r"^\W*reason\W*:\W*(.+)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Settled:
    """The outcome of a move. `version` is None if the alias was removed; `words` describes the outcome."""

    model: str
    version: str | None
    promoted: bool
    words: str


def settle_alias(promoter: Promoter) -> Settled | None:
    """Check a champion that was set by hand, and return the outcome; None if the alias agrees with the ledger.

    If the version passes the gates, it is promoted with the user's reason. Otherwise the alias is moved back to the
    champion in the ledger, and the version's tag `not_promoted` says why.
    Raises LedgerError if another decision was made meanwhile; the next check then settles the move.
    """
    history, champion = promoter.history(), promoter.champion()
    recorded = history.champion
    if (champion and champion.version) == (recorded and recorded["version"]):
        return None
    promoter.record_by_hand()
    if champion is None:
        return _put_back(promoter, None, ["the alias was removed; `expunge rollback` takes a champion away"])
    if failed := promoter.checked(champion):
        return _put_back(promoter, champion, failed)
    reason, who = reason_of(promoter.client, champion), champion.tags.get(MOVED_BY) or champion.tags.get(BY, "")
    entry = promoter.promote(champion, reason, promoter.history().head, {}, who)
    drop_tag(promoter.client, champion, REFUSED)
    words = f"version {champion.version} passes the gates and is the champion, ledger entry {entry.seq}"
    return Settled(promoter.name, champion.version, True, words)


def _put_back(promoter: Promoter, moved: Version | None, failed: Sequence[str]) -> Settled:
    entry = promoter.rollback("; ".join(failed), WATCHER)
    back = entry.facts["version"]
    now = "there is no champion again" if back is None else f"version {back} is the champion again"
    words = f"{'; '.join(failed)}. So {now}, ledger entry {entry.seq}"
    if moved is not None:
        set_tag(promoter.client, moved, REFUSED, words)
    return Settled(promoter.name, None if moved is None else moved.version, False, words)


def reason_of(client: MlflowClient, version: Version) -> str:
    """Return the tag `reason` of a version, else the line `Reason: ...` of its description, else NO_REASON."""
    if tagged := version.tags.get(REASON, "").strip():
        return tagged
    found = _IN_DESCRIPTION.search(description_of(client, version))
    return found[1].strip() if found else NO_REASON


def settle_all(promoters: Sequence[Promoter]) -> Iterator[Settled]:
    """Settle the alias of every model independently. A model with a concurrent decision is left to the next check."""
    for promoter in promoters:
        try:
            settled = settle_alias(promoter)
        except LedgerError as e:
            settled = Settled(promoter.name, None, False, f"not settled yet: {e}")
        if settled is not None:
            yield settled
