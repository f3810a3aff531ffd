"""The meaning of the summary in words: claims, gates, and what a reader must not conclude."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evaluation.claims import shown_claims
from expunge.evaluation.criteria import (
    BACKBONE,
    CANNOT_TELL,
    EXACT,
    FEATURES,
    LEFT,
    OUTPUTS,
    OVERSHOT,
    REFUTED,
    SHOWN,
)
from expunge.evaluation.gates import MAX_STAGES, stage_path
from expunge.report.metrics import lookup, name_of, some
from expunge.report.request_words import corrects
from expunge.report.summary import CONTROL
from expunge.report.tables import unproven

CLAIMS = {
    OUTPUTS: "The model answers on forgotten rows as retrained models do, within the margins.",
    FEATURES: "The features that its head reads reveal no more about the forgotten rows than a retrained model's do.",
    BACKBONE: "The network's own features reveal no more about the forgotten rows than a retrained model's do.",
    EXACT: "By construction, the weights are a function of retained rows, public weights and the seed alone.",
}
_PATH = re.compile(r"\(([a-z][\w.]+)\)")
LOSS_TOLD = 0.02  # a class that lost at least this much accuracy is named beside the verdict
UTILITY_WORDS = "Accuracy on retained and test rows is at most half a point below that of {}."
# Metrics of the verdict and of a review, in the order in which they are shown.
GATES = some(
    "accuracy.retain",
    "accuracy.forget",
    "accuracy.test_retain",
    "accuracy.test_forget",
    "divergence.forget.kl",
    "divergence.forget.agreement",
    "divergence.forget.kl_others",
    "divergence.forget.agreement_others",
    "membership.cmia",
    "membership.margin_excess",
    "membership.loss_auc",
    "membership.mia_lr_member",
    "membership.canary_auc",
    "representation.probe_z_prime",
    "representation.probe_z",
    *(stage_path(i) for i in range(1, MAX_STAGES + 1)),
    "representation.knn_z_prime",
    "representation.knn_z",
    "representation.alignment_z_prime",
    "representation.alignment_z",
)


def seed_count(summary: Mapping[str, Any]) -> int:
    """Return the number of retrained models; 0 without a reference."""
    return int(lookup(summary, "references.retrained.seeds") or 0)


def focus(summary: Mapping[str, Any]) -> str:
    """Return the method that the report shows in detail.

    It is the selected one, else the one with the smallest KL from the retrained model, else the control.
    """
    if summary["selected"] is not None:
        return str(summary["selected"])
    others = [name for name in summary["methods"] if name != CONTROL]

    def distance(name: str) -> float:
        kl = lookup(summary["methods"][name], "divergence.forget.kl")
        return float("inf") if kl is None else float(kl)

    return min(others, key=distance, default=CONTROL)


def claim(verdict: Mapping[str, Any]) -> str:
    """Return what was shown, one sentence per claim."""
    shown = [CLAIMS[name] for name in shown_claims(verdict)]
    return " ".join(shown) or "No erasure claim was shown."


def request_words(summary: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Return the request in words, without ids: the classes if whole classes are forgotten, else a count of rows."""
    request = summary["request"]
    rows = f"{request['forget_rows']:,} of {request['forget_rows'] + request['retain_rows']:,} training rows"
    if corrects(request):
        return f"the labels of {rows}"
    whole = [classes[c] for c in request["whole_classes"]]
    if whole and request["classes"] == request["whole_classes"]:
        return f"{'class' if len(whole) == 1 else 'classes'} {', '.join(whole)}: {rows}"
    return f"{rows}, chosen by {request['selector']}"


def not_claimed(summary: Mapping[str, Any]) -> list[str]:
    """Return what the report does not claim about the method of `focus`."""
    verdict = summary["methods"][focus(summary)]["verdict"]
    lines = [
        f"{name}: {state}, since {metrics_named(verdict['reasons'][name])}."
        for name, state in verdict["claims"].items()
        if state != SHOWN
    ]
    lines += copies_left(summary["request"]) + fitted_once(summary["methods"][focus(summary)])
    return [*lines, *unproven(summary), "Only the attacks listed here were run; a stronger one may find more."]


def attention(summary: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Return what stands beside the verdict: whether hiding alone reaches it, and a class that lost accuracy."""
    name = focus(summary)
    block, control = summary["methods"][name], summary["references"]["logit_mask"]
    lines = []
    if control is not None and control.get("verdict") and name != CONTROL:
        own, hidden = shown_claims(block["verdict"]), shown_claims(control["verdict"])
        if own and set(own) <= set(hidden):
            lines.append(f"The control {CONTROL}, which only hides the class, is shown the same: {', '.join(hidden)}.")
    worst = lookup(block, "per_class.worst_class")
    if worst is not None and (lost := block["per_class"]["damage"][worst]) >= LOSS_TOLD:
        lines.append(f"Class {classes[worst]} lost {100 * lost:.1f} points of accuracy on retained test rows.")
    return lines


def recommendation(summary: Mapping[str, Any]) -> str:
    """Return what to do next with the outcome of a run."""
    if summary["references"]["original"].get("canaries") is not None:
        return "This run is an audit with planted canaries, and nothing of it is registered."
    if summary["selected"] is not None:
        return (
            "Review the registered version beside the champion (expunge review), and promote it with a reason if its "
            "claims suffice (expunge promote)."
        )
    if seed_count(summary) == 0:
        return "Retrain models to compare with (reference: retrain in params.yaml), and run the pipeline again."
    return (
        "Read why each method failed below. Retraining without the rows always answers the request; other methods or "
        "settings may answer it for less."
    )


def metrics_named(reason: str) -> str:
    """Return a reason of the verdict with the paths of metrics, which stand in parentheses, replaced by their names."""
    return _PATH.sub(lambda found: f"({name_of(found[1])})", reason)


def escaped(text: str) -> str:
    """Escape text for Markdown, so that a class name contains no markup and no line break."""
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text)


def fitted_once(block: Mapping[str, Any]) -> list[str]:
    """Return a warning if a method that depends on a seed was fitted with only one.

    Its intervals then lack the variance of the fit.
    """
    if block["settings"].get("fit_seeds") != 1:
        return []
    return ["It was fitted with one seed, so the intervals do not cover what another fit seed would give (fit_seeds)."]


def copies_left(request: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each kind of copy of forgotten rows that is among the rows of the retrained models."""
    left = {
        "an exact copy": int(request.get("duplicates_left_in_retain") or 0),
        "a near-duplicate": int((request.get("near_duplicates") or {}).get("left_in_retain") or 0),
    }
    return [
        f"{count:,} of the forgotten rows have {what} among the retained rows; training again does not forget these."
        for what, count in left.items()
        if count
    ]


def gate_rows(verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the gates as text: claim, metric, value, target, the share of the excess that is left, and the outcome."""
    return [
        {
            "claim": gate["claim"],
            "gate": name_of(gate["path"]),
            "value": number(gate["value"]),
            "target": number(gate["target"]),
            "share": share_words(gate),
            "outcome": gate_outcome(gate),
        }
        for gate in verdict["gates"]
    ]


def share_words(gate: Mapping[str, Any]) -> str:
    """Return the share of the original's excess that is left, with its interval. Below 0 the method overshot."""
    if gate["share"] is None:
        return "–"
    low, high = gate["interval"]
    return f"{gate['share']:.0%} [{low:.0%}, {high:.0%}]"


def gate_outcome(gate: Mapping[str, Any]) -> str:
    """Return the outcome of a gate: passed, refuted, open, or that it cannot tell and how many rows it would need."""
    if gate["refuted"]:
        return REFUTED
    if gate["power"]:
        return "passed" if gate["passed"] else "open: the interval reaches beyond the margin"
    needed = gate["rows_needed"]
    more = f"; about {needed:,} such rows are needed" if needed else ""
    return f"{CANNOT_TELL}: {gate['reason']}{more}"


def margin_words(gate: Mapping[str, Any]) -> str:
    """Return whether the share of the excess that is left lies "inside" or "outside" its margin; "–" without a share.

    The share itself counts here. The outcome of the gate depends on its whole interval.
    """
    if gate["share"] is None:
        return "–"
    return "inside" if -OVERSHOT <= gate["share"] <= LEFT else "outside"


def rows_it_takes(verdict: Mapping[str, Any]) -> str:
    """Return how many forgotten rows the most sensitive gate of the outputs would need; empty if a gate has power."""
    gates = [g for g in verdict["gates"] if g["claim"] == OUTPUTS]
    needed = [g["rows_needed"] for g in gates if g["rows_needed"]]
    if not gates or any(g["power"] for g in gates):
        return ""
    if not needed:
        return "With these retrained models, no number of such rows would tell; more retrained models may."
    return (
        f"About {min(needed):,} forgotten rows like these would be needed to tell what the outputs still say of them."
    )


def settings_lines(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the settings of each method and how they were chosen."""
    lines = []
    for method, block in summary["methods"].items():
        given, chosen = block["settings"]["params"], block["settings"]["chosen"]
        fixed = {key: value for key, value in given.items() if key not in ("choose", "method")}
        shown = {**fixed, **(chosen["taken"] if chosen else {})}
        settings = ", ".join(f"{key} {value}" for key, value in shown.items()) or "defaults of the library"
        lines.append({"method": method, "settings": settings, "how": how_chosen(chosen)})
    return lines


def how_chosen(chosen: Mapping[str, Any] | None) -> str:
    """Return how a method's settings were chosen, with the results of every candidate on the held-out rows."""
    if chosen is None:
        return "set in params.yaml"
    if not chosen["candidates"]:
        return f"the first listed in params.yaml, because {chosen['why_first']}"
    fared = []
    for c in chosen["candidates"]:
        name = ", ".join(f"{key} {value}" for key, value in c["settings"].items())
        if c["refused"] is None:
            name += f": {c['forgotten_left']:.2%} left, {c['retained_lost']:.2%} lost"
        fared.append(name + (" (refused)" if c["refused"] else ""))
    return "chosen on held-out training rows: " + "; ".join(fared)


def number(value: float | None) -> str:
    """Format a number with three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"
