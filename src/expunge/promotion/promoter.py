"""Promotion, rollback and the check for aliases that were moved by hand.

The ledger is written first, then the alias is moved. A process that dies in between leaves the two apart, which `audit`
shows like a move by hand; the same command run again mends it.
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

# What an entry says of a version, beside its number: from its tags.
RECORDED = ("method", "request", "claims", "utility", "failed_gates", "content", "servable", "dvc_lock")


def find(client: MlflowClient, name: str, which: str) -> Version:
    """A version by number or alias. Raises PromotionError for an alias that points nowhere, TrackingError for a number
    that is not registered."""
    if which not in (CHALLENGER, CHAMPION):
        return version_of(client, name, which)
    found = aliased(client, name, which)
    if found is None:
        raise PromotionError(f"{name!r} has no {which} in this registry; run the pipeline, promote, or give a number")
    return found


@dataclass(frozen=True)
class Promoter:
    """Where decisions about the registered model `name` are made. `least` is the least claim that may serve."""

    client: MlflowClient
    name: str
    ledger: Ledger
    forgotten: ForgottenRows
    least: str

    def history(self) -> History:
        return History.of(self.ledger.entries(), self.name)

    def champion(self) -> Version | None:
        return aliased(self.client, self.name, CHAMPION)

    def version(self, which: str) -> Version:
        return find(self.client, self.name, which)

    def compared_with(self, version: Version) -> Version | None:
        """What `version` would take the place of: the champion; where that is `version` itself, the last other one on
        record that the registry still has. None: the original classifier."""
        champion = self.champion()
        if champion is not None and champion.version != version.version:
            return champion
        registered = {v.version: v for v in versions_of(self.client, self.name)}
        numbers = [entry.facts["version"] for entry in reversed(self.history().standing)]
        return next((registered[n] for n in numbers if n != version.version and n in registered), None)

    def check(self, version: Version) -> list[str]:
        """Why `version` may not be served; empty when it may. Reads it from the artifact store, checksums included."""
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

        `after`: the ledger's head when the reviewer looked. `seen`: what the reviewer was shown, in counts. `who`: who
        decides.
        Raises PromotionError naming every gate that failed, LedgerError if something was decided meanwhile.
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
        """The promotion of `version` that stands and has `seen` in it, its alias moved if the process died before.

        None where the last promotion that stands is another one.
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
        """Write down that the alias was moved past the ledger, once for every such move that is seen.

        The entry of the move that stands; None where the alias is as the ledger says.
        """
        history, champion = self.history(), self.champion()
        now = champion and champion.version
        if now == history.serving:
            return history.by_hand[-1] if history.by_hand else None
        facts = {"model": self.name, "version": now, "instead_of": history.serving}
        if champion is not None and (request := champion.tags.get("request")):
            facts["request"] = request
        facts["reason"] = "the alias was moved by hand"
        entry = self.ledger.append(BY_HAND, facts, event=f"{self.name}/{history.last[7:19]}/{now}")
        return entry if self.history().by_hand else None

    def rollback(self, reason: str, who: str = "") -> Entry:
        """Restore the champion before the present one. A move by hand is undone, whatever it was: the champion on
        record serves again, or none where none was ever promoted.

        Raises PromotionError if there is nothing to go back to, or if the champion before remembers rows that a later
        one had forgotten.
        """
        reason = _reason(reason)
        by_hand = self.record_by_hand() is not None
        history, champion = self.history(), self.champion()
        if by_hand and not history.standing:
            return self._move(ROLLBACK, None, champion, reason, history.head, {"by_hand": True}, who)
        if not history.standing:
            raise PromotionError(f"the ledger knows no promotion of {self.name!r}: nothing to go back to")
        if not by_hand and len(history.standing) < 2:
            raise PromotionError(
                f"version {history.standing[-1].facts['version']} is the only champion there was: nothing to go back to"
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
        """What is not as the ledger says: an alias that was moved by hand, which becomes an entry, changed files, a cut
        ledger. Empty if all is well. Raises LedgerError for a ledger that was changed."""
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
        """As `check`, for a version that may be anybody's: one that cannot be read may not be served either."""
        try:
            return self.check(version)
        except ExpungeError as e:
            return [str(e)]

    def _unknown(self, version: Version) -> list[str]:
        request = version.tags.get("request")
        if request is None or CORRECTS in version.tags or self.forgotten.knows(request):
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
        """Entry first, then the alias; it is taken away where `version` is None."""
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
