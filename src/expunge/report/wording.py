"""What the summary means, in plain words: levels, gates, and what a reader must not conclude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.report.summary import CONTROL, LEVELS
from expunge.report.tables import lookup, not_proven

CLAIMS = {
    "none": "Not even its accuracies are those of a retrained model.",
    "a": "Its accuracies are those of a retrained model, within the margins.",
    "b": "Its predictions are those of a retrained model, within the margins.",
    "c": "The features z' that its head reads say no more about the forgotten rows than a retrained model's.",
    "d": "Its backbone's own features z say no more about the forgotten rows than a retrained model's.",
}
WITHOUT_REFERENCE = {
    "none": "Not even its accuracies are as they should be after forgetting.",
    "a": "Its accuracy on what was kept is that of the original; forgotten classes, if any, are no longer named.",
}
GATES = {
    "accuracy.retain": "accuracy on retained rows",
    "accuracy.forget": "accuracy on forgotten rows",
    "accuracy.test_retain": "accuracy on retained test rows",
    "accuracy.test_forget": "accuracy on forgotten test rows",
    "divergence.forget.kl": "KL from the retrained model on forgotten rows, nats",
    "divergence.forget.agreement": "agreement with the retrained model on forgotten rows",
    "membership.loss_auc": "AUC of the loss attack",
    "membership.mia_lr_member": "share of forgotten rows called members (MIA-LR)",
    "representation.probe_z_prime": "linear probe on z'",
    "representation.probe_z": "linear probe on z",
}


def seed_count(summary: Mapping[str, Any]) -> int:
    """How many models were retrained; 0 without a reference."""
    return int(lookup(summary, "references.retrained.seeds") or 0)


def focus(summary: Mapping[str, Any]) -> str:
    """The method the report looks at closely: the selected one, else the nearest to the retrained model, else the
    control."""
    if summary["selected"] is not None:
        return str(summary["selected"])
    others = [name for name in summary["methods"] if name != CONTROL]

    def distance(name: str) -> float:
        kl = lookup(summary["methods"][name], "divergence.forget.kl")
        return float("inf") if kl is None else float(kl)

    return min(others, key=distance, default=CONTROL)


def claim(level: str, summary: Mapping[str, Any]) -> str:
    """What reaching `level` says."""
    return CLAIMS[level] if seed_count(summary) else WITHOUT_REFERENCE.get(level, CLAIMS[level])


def request_words(summary: Mapping[str, Any], classes: Sequence[str]) -> str:
    """What was asked for, without ids: the classes where whole classes go, else a count."""
    request = summary["request"]
    rows = f"{request['forget_rows']:,} of {request['forget_rows'] + request['retain_rows']:,} training rows"
    whole = [classes[c] for c in request["whole_classes"]]
    if whole and request["classes"] == request["whole_classes"]:
        return f"{'class' if len(whole) == 1 else 'classes'} {', '.join(whole)}: {rows}"
    return f"{rows}, chosen by {request['selector']}"


def why_indicative(summary: Mapping[str, Any]) -> str:
    """Why the verdict is not firm."""
    if seed_count(summary) == 0:
        return "Indicative: nothing was retrained, so there is no model to compare with."
    if seed_count(summary) == 1:
        return (
            "Indicative: there is one retrained model, so how much models differ from seed to seed is not known. "
            "The intervals come from resampling rows."
        )
    return "Indicative: for some gates only one retrained model has a value."


def not_claimed(summary: Mapping[str, Any]) -> list[str]:
    """What this report does not claim about the method it looks at."""
    level = summary["methods"][focus(summary)]["verdict"]["level"]
    above = LEVELS[LEVELS.index(level) + 1 :]
    lines = [f"Level{'s' * (len(above) > 1)} {', '.join(above)}."] if above else []
    lines += [line[2:].replace("`", "") for line in not_proven(summary).splitlines() if line.startswith("- ")]
    return [*lines, "The attacks are those listed here; a stronger one may find more."]


def failed_gates(verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """The failed gates as text: gate, value, what was wanted, and how far the interval lies beyond the margin."""
    return [
        {
            "level": gate["level"],
            "gate": GATES.get(gate["gate"], gate["gate"]),
            "value": number(gate["value"]),
            "wanted": wanted(gate, verdict["reference"] == "original only"),
            "excess": number(gate["excess"]),
            "margins": f"{gate['excess'] / gate['margin']:.1f}" if gate["excess"] and gate["margin"] else "–",
        }
        for gate in verdict["failed_gates"]
    ]


def wanted(gate: Mapping[str, Any], alone: bool) -> str:
    """The values that would have passed; `alone` without a retrained model, where every gate has one side."""
    target, margin = gate["target"], gate["margin"]
    path = gate["gate"]
    if path == "divergence.forget.kl" or (alone and path.endswith("forget")):
        return f"at most {number(target + margin)}"
    if path == "divergence.forget.agreement" or (alone and path.endswith("retain")):
        return f"at least {number(target - margin)}"
    return f"{number(target)} ± {margin:g}"


def settings_lines(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Per method its settings, and how they came about."""
    lines = []
    for method, block in summary["methods"].items():
        given, chosen = block["settings"]["params"], block["settings"]["chosen"]
        fixed = {key: value for key, value in given.items() if key not in ("choose", "method")}
        shown = {**fixed, **(chosen["taken"] if chosen else {})}
        settings = ", ".join(f"{key} {value}" for key, value in shown.items()) or "defaults of the library"
        lines.append({"method": method, "settings": settings, "how": how_chosen(chosen)})
    return lines


def how_chosen(chosen: Mapping[str, Any] | None) -> str:
    """How the settings of one method came about, with what every candidate did on the held-out rows."""
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
    """Three decimals, a dash for what does not exist."""
    return "–" if value is None else f"{value:.3f}"
