"""The result table for the terminal and for Markdown, and the sentences around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from expunge.evaluation.claims import shown_words
from expunge.evaluation.criteria import CLAIMS, MIN_REFERENCES
from expunge.report.metrics import Metric, lookup, measured, of_packages, some
from expunge.report.summary import CONTROL

COLUMNS = some(
    "accuracy.retain",
    "accuracy.forget",
    "accuracy.test_retain",
    "accuracy.test_forget",
    "divergence.forget.kl",
    "divergence.forget.agreement",
    "membership.loss_auc",
    "membership.mia_lr_member",
    "representation.probe_z_prime",
    "cost.fit_s",
)
# Attacks with shadow models; their columns have values if the stage `shadow` ran them.
MANY_MODELS = some(
    "shadow.ulira.auc",
    "shadow.ulira.tpr_at_fpr_1pct",
    "shadow.ulira.tpr_at_fpr_01pct",
    "shadow.rmia.auc",
    "shadow.klom.p50",
    "shadow.klom.p95",
    "shadow.forgetting_score",
)
# These columns have values if canaries were planted.
CANARIES = some(
    "membership.canary_auc",
    "canaries.exposure",
    "canaries.p_remembered",
    "canaries.p_overshot",
)
STILL_STORED = "The rows are still in the dataset, the feature store and their caches until they are deleted there."
# The parts of which not all rows may have been measured.
DRAWN = {
    "forget": "forgotten rows",
    "retain": "retained training rows",
    "test_forget": "test rows of forgotten classes",
    "test_retain": "retained test rows",
    "unseen": "rows that no model is trained on",
}


def candidates(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the block of each candidate, in the order of the table.

    The candidates are the original, the retrained model, the control and every method. Those that the run does not
    have are left out.
    """
    yield "original", summary["references"]["original"]
    if summary["references"]["retrained"] is not None:
        yield "retrained", summary["references"]["retrained"]
    if summary["references"]["logit_mask"] is not None:
        yield CONTROL, summary["references"]["logit_mask"]
    yield from ((name, block) for name, block in summary["methods"].items() if name != CONTROL)


def columns(summary: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics of the result table that at least one candidate has, those of other packages last."""
    return measured((*COLUMNS, *of_packages(summary)), [block for _, block in candidates(summary)])


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the table as text: a heading row, then one row per candidate. A missing value is a dash."""
    used = columns(summary)
    table = [["", *(metric.heading for metric in used), "utility", "shown"]]
    for name, block in candidates(summary):
        cells = [metric.text(block) for metric in used]
        label = f"{name} (control)" if name == CONTROL else name
        table.append([label, *cells, *claims_cells(block)])
    return table


def claims_cells(block: Mapping[str, Any]) -> list[str]:
    """Return the cells of utility and of the erasure claims that were shown; empty if there is no verdict."""
    verdict = block.get("verdict")
    return ["", ""] if verdict is None else [str(verdict["utility"]), shown_words(verdict)]


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """Return the verdict in one line: utility, then every claim with its outcome."""
    claims = "; ".join(f"{claim} {verdict['claims'][claim]}" for claim in CLAIMS)
    return f"utility {verdict['utility']}; erasure: {claims}"


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the text of `reports/results.md`: the outcome, the table, and what the result does not prove."""
    head, *body = rows(summary)
    refused = "\n".join(f"- {name} was refused: {why}" for name, why in summary.get("refused", {}).items())
    why = reasons(summary)
    missing = markdown_table(["method", "why not"], why) if why else ""
    result = [f"# Result\n\n{headline(summary)}", markdown_table(head, body), missing]
    parts = [*result, refused, canaries(summary), many_models(summary), not_proven(summary)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of a heading row and rows with as many cells."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def canaries_reading(summary: Mapping[str, Any]) -> str:
    """Return how to read the table of canaries; empty if none were planted."""
    counts = summary["references"]["original"].get("canaries")
    if counts is None:
        return ""
    return (
        f"Before training, {counts['planted']:,} copies of training rows were planted with wrong labels; "
        f"{counts['others']:,} more were drawn with them, but left out by the toss of a coin. A model that never saw "
        "the planted copies cannot tell the two apart, so these probabilities hold without any retrained model. The "
        "exposure of a planted copy is log2 of the number of candidates minus log2 of its rank among them by "
        f"likelihood, at most {counts['exposure_max']:.1f} bits."
    )


def canaries(summary: Mapping[str, Any]) -> str:
    """Return the audit by canaries as a section with a table; empty if none were planted."""
    reading = canaries_reading(summary)
    if not reading:
        return ""
    body = [[name, *(metric.text(block) for metric in CANARIES)] for name, block in candidates(summary)]
    table = markdown_table(["", *(metric.heading for metric in CANARIES)], body)
    return "\n\n".join(["## Canaries", reading, table])


def many_models(summary: Mapping[str, Any]) -> str:
    """Return the attacks with shadow models as a section: how to read them, and a table. Empty if they are off."""
    state = summary.get("shadow", {"kind": "off"})
    if state["kind"] == "off":
        return ""
    refused = f"Refused: {state['refused_because']}." if "refused_because" in state else ""
    if state["kind"] == "refused":
        return f"## Attacks with many models\n\n{refused}"
    models, rows = state["models"], state["rows"]["forget"]
    what = {"heads": "heads on cached features", "networks": "whole networks"}[state["kind"]]
    reading = (
        f"{models['trained']} {what} learned from the forgotten rows and unlearned them; {models['retrained']} never "
        f"had them. Each of {rows:,} rows was in {models['had_each_row']} of the former. The attacks are valid because "
        f"{state['valid_because']}. The target is the row of the retrained models."
    )
    headings = [metric.heading for metric in MANY_MODELS]
    lines = ["| | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for name, block in candidates(summary):
        if measured(MANY_MODELS, [block]):
            lines.append(f"| {name} | " + " | ".join(metric.text(block) for metric in MANY_MODELS) + " |")
    left_out = "\n".join(f"- {name} is not covered: {why}." for name, why in state["not_covered"].items())
    parts = ["## Attacks with many models", reading, refused, "\n".join(lines), left_out]
    return "\n\n".join(part for part in parts if part)


def headline(summary: Mapping[str, Any]) -> str:
    """Return a few sentences on the method that would be registered and its verdict, or that there is none."""
    request = summary["request"]
    forget, total = request["forget_rows"], request["forget_rows"] + request["retain_rows"]
    asked = f"{forget:,} of {total:,} training rows were to be forgotten."
    selected = summary["selected"]
    if selected is None:
        nothing = "Nothing was shown of any method, so no model is registered."
        return f"{asked} {nothing} {takes(summary)}".rstrip()
    verdict = summary["methods"][selected]["verdict"]
    return f"{asked} The selected method is **{selected}**: {verdict_line(verdict)}. {takes(summary)}".rstrip()


def takes(summary: Mapping[str, Any]) -> str:
    """Return what is needed to show more if too few models were retrained; else an empty string."""
    count = int(lookup(summary, "references.retrained.seeds") or 0)
    if count >= MIN_REFERENCES:
        return ""
    few = f"With {count} retrained model{'s' * (count != 1)}," if count else "Since nothing was retrained,"
    return (
        f"{few} no erasure claim except exact can be shown; at least {MIN_REFERENCES} retrained models are needed "
        "(reference: retrain, retrain.seeds). "
    )


def reasons(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each method with the reason why it is not registered; empty if one method is selected."""
    if summary["selected"] is not None:
        return []
    return [(name, str(block["verdict"]["why"])) for name, block in summary["methods"].items()]


def failures(summary: Mapping[str, Any]) -> str:
    """Return for every method why it failed, in one line."""
    return " ".join(f"{name}: {block['verdict']['why']}" for name, block in summary["methods"].items())


def unproven(summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader must not conclude, one or two sentences each; the last is STILL_STORED."""
    model = summary["model"]
    lines = []
    if model["saw_forget_data"]:
        lines.append(
            "The original's backbone was trained on the forgotten rows. If a method leaves it unchanged, its "
            "features z still carry them, whatever the head answers."
        )
    else:
        lines.append(
            "The backbone is said never to have seen the forgotten rows. This is what model.saw_forget_data says, and "
            "was not measured."
        )
    if model.get("public_up_to"):
        lines.append(
            f"The layers up to {model['public_up_to']} are said to be public and never to have seen the forgotten "
            "rows. This is what model.weights says, and was not measured."
        )
    if summary["references"]["retrained"] is None:
        lines.append("Nothing was retrained, so nothing here is compared with a model that never saw the rows.")
    if drawn := summary.get("drawn"):
        parts = ", ".join(f"{n['measured']:,} of {n['rows']:,} {DRAWN[name]}" for name, n in drawn.items())
        lines.append(f"Not every row was measured. Drawn at random were {parts}.")
    return [*lines, STILL_STORED]


def not_proven(summary: Mapping[str, Any]) -> str:
    """Return what a reader must not conclude as a Markdown list below a heading line."""
    return "\n".join(["What this does not prove:", *(f"- {line}" for line in unproven(summary))])
