"""The description of a registered version: all that a reviewer sees of it on its page in MLflow.

MLflow draws tables without space between their columns, so the table has four of them, and one metric a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evaluation.claims import shown_claims
from expunge.report import wording
from expunge.report.metrics import measured, of_packages, some
from expunge.report.request_words import corrects, worded
from expunge.report.tables import COLUMNS, candidates, markdown_table

# The columns of the result table, with the probe of the backbone before the seconds.
SHOWN = (*COLUMNS[:-1], *some("representation.probe_z"), COLUMNS[-1])
TO_PROMOTE = (
    "**To promote it**, add the tags `reason` and `by` (your name) below, then set the alias `champion` with the "
    "pencil or *Add* beside *Aliases*. Where `expunge watch` runs, it records a version that passes the gates, and "
    "takes the alias from one that does not; the tag `not_promoted` then says why. Elsewhere use `expunge promote`. "
    "`champion` is the version that is served, `challenger` the one that was registered last."
)


def version_page(summary: Mapping[str, Any], classes: Sequence[str], run: str) -> str:
    """Return the description of the version of the selected method, as Markdown.

    The first line is the verdict. `run`: the address of the pipeline's run within MLflow, as `#/experiments/1/runs/ID`;
    the artifacts of this run hold the report.
    """
    method = summary["selected"]
    verdict = summary["methods"][method]["verdict"]
    claims = ", ".join(shown_claims(verdict)) or "nothing"
    request = wording.escaped(wording.request_words(summary, classes))
    does = "corrects" if corrects(summary["request"]) else "forgets"
    parts = [
        f"**Shown: {claims}; utility {verdict['utility']}.** `{method}` {does} {request}.",
        f"[Report]({run}/artifacts/report.html) · [all methods of the run]({run}) · "
        f"[model card]({run}/artifacts/model_card.md)",
        f"**What is claimed.** {wording.claim(verdict)}",
        *(f"**Attention.** {wording.escaped(line)}" for line in wording.attention(summary, classes)),
        "**What is not claimed.**",
        "\n".join(f"- {wording.escaped(line)}" for line in wording.not_claimed(summary)),
        TO_PROMOTE,
        _table(summary, method),  # last, since MLflow leaves no space below a table
    ]
    return worded("\n\n".join(parts), summary["request"]) + "\n"


def _table(summary: Mapping[str, Any], method: str) -> str:
    """Return one line per metric with the values of the original, the retrained model and the method."""
    shown = [(name, block) for name, block in candidates(summary) if name in ("original", "retrained", method)]
    metrics = measured((*SHOWN, *of_packages(summary)), [block for _, block in shown])
    # Two spaces that do not break keep a column apart from the next one.
    lines = [[metric.name, *(f"\u00a0\u00a0{metric.text(block)}" for _, block in shown)] for metric in metrics]
    return markdown_table(["metric", *(f"\u00a0\u00a0{name}" for name, _ in shown)], lines)
