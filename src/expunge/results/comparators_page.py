"""The measured part of docs/comparators.md: write it from runs, and read it for `expunge methods`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.report.metrics import some
from expunge.report.summary import CONTROL
from expunge.report.tables import markdown_table
from expunge.results.page import FIT, RETRAIN, cell, meaning, sections_of, verdict_cells
from expunge.results.pooled import Pooled, judge
from expunge.results.variants import Variant
from expunge.system.errors import ExpungeError

BEGIN = "<!-- measured: written by python -m expunge.results.comparators -->"
END = "<!-- end of what is written -->"
NOT_MEASURED = "not measured"
KEPT, SHOWN = "kept", "shown"  # headings by which `claims` finds the verdict in the page
METRICS = some(
    "accuracy.forget",
    "accuracy.test_retain",
    "divergence.forget.kl",
    "divergence.forget.agreement",
    "membership.loss_auc",
    "representation.probe_z_prime",
)


def section(variant: Variant, pooled: Pooled) -> str:
    """Markdown of one experiment: its findings in sentences, the refusals, and the table."""
    judged = {name: judge(pooled, name) for name in pooled.blocks if name not in ("original", "retrained")}
    head = ["", *(metric.heading for metric in METRICS), "cost", "refused", KEPT, SHOWN]
    body = []
    for name, blocks in pooled.blocks.items():
        label = f"{name} (control)" if name == CONTROL else name
        cells = [cell(metric.form, pooled.values(name, metric.path)) for metric in METRICS]
        verdict = verdict_cells(judged[name]) if name in judged else ["", ""]
        refused = len(pooled.seeds) - len(blocks)
        body.append([label, *cells, cost_share(pooled, name), f"{refused}" if refused else "", *verdict])
    seeds = f"Training seeds: {', '.join(map(str, pooled.seeds))} of {len(variant.seeds)}."
    request = pooled.summaries[0]["request"]
    total = request["forget_rows"] + request["retain_rows"]
    rows = f"{request['forget_rows']:,} of {total:,} training rows are forgotten."
    lines = [*meaning(pooled, judged), *refusals(pooled)]
    return "\n\n".join(
        [f"### {variant.title}", f"{rows} {seeds}", "\n".join(f"- {s}" for s in lines), markdown_table(head, body)]
    )


def cost_share(pooled: Pooled, name: str) -> str:
    """Mean processor time of the fit as a percentage of that of retraining; a dash if either is missing."""
    fit, retrain = pooled.values(name, FIT), pooled.values(name, RETRAIN)
    return f"{np.mean(fit) / np.mean(retrain):.1%}" if fit and retrain else "–"


def refusals(pooled: Pooled) -> list[str]:
    """A sentence per refused method: in how many seeds it was refused, and the first reason."""
    reasons: dict[str, list[str]] = {}
    for summary in pooled.summaries:
        for name, reason in summary.get("refused", {}).items():
            reasons.setdefault(name, []).append(reason)
    of = len(pooled.seeds)
    return [
        f"Refused in {len(r)} of {of} seeds: {name}: {r[0].removeprefix(f'{name}: ')}" for name, r in reasons.items()
    ]


def with_measured(text: str, sections: Sequence[str]) -> str:
    """Replace what lies between the two marks of the page `text` by `sections`.

    Raises ExpungeError if the page lacks a mark.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ExpungeError(f"docs/comparators.md: needs the lines `{BEGIN}` and `{END}`; restore them from git")
    return before + "\n\n".join([BEGIN, *sections, END]) + after


def measured_sections(text: str) -> Mapping[str, str]:
    """Sections of the measured part of the page `text`, by title."""
    return sections_of(text.partition(BEGIN)[2].partition(END)[0], "### ")


def claims(text: str) -> Mapping[str, str]:
    """Verdicts by method in the page `text`, such as "class: kept 3/3, shown outputs 3/3".

    Methods without a verdict in the page are left out.
    """
    found: dict[str, list[str]] = {}
    measured = text.partition(BEGIN)[2].partition(END)[0]
    kind, head = "", [""]
    for line in measured.splitlines():
        if line.startswith("### "):
            kind, head = line.removeprefix("### ").partition(":")[0], [""]
        elif line.startswith("| "):
            cells = [part.strip() for part in line.strip("|").split("|")]
            if SHOWN in cells:
                head = cells
            elif SHOWN in head and (shown := cells[head.index(SHOWN)]):
                name = cells[0].removesuffix(" (control)")
                found.setdefault(name, []).append(f"{kind}: kept {cells[head.index(KEPT)]}, shown {shown}")
    return {name: "; ".join(claim) for name, claim in found.items()}
