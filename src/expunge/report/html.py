"""reports/report.html: one file that opens offline, verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from expunge.evaluation.claims import shown_words
from expunge.evaluation.criteria import SHOWN
from expunge.report import charts, plots, wording
from expunge.report.evidence import Evidence
from expunge.report.style import Panel
from expunge.report.summary import CONTROL
from expunge.report.tables import COLUMNS, candidates, claims_cells, lookup, takes

if TYPE_CHECKING:
    from jinja2 import Environment

# Second table: label, dotted path, format, and where a good value lies.
MORE = (
    ("JS on forgotten rows, nats", "divergence.forget.js", "{:.3f}", "0"),
    ("activation distance on forgotten rows", "divergence.forget.activation_distance", "{:.3f}", "0"),
    ("KL on test rows, nats", "divergence.test.kl", "{:.3f}", "0"),
    ("agreement on test rows", "divergence.test.agreement", "{:.1%}", "100 %"),
    ("tug of war", "gap.tow", "{:.3f}", "1"),
    ("mean accuracy gap", "gap.mean", "{:.3f}", "0"),
    ("TPR of the loss attack at 1 % FPR", "membership.tpr_at_fpr_1pct", "{:.1%}", "retrained"),
    ("TPR of the loss attack at 0.1 % FPR", "membership.tpr_at_fpr_01pct", "{:.1%}", "retrained"),
    ("MIA-SVC on confidence", "membership.mia_svc.confidence", "{:.1%}", "retrained"),
    ("MIA-SVC on correctness", "membership.mia_svc.correctness", "{:.1%}", "retrained"),
    ("MIA-SVC on entropy", "membership.mia_svc.entropy", "{:.1%}", "retrained"),
    ("MIA-SVC on modified entropy", "membership.mia_svc.modified_entropy", "{:.1%}", "retrained"),
    ("MIA-SVC on probabilities", "membership.mia_svc.prob", "{:.1%}", "retrained"),
    ("RMIA, AUC", "membership.rmia_auc", "{:.3f}", "0.5"),
    ("class geometry attack", "membership.class_geometry", "{:.1%}", "retrained"),
    ("loss AUC of retained rows", "membership.retain_loss_auc", "{:.3f}", "original"),
    ("linear probe on z", "representation.probe_z", "{:.1%}", "retrained"),
    ("kNN probe on z", "representation.knn_z", "{:.1%}", "retrained"),
    ("kNN probe on z'", "representation.knn_z_prime", "{:.1%}", "retrained"),
    ("CKA with the original", "representation.cka.original", "{:.3f}", "retrained"),
    ("CKA with the retrained model", "representation.cka.retrained", "{:.3f}", "1"),
    ("ZRF against uniform output", "divergence.forget.zrf_uniform", "{:.3f}", "retrained"),
    ("calibration error on retained test rows", "calibration.ece_test_retain", "{:.3f}", "0"),
    ("steps to relearn", "relearn.steps", "{:.0f}", "retrained"),
    ("samples per class to relearn by prototypes", "relearn.prototype_samples", "{:.0f}", "retrained"),
    ("times faster than retraining", "cost.speedup_vs_retrain", "{:,.0f}", "high"),
    ("peak memory of the fit, MB", "cost.peak_rss_mb", "{:,.0f}", "low"),
    ("seconds to evaluate", "cost.evaluate_s", "{:.1f}", "low"),
)
ENSEMBLE = (
    ("U-LiRA, AUC", "ensembles.ulira.auc", "{:.3f}", "0.5"),
    ("U-LiRA, TPR at 1 % FPR", "ensembles.ulira.tpr_at_fpr_1pct", "{:.1%}", "1 %"),
    ("U-LiRA, TPR at 0.1 % FPR", "ensembles.ulira.tpr_at_fpr_01pct", "{:.2%}", "0.1 %"),
    ("RMIA, AUC", "ensembles.rmia.auc", "{:.3f}", "0.5"),
    ("RMIA, TPR at 1 % FPR", "ensembles.rmia.tpr_at_fpr_1pct", "{:.1%}", "1 %"),
    ("KLoM, median row", "ensembles.klom.p50", "{:.2f}", "retrained"),
    ("KLoM, 95th percentile", "ensembles.klom.p95", "{:.2f}", "retrained"),
    ("KLoM, 99th percentile", "ensembles.klom.p99", "{:.2f}", "retrained"),
    ("forgetting score (NeurIPS 2023)", "ensembles.forgetting_score", "{:.3f}", "retrained, at most 1"),
)
COLUMN_HELP = {
    "retain": "accuracy on the training rows that stay",
    "forget": "accuracy on the training rows to be forgotten",
    "test ret.": "accuracy on test rows of classes that stay",
    "test forg.": "accuracy on test rows of classes that go",
    "KL": "KL divergence from the retrained model on forgotten rows, in nats; 0 is equal",
    "agree": "forgotten rows on which method and retrained model predict the same class",
    "loss AUC": "attack that tells forgotten from unseen rows by their loss; near the retrained model's value is good",
    "MIA": "forgotten rows that an attack on entropies calls training rows; near the retrained model's value is good",
    "probe z'": "a fresh linear probe that looks for the forgotten rows in what the head reads; 50 % is a guess",
    "fit": "seconds to fit the method, without evaluation",
    "utility": "is it as accurate as retrained models on what was kept",
    "shown": "erasure claims that were shown; the others were refuted, or nobody can tell from this run",
}


@dataclass(frozen=True)
class Section:
    """A heading, how to read what follows in plain words, panels, and panels that are folded away under a label."""

    title: str
    reading: str
    panels: Sequence[Panel]
    more: Sequence[Panel] = field(default=())
    more_label: str = ""


def render(
    summary: Mapping[str, Any], evidence: Evidence, drawn: Sequence[Section] | None = None, sides: str = ""
) -> str:
    """The whole page. `evidence.logits` are keyed as the table's rows, in its order. `drawn`: the page's `sections`,
    for whoever drew them already. `sides`: HTML that shows the original beside the method the page is about."""
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
        not_claimed=wording.not_claimed(summary),
        table=main_table(summary),
        column_help={name: COLUMN_HELP[name] for name in main_table(summary)["head"] if name in COLUMN_HELP},
        more=more_table(summary),
        attacks=ensemble_table(summary),
        settings=wording.settings_lines(summary),
        seeds=wording.seed_count(summary),
        sections=[section for section in drawn if section.panels],
        drawn=evidence.drawn,
        sides=sides,
    )


def environment() -> Environment:
    """Where the pages' templates are; whatever is put into one is text, not markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("expunge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def ladder(verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """Utility and the four claims: each its outcome, what it says, and why where it was not shown."""
    against = "retrained models" if verdict["utility_against"] == "retrained" else "the original"
    steps = [
        {"name": "utility", "state": verdict["utility"], "claim": wording.UTILITY_WORDS.format(against), "why": ""}
    ]
    for name, state in verdict["claims"].items():
        why = "" if state == SHOWN else verdict["reasons"][name]
        steps.append({"name": name, "state": state, "claim": wording.CLAIMS[name], "why": why})
    return steps


def main_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Head and rows of cells (value, spread) of the result table; columns without any value are left out."""
    blocks = list(candidates(summary))
    used = [c for c in COLUMNS if any(lookup(block, c[1]) is not None for _, block in blocks)]
    body = []
    for name, block in blocks:
        cells = [_cell(block, path, form) for _, path, form in used]
        body.append({"name": name, "control": name == CONTROL, "cells": cells, "claims": claims_cells(block)})
    return {"head": [*(heading for heading, _, _ in used), "utility", "shown"], "rows": body}


def more_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that the result table leaves out."""
    return _upright(MORE, dict(candidates(summary)))


def ensemble_table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The attacks over many models, for the candidates that they cover; no rows where none were trained."""
    return _upright(ENSEMBLE, {name: block for name, block in candidates(summary) if block.get("ensembles")})


def _upright(metrics: Sequence[tuple[str, str, str, str]], blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One row per metric that somebody has, a column per candidate, and where a good value lies."""
    body = [
        {"label": label, "target": target, "cells": [_cell(block, path, form) for block in blocks.values()]}
        for label, path, form, target in metrics
        if any(lookup(block, path) is not None for block in blocks.values())
    ]
    return {"head": list(blocks), "rows": body}


def _cell(block: Mapping[str, Any], path: str, form: str) -> dict[str, str]:
    value, spread = lookup(block, path), lookup(block, f"spread.{path}")
    return {
        "value": "–" if value is None else form.format(value),
        "spread": "" if spread is None or value is None else form.format(spread),
    }


def sections(summary: Mapping[str, Any], e: Evidence) -> list[Section]:
    """Every plot of the page, with one or two sentences on how to read it."""
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
            plots.histograms(e, others) if others else (),
            "The other methods",
        ),
        Section(
            "Attack by loss",
            "The attacker says that a row was in the training set when its loss is small. Curves near the "
            "retrained model's reveal no more than it does; the left edge shows attacks that accuse rarely and surely.",
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
            "them no better and no worse than in a retrained model's features, which is seldom a guess.",
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
            "What forgetting cost the classes that stay, against the original: plus is recall lost, minus recall won. "
            "The retrained column shows what is unavoidable or chance.",
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
