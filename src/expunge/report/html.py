"""reports/report.html: one file that can be opened offline and begins with the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.evaluation.claims import shown_words
from expunge.evaluation.criteria import SHOWN
from expunge.report import charts, plots, wording
from expunge.report.evidence import Evidence
from expunge.report.metrics import Metric, lookup, measured, of_packages, some
from expunge.report.style import Panel
from expunge.report.summary import CONTROL
from expunge.report.tables import CANARIES, COLUMNS, canaries_reading, candidates, claims_cells, columns, takes
from expunge.report.templates import environment

# Metrics of the second table.
MORE = some(
    "divergence.forget.js",
    "divergence.forget.activation_distance",
    "divergence.test.kl",
    "divergence.test.agreement",
    "gap.tow",
    "gap.mean",
    "membership.tpr_at_fpr_1pct",
    "membership.tpr_at_fpr_01pct",
    "membership.mia_svc.confidence",
    "membership.mia_svc.correctness",
    "membership.mia_svc.entropy",
    "membership.mia_svc.modified_entropy",
    "membership.mia_svc.prob",
    "membership.rmia_auc",
    "membership.class_geometry",
    "membership.retain_loss_auc",
    "representation.probe_z",
    "representation.knn_z",
    "representation.knn_z_prime",
    "representation.cka.original",
    "representation.cka.retrained",
    "divergence.forget.zrf_uniform",
    "calibration.ece_test_retain",
    "relearn.steps",
    "relearn.prototype_samples",
    "cost.speedup_vs_retrain",
    "cost.peak_rss_mb",
    "cost.evaluate_s",
)
SHADOW = some(
    "shadow.ulira.auc",
    "shadow.ulira.tpr_at_fpr_1pct",
    "shadow.ulira.tpr_at_fpr_01pct",
    "shadow.rmia.auc",
    "shadow.rmia.tpr_at_fpr_1pct",
    "shadow.klom.p50",
    "shadow.klom.p95",
    "shadow.klom.p99",
    "shadow.forgetting_score",
)
COLUMN_HELP = {
    **{metric.heading: metric.help for metric in COLUMNS},
    "utility": "whether it is as accurate as retrained models on what was kept",
    "shown": "erasure claims that were shown; the others were refuted, or this run cannot tell",
}


MOST_DRAWN = 24  # methods beside the one that the page is about whose histograms are drawn; the tables have all


@dataclass(frozen=True)
class Section:
    """A `Section` has a heading, an explanation of how to read the panels, and the panels.

    `more` are further panels, which are folded under the label `more_label`.
    """

    title: str
    reading: str
    panels: Sequence[Panel]
    more: Sequence[Panel] = field(default=())
    more_label: str = ""


def render(
    summary: Mapping[str, Any],
    evidence: Evidence,
    drawn: Sequence[Section] | None = None,
    comparison: str = "",
    checks: Sequence[Mapping[str, Any]] = (),
    made: str = "",
) -> str:
    """Return the whole page.

    `evidence.logits` have the keys and order of the table's rows. `drawn`: the page's `sections`, if they were drawn
    before. `comparison`: HTML that compares the original with the method of the page. `checks`: the reports of the
    quality gates (`reports/validation/*.json`). `made`: when and from what the page was made, and where its runs are.
    """
    drawn = sections(summary, evidence) if drawn is None else drawn
    name = wording.focus(summary)
    verdict = summary["methods"][name]["verdict"]
    page = environment().get_template("report.html.jinja")
    return page.render(
        request=wording.request_words(summary, evidence.classes),
        summary=summary,
        focus=name,
        selected=summary["selected"],
        verdict=verdict,
        ladder=ladder(verdict),
        takes=f"{takes(summary)}{wording.rows_it_takes(verdict)}".strip(),
        says=wording.claim(verdict),
        shown=shown_words(verdict),
        gates_of={method: wording.gate_rows(block["verdict"]) for method, block in summary["methods"].items()},
        attention=wording.attention(summary, evidence.classes),
        recommendation=wording.recommendation(summary),
        made=made,
        not_claimed=wording.not_claimed(summary),
        table=main_table(summary),
        column_help=column_help(summary),
        more=more_table(summary),
        canaries=_upright(CANARIES, dict(candidates(summary))),
        canaries_reading=canaries_reading(summary),
        attacks=shadow_table(summary),
        settings=wording.settings_lines(summary),
        seeds=wording.seed_count(summary),
        sections=[section for section in drawn if section.panels],
        drawn=evidence.drawn,
        comparison=comparison,
        checks=[check_rows(report) for report in checks],
    )


def check_rows(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return one quality gate as a line and a table: check, column, what was expected, what was found, outcome."""
    checks = report["checks"]
    passed = sum(check["success"] for check in checks)
    rows = [
        (
            check["check"].replace("_", " "),
            check["column"] or "the table",
            ", ".join(f"{key.replace('_', ' ')}: {json.dumps(value)}" for key, value in check["expected"].items()),
            f"{check['unexpected_rows']:,} unexpected rows"
            if "unexpected_rows" in check
            else json.dumps(check.get("observed")),
            "passed" if check["success"] else "failed",
        )
        for check in checks
    ]
    line = f"{report['suite']}: {passed} of {len(checks)} checks passed on {report['rows']:,} rows"
    return {"line": line, "rows": rows}


def ladder(verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return utility and the four claims, each with its outcome, its statement and, if it was not shown, the reason."""
    against = "retrained models" if verdict["utility_against"] == "retrained" else "the original"
    steps = [
        {"name": "utility", "state": verdict["utility"], "claim": wording.UTILITY_WORDS.format(against), "why": ""}
    ]
    for name, state in verdict["claims"].items():
        why = "" if state == SHOWN else wording.metrics_named(verdict["reasons"][name])
        steps.append({"name": name, "state": state, "claim": wording.CLAIMS[name], "why": why})
    return steps


def main_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return head and rows of cells (value, spread) of the result table; columns without any value are left out."""
    blocks = list(candidates(summary))
    used = columns(summary)
    body = []
    for name, block in blocks:
        cells = [_cell(block, metric) for metric in used]
        body.append({"name": name, "control": name == CONTROL, "cells": cells, "claims": claims_cells(block)})
    return {"head": [*(metric.heading for metric in used), "utility", "shown"], "rows": body}


def column_help(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the explanation of each column of the result table, by its heading."""
    known = COLUMN_HELP | {metric.heading: metric.help for metric in of_packages(summary)}
    return {name: known[name] for name in main_table(summary)["head"] if name in known}


def more_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of the metrics that the result table leaves out."""
    return _upright(MORE, dict(candidates(summary)))


def shadow_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of the attacks with shadow models, for the candidates that they cover.

    The table is empty if no shadow models were trained.
    """
    return _upright(SHADOW, {name: block for name, block in candidates(summary) if block.get("shadow")})


def _upright(metrics: Sequence[Metric], blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a table with a column per candidate and a row per metric that at least one candidate has.

    Each row also has the target of its metric.
    """
    body = [
        {"label": metric.name, "target": metric.target, "cells": [_cell(block, metric) for block in blocks.values()]}
        for metric in measured(metrics, blocks.values())
    ]
    return {"head": list(blocks), "rows": body}


def _cell(block: Mapping[str, Any], metric: Metric) -> dict[str, str]:
    spread = lookup(block, f"spread.{metric.path}")
    known = spread is not None and metric.value(block) is not None
    return {"value": metric.text(block), "spread": metric.form.format(spread) if known else ""}


def sections(summary: Mapping[str, Any], e: Evidence) -> list[Section]:
    """Return every plot of the page with one or two sentences on how to read it."""
    name = wording.focus(summary)
    closely = [m for m in ("original", name, "retrained") if m in e.logits]
    others = [m for m in e.logits if m not in closely]
    unseen = " Unseen rows are test rows of the classes that the forgotten rows have."
    return [
        Section(
            "Where the forgotten rows go",
            "Each column shows what one model predicts for the forgotten rows. A good method spreads them over "
            "the classes as the retrained model does.",
            plots.confusion_shift(e),
        ),
        Section(
            "Confidence and loss",
            f"After forgetting, the curves of {name} should lie where those of the retrained model lie. Forgotten "
            "rows that stay apart from unseen ones can be recognised." + unseen,
            plots.histograms(e, closely),
            plots.histograms(e, others[:MOST_DRAWN]) if others else (),
            "The other methods" + (f", {MOST_DRAWN} of {len(others)}" if len(others) > MOST_DRAWN else ""),
        ),
        Section(
            "Attack by loss",
            "The attacker says that a row was in the training set when its loss is small. Curves near the "
            "retrained model's reveal no more than it does; the left edge shows attacks with few false accusations.",
            plots.attack_curves(e),
        ),
        Section(
            "Relearning",
            "The head is trained on the forgotten rows again. A curve that rises sooner than the retrained model's "
            "shows knowledge that was hidden, not removed.",
            charts.relearning(summary),
        ),
        Section(
            "Probes of the features",
            f"A fresh classifier looks for the forgotten rows (target: {_probe_target(summary)}). It should find "
            "them no better and no worse than in a retrained model's features, which is rarely as low as a guess.",
            charts.probes(summary),
        ),
        Section(
            "The features in two dimensions",
            "Each point is a row. PCA keeps distances and shows the widest directions; t-SNE keeps neighbours and its "
            "distances mean little. Each picture has axes of its own, so compare shapes, not places.",
            plots.views(e),
        ),
        Section(
            "Damage per class",
            "What forgetting cost the classes that stay, against the original: plus is recall lost, minus is recall "
            "gained. The retrained column shows what is unavoidable or chance.",
            charts.damage(summary, e.classes),
        ),
        Section(
            "Cost against quality",
            "Lower left is better: quickly fitted and close to the retrained model's predictions.",
            charts.cost(summary),
        ),
    ]


def _probe_target(summary: Mapping[str, Any]) -> str:
    return str(lookup(summary["references"]["original"], "representation.target") or "forgotten rows")
