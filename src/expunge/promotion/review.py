"""The content of a review, for the terminal, the HTML page and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.promotion.gates import short
from expunge.report.comparison import ComparedRows, counts
from expunge.report.comparison_view import ComparedModels, TextTable
from expunge.report.metrics import name_of
from expunge.tracking import Version

ORIGINAL = "original"
LABELS = (("method", "method"), ("shown", "claims"), ("utility", "utility"), ("gates against it", "failed_gates"))
TAGS = ("method", "claims", "utility", "failed_gates", "request")


def in_words(tag: str) -> str:
    """Return a tag of a version with the paths of metrics, which its list of gates holds, replaced by their names."""
    return "; ".join(name_of(part) for part in tag.split(", "))


@dataclass(frozen=True)
class Review:
    """The data that a reviewer is shown.

    `champion`: the version that the challenger is compared with; None if it is compared with the original. `forgets`:
    a description of what each of the two forgot; None if it is not known. `serves`: whether the challenger is the
    champion according to the ledger. `evaluations`: blocks of the summary: those of champion and challenger, each as
    registered and for its own request, and that of the retrained models for the challenger's request. `parts`: the
    comparison by part of the challenger's request; empty if its rows are not known. `retrained`: predictions of a
    retrained model by part; empty without one. `failed`: failed gates of the challenger. `findings`: findings of the
    audit.
    """

    champion: Version | None
    challenger: Version
    forgets: tuple[str | None, str | None]
    serves: bool
    evaluations: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None, Mapping[str, Any] | None]
    parts: Mapping[str, ComparedRows]
    retrained: Mapping[str, NDArray[np.int64]]
    classes: Sequence[str]
    failed: Sequence[str]
    findings: Sequence[str]

    def headings(self) -> tuple[str, str]:
        """Return the column headings of champion and challenger, each with the rows that it forgot."""
        before = ORIGINAL if self.champion is None else f"champion: version {self.champion.version}"
        return tuple(  # type: ignore[return-value]
            name if what is None else f"{name} (forgets {what})"
            for name, what in zip((before, f"challenger: version {self.challenger.version}"), self.forgets, strict=True)
        )

    def versions(self) -> TextTable:
        """Return a table of the two versions: method, shown claims, utility, failed gates, request."""
        shown = (self.champion, self.challenger)
        tags = [{} if v is None else v.tags for v in shown]
        rows = [(label, *(in_words(of.get(tag, "–")) for of in tags)) for label, tag in LABELS]
        rows.append(("request", *("–" if v is None else short(v.tags.get("request", "–")) for v in shown)))
        rows.append(("forgets", *(what or "–" for what in self.forgets)))
        return TextTable(self.challenger.name, ("", *self.headings()), tuple(rows))

    def compared_models(self) -> ComparedModels:
        """Return the comparison of the two versions on the same rows, under the headings of this review."""
        return ComparedModels(
            *self.headings(), self.evaluations, self.parts, self.retrained, self.classes, forgets=self.forgets[1]
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the review as JSON values, without ids of rows."""

        def version_fields(version: Version | None, forgets: str | None) -> dict[str, Any] | None:
            if version is None:
                return None
            return {"version": version.version, "forgets": forgets, **{t: version.tags.get(t) for t in TAGS}}

        names = ("champion" if self.champion is not None else ORIGINAL, "challenger", "retrained")
        return {
            "model": self.challenger.name,
            "champion": version_fields(self.champion, self.forgets[0]),
            "challenger": version_fields(self.challenger, self.forgets[1]),
            "serves": self.serves,
            "passes": not self.failed,
            "failed": list(self.failed),
            "findings": list(self.findings),
            "evaluated": dict(zip(names, self.evaluations, strict=True)),
            "same_rows": counts(self.parts),
        }
