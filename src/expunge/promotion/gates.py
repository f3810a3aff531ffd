"""The gates that a version must pass before it is served. Each failure is a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.evaluation.claims import may_serve, shown_words, useful
from expunge.ledger.forgotten import ForgottenRows
from expunge.serving.servable import Contract
from expunge.tracking import Version


def failed_gates(
    version: Version,
    evaluation: Mapping[str, Any] | None,
    *,
    stored: str,
    contract: Contract,
    least: str,
    champion: Contract | None,
    forgotten: ForgottenRows,
    to_cover: Mapping[str, str],
) -> list[str]:
    """Return the reasons why `version` may not be served; empty if it may.

    `evaluation`: its block of the summary, None if its run has none. `stored`: digest of the files that the registry
    holds for it now. `least`: the least claim required to serve. `champion`: the input and output contract of the
    present champion. `to_cover`: requests that promoted versions have forgotten, mapped to the version.
    """
    tags = version.tags
    failed = []
    claimed, utility = tags.get("claims", "none"), tags.get("utility", "cannot tell")
    if not may_serve(claimed.split(", "), least):
        gates = tags.get("failed_gates", "none known")
        failed.append(f"shown of it: {claimed}; register.promote_level asks for {least!r}; gates against it: {gates}")
    if not useful(claimed.split(", "), utility):
        failed.append(f"its utility is {utility!r}: retained and test accuracy must be those of retrained models")
    if evaluation is None:
        failed.append("its evaluation is gone from its run; register it anew")
    elif (found := (shown_words(evaluation["verdict"]), evaluation["verdict"]["utility"])) != (claimed, utility):
        failed.append(
            f"its tags say claims {claimed!r} and utility {utility!r}, its evaluation {found[0]!r} and {found[1]!r}: "
            "a tag was changed by hand"
        )
    if "parity" not in tags:
        failed.append("it was never compared with what the evaluation saw; run the register stage again")
    if tags.get("servable") != stored:
        failed.append("what the registry holds is not what was registered; register it anew")
    if champion is not None and (contract.shape, contract.classes) != (champion.shape, champion.classes):
        failed.append(
            f"it takes {contract.takes} and answers {len(contract.classes)} classes, the champion "
            f"{champion.takes} and {len(champion.classes)} classes or other names; register it under a name of its own"
        )
    return failed + remembered(version, forgotten, to_cover)


def remembered(version: Version, forgotten: ForgottenRows, to_cover: Mapping[str, str]) -> list[str]:
    """Return a sentence for each request of a promoted version that `version` does not cover.

    Serving it would bring back rows that the promoted version had forgotten, or labels that it had corrected.
    """
    own = version.tags.get("request")
    if own is None:
        return ["nothing says what it forgot (no tag `request`): the original model, or one of another origin"]
    failed = []
    for request, by in to_cover.items():
        covered = forgotten.covers(own, request)
        if covered is None:
            failed.append(
                f"whether it forgot what version {by} forgot cannot be shown: the rows of {short(request)} or of "
                f"{short(own)} are not in {forgotten.directory}; bring that folder from where version {by} was promoted"
            )
        elif not covered:
            failed.append(
                f"it remembers rows that version {by} had forgotten, or labels that it had corrected (request "
                f"{short(request)}); make one request that holds both, or carry that request out first, and fit anew"
            )
    return failed


def short(digest: str) -> str:
    """Return the first 12 hexadecimal digits of a digest."""
    return digest.removeprefix("sha256:")[:12]
