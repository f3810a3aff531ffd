"""reports/summary.json: the whole result of a run as data that another program can check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.config import Verdict
from expunge.evaluation.verdict import verdict

SCHEMA = 1
CONTROL = "logit-mask"
LEVELS = ("none", "a", "b", "c", "d")


def build_summary(
    request: Mapping[str, Any],
    model: Mapping[str, Any],
    references: Mapping[str, Any],
    evaluations: Mapping[str, dict[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    margins: Verdict,
) -> dict[str, Any]:
    """Join what the stages wrote and judge every method.

    `references` holds `original`, `retrained` (None when skipped) and `noise_floor`; `evaluations` and `costs` are keyed by
    method. The control is judged like the others, shown among the references, and never selected.
    """
    judged = {}
    for name, evaluation in evaluations.items():
        level = verdict(evaluation, references, request, margins)
        judged[name] = {**evaluation, "cost": dict(costs[name]), "verdict": level}
    return {
        "schema": SCHEMA,
        "request": dict(request),
        "model": dict(model),
        "references": {"original": references["original"], "retrained": references["retrained"], "logit_mask": judged[CONTROL]},
        "noise_floor": references.get("noise_floor"),
        "methods": judged,
        "selected": select(judged),
    }


def select(methods: Mapping[str, Any]) -> str | None:
    """The method of the highest claim level; among equals the nearest to the retrained model on forgotten rows.

    The control never counts: it hides a class and removes nothing.
    """
    reached = {name: m for name, m in methods.items() if name != CONTROL and m["verdict"]["level"] != "none"}
    if not reached:
        return None

    def rank(name: str) -> tuple[int, float, str]:
        method = reached[name]
        kl = (method["divergence"] or {}).get("forget", {}).get("kl")
        return -LEVELS.index(method["verdict"]["level"]), float("inf") if kl is None else kl, name

    return min(reached, key=rank)
