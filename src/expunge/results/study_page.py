"""The results of the verdict's calibration, as counts and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evaluation.claims import fails
from expunge.evaluation.criteria import BACKBONE, FEATURES, OUTPUTS, REFUTED, SHOWN
from expunge.results.study_trials import NEGATIVE, RETRAINED, SIZES

CLAIMS = (OUTPUTS, FEATURES, BACKBONE)


def has_power(gates: Sequence[Mapping[str, Any]], claim: str) -> bool:
    """Whether at least one gate of the claim has power."""
    return any(g["power"] and g["claim"] == claim for g in gates)


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the outcomes per size, candidate and claim, and the trials with power per size and claim.

    A trial has power for a claim if a gate of the claim has power and every control of the run fails such a gate. Only
    then can the claim be shown.
    """
    outcomes: Counter[tuple[str, str, str, str]] = Counter()
    powered: Counter[tuple[str, str]] = Counter()
    shown_powered: Counter[tuple[str, str]] = Counter()
    trials: dict[str, set[int]] = {size: set() for size in SIZES}
    controls: dict[tuple[int, str, str], bool] = {}
    for r in records:
        trials[r["size"]].add(r["trial"])
        for claim in CLAIMS:
            outcomes[r["size"], r["candidate"], claim, r["claims"][claim]] += 1
            if r["candidate"] in ("original", "logit mask", "lookup list"):
                key = (r["trial"], r["size"], claim)
                controls[key] = controls.get(key, True) and fails(claim, r["gates"])
    for r in records:
        if r["candidate"] != RETRAINED:
            continue
        for claim in CLAIMS:
            if has_power(r["gates"], claim) and controls[r["trial"], r["size"], claim]:
                powered[r["size"], claim] += 1
                shown_powered[r["size"], claim] += r["claims"][claim] == SHOWN
    return {
        "trials": {size: len(found) for size, found in trials.items()},
        "outcomes": {"|".join(key): count for key, count in sorted(outcomes.items())},
        "powered": {"|".join(key): count for key, count in sorted(powered.items())},
        "shown_powered": {"|".join(key): count for key, count in sorted(shown_powered.items())},
        "gates": gate_power(records),
    }


def gate_power(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Share of trials in which each gate has power, by path and size."""
    found: dict[str, dict[str, list[bool]]] = {}
    for r in records:
        if r["candidate"] == RETRAINED:
            for gate in r["gates"]:
                found.setdefault(gate["path"], {}).setdefault(r["size"], []).append(gate["power"])
    return {path: {size: sum(v) / len(v) for size, v in by.items()} for path, by in found.items()}


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown page: per data set the outcomes of negative controls and the retrained model, and the gates' power."""
    lines = ["<!-- Written by python -m expunge.results.verdict_study. -->"]
    for name, s in found.items():
        counts = ", ".join(f"{size}: {n}" for size, n in s["trials"].items() if n)
        lines += ["", f"### {name}", "", f"Trials per size of request: {counts}.", ""]
        lines += [*_outcome_table(s), "", *_retrained_table(s), "", *_gate_table(s)]
    return "\n".join(lines) + "\n"


def _count(s: Mapping[str, Any], size: str, candidate: str, claim: str, outcome: str) -> int:
    return int(s["outcomes"].get("|".join((size, candidate, claim, outcome)), 0))


def _outcome_table(s: Mapping[str, Any]) -> list[str]:
    sizes = [size for size in SIZES if s["trials"][size]]
    lines = ["Outputs of models that forgot nothing: shown / refuted, of all trials.", ""]
    lines += ["| | " + " | ".join(sizes) + " |", "|---|" + "---|" * len(sizes)]
    for candidate in NEGATIVE:
        cells = []
        for size in sizes:
            shown, refuted = (_count(s, size, candidate, OUTPUTS, o) for o in (SHOWN, REFUTED))
            known = any(key.startswith(f"{size}|{candidate}|") for key in s["outcomes"])
            cells.append(f"{shown} / {refuted}" if known else "–")
        lines.append(f"| {candidate} | " + " | ".join(cells) + " |")
    wrong = sum(_count(s, z, c, k, SHOWN) for z in sizes for c in NEGATIVE for k in (FEATURES, BACKBONE))
    return [*lines, "", f"Claims about features or backbone shown for any of them: {wrong}."]


def _retrained_table(s: Mapping[str, Any]) -> list[str]:
    sizes = [size for size in SIZES if s["trials"][size]]
    lines = ["An independent retrained model.", ""]
    lines += ["| | " + " | ".join(sizes) + " |", "|---|" + "---|" * len(sizes)]
    for claim in (OUTPUTS, FEATURES):  # the claim on the backbone needs probes at every stage, which the study lacks
        cells = []
        for size in sizes:
            key = f"{size}|{claim}"
            powered, shown = s["powered"].get(key, 0), s["shown_powered"].get(key, 0)
            refuted = _count(s, size, RETRAINED, claim, REFUTED)
            cells.append(f"{shown} of {powered}; {refuted}")
        lines.append(f"| {claim}: shown of trials with power; refuted | " + " | ".join(cells) + " |")
    return lines


def _gate_table(s: Mapping[str, Any]) -> list[str]:
    sizes = [size for size in SIZES if s["trials"][size]]
    lines = ["Share of trials in which a measure has power.", ""]
    lines += ["| | " + " | ".join(sizes) + " |", "|---|" + "---|" * len(sizes)]
    for path, by in s["gates"].items():
        lines.append(f"| `{path}` | " + " | ".join(f"{by[z]:.0%}" if z in by else "–" for z in sizes) + " |")
    return lines
