"""Promotion, rollback and the check for aliases that were moved by hand.

The ledger is written first, then the alias is moved. If the process is killed in between, the two disagree, and `audit`
reports it like a move by hand. Running the same command again repairs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.ledger import Entry, Ledger
from expunge.promotion.gates import failed_gates, remembered, short
from expunge.promotion.history import BY_HAND, PROMOTION, ROLLBACK, WITHDRAWN, History
from expunge.system.errors import ExpungeError, PromotionError
from expunge.tracking import (
    CHALLENGER,
    CHAMPION,
    CORRECTS,
    MlflowClient,
    Version,
    aliased,
    drop_alias,
    evaluation_of,
    keep_entry,
    ledger_entries,
    move_alias,
    servable_of,
    version_of,
)
from expunge.tracking.retire import versions_of

MOVED_BY = "moved_by"  # tag of a version: the account that moved the alias, if the server records it (docker/)
# Tags of a version that its entry records, besides the number.
RECORDED = ("method", "request", CORRECTS, "claims", "utility", "failed_gates", "content", "servable", "dvc_lock")


def find(client: MlflowClient, name: str, which: str) -> Version:
    """Return a version by number or alias.

    Raises PromotionError for an alias that is not set, and TrackingError for a number that is not registered.
    """
    if which not in (CHALLENGER, CHAMPION):
        return version_of(client, name, which)
    found = aliased(client, name, which)
    if found is None:
        raise PromotionError(f"{name!r} has no {which} in this registry; run the pipeline, promote, or give a number")
    return found


@dataclass(frozen=True)
class Promoter:
    """Promotes and rolls back the registered model `name`. `least` is the least claim required to serve."""

    client: MlflowClient
    name: str
    ledger: Ledger
    forgotten: ForgottenRows
    least: str

    def history(self) -> History:
        """Read the decisions about this model from the ledger. Raises LedgerError for a broken chain."""
        return History.of(self.ledger.entries(), self.name)

    def champion(self) -> Version | None:
        """Return the version that the alias `champion` points to in the registry, or None."""
        return aliased(self.client, self.name, CHAMPION)

    def version(self, which: str) -> Version:
        """Return the version with this number or alias."""
        return find(self.client, self.name, which)

    def compared_with(self, version: Version) -> Version | None:
        """Return the version that `version` would replace, or None for the original classifier.

        This is the champion. If `version` is the champion itself, it is the latest other promoted version that the
        registry still has.
        """
        champion = self.champion()
        if champion is not None and champion.version != version.version:
            return champion
        registered = {v.version: v for v in versions_of(self.client, self.name)}
        numbers = [entry.facts["version"] for entry in reversed(self.history().standing)]
        return next((registered[n] for n in numbers if n != version.version and n in registered), None)

    def check(self, version: Version) -> list[str]:
        """Return the reasons why `version` may not be served; empty if it may.

        Its files are read from the artifact store and their checksums verified.
        """
        servable, stored = servable_of(version)
        before = self.compared_with(version)
        return failed_gates(
            version,
            evaluation_of(self.client, version).own,
            stored=stored,
            contract=servable.contract,
            least=self.least,
            champion=None if before is None else servable_of(before)[0].contract,
            forgotten=self.forgotten,
            to_cover=self._to_cover(),
        ) + self._unknown(version)

    def promote(self, version: Version, reason: str, after: str, seen: Mapping[str, Any], who: str = "") -> Entry:
        """Make `version` the champion. A version that was made champion by hand is checked and recorded.

        `after`: the ledger's head at the time of the review. `seen`: counts of what the reviewer was shown. `who`: the
        person who decides.
        Raises PromotionError naming every gate that failed, and LedgerError if another decision was made meanwhile.
        """
        reason = _reason(reason)
        champion, recorded = self.champion(), self.history().champion
        is_champion = champion is not None and champion.version == version.version
        is_recorded = recorded is not None and recorded["version"] == version.version
        if is_champion and is_recorded:
            raise PromotionError(f"version {version.version} is the champion already")
        if failed := self.check(version):
            raise PromotionError(f"version {version.version} is not promoted:\n" + "\n".join(f"- {f}" for f in failed))
        self.forgotten.keep(version.tags["request"])
        facts = {"by_hand": is_champion, "least_asked": self.least, "seen": dict(seen)}
        return self._move(PROMOTION, version, self.compared_with(version), reason, after, facts, who)

    def settle(self, version: Version, seen: Mapping[str, Any]) -> Entry | None:
        """Return the champion's promotion if it is that of `version` with the same `seen`, else None.

        The alias is moved again, in case an earlier process died between the entry and the move.
        """
        standing = self.history().standing
        if not standing:
            return None
        entry = standing[-1]
        if entry.facts["version"] != version.version or entry.facts.get("seen") != dict(seen):
            return None
        keep_entry(self.client, version, entry.hash)
        move_alias(self.client, self.name, CHAMPION, version.version)
        return entry

    def record_by_hand(self) -> Entry | None:
        """Record in the ledger that the alias was moved by hand, once for every observed move.

        Returns the entry of the move in effect; None if the alias agrees with the ledger.
        """
        history, champion = self.history(), self.champion()
        now = champion and champion.version
        if now == history.serving:
            return history.by_hand[-1] if history.by_hand else None
        facts = {"model": self.name, "version": now, "instead_of": history.serving}
        if champion is not None and (request := champion.tags.get("request")):
            facts["request"] = request
        if champion is not None and (account := champion.tags.get(MOVED_BY)):
            facts["who"] = account
        facts["reason"] = "the alias was moved by hand"
        [entry] = self.ledger.append_events([(f"{self.name}/{history.last[7:19]}/{now}", BY_HAND, facts)])
        return entry if self.history().by_hand else None

    def rollback(self, reason: str, who: str = "") -> Entry:
        """Restore the previous champion.

        After a move by hand, restore the champion on record instead, or none if none was ever promoted.

        Raises PromotionError if there is no champion to restore, if its files were changed, or if the previous champion
        remembers rows that a later one has forgotten.
        """
        reason = _reason(reason)
        by_hand = self.record_by_hand() is not None
        history, champion = self.history(), self.champion()
        if by_hand and not history.standing:
            return self._move(ROLLBACK, None, champion, reason, history.head, {"by_hand": True}, who)
        if not history.standing:
            raise PromotionError(
                f"the ledger records no promotion of {self.name!r}, so there is no version to go back to"
            )
        if not by_hand and len(history.standing) < 2:
            raise PromotionError(
                f"version {history.standing[-1].facts['version']} is the only champion there was, so there is "
                "no version to go back to"
            )
        facts = history.standing[-1 if by_hand else -2].facts
        target = version_of(self.client, self.name, facts["version"])
        failed = [] if by_hand else remembered(target, self.forgotten, self._to_cover())
        if servable_of(target)[1] != facts["servable"]:
            failed.append("what the registry holds is not what was promoted")
        if failed:
            raise PromotionError(
                f"no rollback to version {target.version}:\n"
                + "\n".join(f"- {f}" for f in failed)
                + "\nFit a new version that forgets all of it, and promote that"
            )
        return self._move(ROLLBACK, target, champion, reason, history.head, {"by_hand": by_hand}, who)

    def audit(self) -> list[str]:
        """Return the deviations of the registry from the ledger; empty if there are none.

        They are an alias that was moved by hand, which is recorded in the ledger, and changed files of the champion.
        Raises LedgerError for a ledger that was changed or truncated.
        """
        self.ledger.verify(ledger_entries(self.client, self.name))
        self.record_by_hand()
        recorded, champion = self.history().champion, self.champion()
        if champion is None:
            if recorded is None:
                return []
            return [
                f"the alias {CHAMPION!r} was removed by hand; version {recorded['version']} was promoted last. "
                '`expunge rollback --reason "..."` puts it back'
            ]
        if recorded is None or recorded["version"] != champion.version:
            was = "none was ever promoted" if recorded is None else f"version {recorded['version']} was promoted last"
            failed = self.checked(champion)
            return [
                f"version {champion.version} was made champion by hand: {was}. "
                + (
                    'It does not pass the gates; `expunge rollback --reason "..."` undoes the move'
                    if failed
                    else f'It passes the gates; `expunge promote --version {champion.version} --reason "..."` puts it '
                    'on record, `expunge rollback --reason "..."` undoes the move'
                ),
                *failed,
            ]
        if servable_of(champion)[1] != recorded["servable"]:
            return [f"version {champion.version}: what the registry holds is not what was promoted"]
        return []

    def checked(self, version: Version) -> list[str]:
        """Run `check` on a version of unknown origin: an error in reading it counts as a failed gate."""
        try:
            return self.check(version)
        except ExpungeError as e:
            return [str(e)]

    def _unknown(self, version: Version) -> list[str]:
        request = version.tags.get("request")
        if request is None or self.forgotten.knows(request):
            return []
        return [
            f"which rows it forgot (request {short(request)}) is not known here, and later promotions need it: it was "
            "registered by an earlier version of this pipeline, or elsewhere; bring data/forgotten from there, or "
            "register it anew"
        ]

    def _to_cover(self) -> dict[str, str]:
        requests, champion = self.history().requests(), self.champion()
        if champion is not None and (request := champion.tags.get("request")):
            requests.setdefault(request, champion.version)
        return requests

    def _move(
        self,
        kind: str,
        version: Version | None,
        before: Version | None,
        reason: str,
        after: str,
        more: Mapping[str, Any],
        who: str,
    ) -> Entry:
        """Append the entry, then move the alias, or remove it if `version` is None.

        If the move fails, a further entry withdraws the decision.
        """
        facts = {
            "model": self.name,
            "version": version and version.version,
            "instead_of": before and before.version,
            "reason": reason,
            **({} if version is None else {key: version.tags[key] for key in RECORDED if key in version.tags}),
            **more,
            **({"who": who} if who else {}),
        }
        entry = self.ledger.append(kind, facts, after=after)
        try:
            if kept_with := version or before:
                keep_entry(self.client, kept_with, entry.hash)
            if version is None:
                drop_alias(self.client, self.name, CHAMPION)
            else:
                move_alias(self.client, self.name, CHAMPION, version.version)
        except BaseException:
            self.ledger.append(WITHDRAWN, {"model": self.name, "entry": entry.hash, "reason": "the alias did not move"})
            raise
        return entry


def _reason(reason: str) -> str:
    if not reason.strip():
        raise PromotionError("a reason is needed: it stands in the ledger, for whoever asks later why this is served")
    return reason.strip()
