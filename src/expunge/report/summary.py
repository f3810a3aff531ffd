"""reports/summary.json: the whole result of a run as data that another program can check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.evaluation.margins import Margins
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
    margins: Margins,
    ensembles: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Join what the stages wrote and judge every method.

    `references` holds the block of the original and one per retrained model; `evaluations` and `costs` are keyed by
    method. The control is judged like the others, shown among the references, and never selected. `ensembles` is what
    the stage of that name wrote: its numbers go into the blocks they belong to, the rest stands beside them.
    """
    many = dict(ensembles or {"kind": "off"})
    attacked, floors = many.pop("methods", {}), many.pop("references", {})
    original, retrained = references["original"], references["retrained"]
    whole = bool(request["classes"]) and request["classes"] == request["whole_classes"]
    methods = {
        name: {**block, "cost": dict(costs[name]), "verdict": verdict(block, original, retrained, margins, whole)}
        for name, block in evaluations.items()
    }
    for name, block in attacked.items():
        methods[name]["ensembles"] = block
    return {
        "schema": SCHEMA,
        "request": dict(request),
        "model": dict(model),
        "ensembles": many,
        "references": {
            "original": {**original, "ensembles": floors.get("original")},
            "retrained": {
                **mean_of(retrained),
                "seeds": len(retrained),
                "spread": spread_of(retrained),
                "ensembles": floors.get("retrained"),
            }
            if retrained
            else None,
            "logit_mask": methods[CONTROL],
        },
        "methods": methods,
        "selected": select(methods),
    }


def mean_of(blocks: Sequence[Any]) -> Any:
    """The mean of equally shaped blocks, number by number; what is not a number comes from the first."""
    return _join(blocks, lambda values: float(np.mean(values)))


def spread_of(blocks: Sequence[Any]) -> Any:
    """The standard deviation over seeds (ddof 1), number by number; null with one seed."""
    return _join(blocks, lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _join(blocks: Sequence[Any], statistic: Any) -> Any:
    first = blocks[0]
    if isinstance(first, Mapping):
        return {key: _join([block[key] for block in blocks], statistic) for key in first}
    if isinstance(first, list):
        same = len({len(block) for block in blocks}) == 1
        return [_join(list(items), statistic) for items in zip(*blocks, strict=True)] if same else first
    known = [b for b in blocks if isinstance(b, int | float) and not isinstance(b, bool)]
    return statistic(known) if known else first


def select(methods: Mapping[str, Any]) -> str | None:
    """The method of the highest claim level; among equals the nearest to the retrained model on forgotten rows.

    The control never counts: it hides a class and removes nothing.
    """
    reached = {name: m for name, m in methods.items() if name != CONTROL and m["verdict"]["level"] != "none"}
    if not reached:
        return None

    def rank(name: str) -> tuple[int, float, str]:
        kl = reached[name]["divergence"]["forget"]["kl"]
        return -LEVELS.index(reached[name]["verdict"]["level"]), float("inf") if kl is None else kl, name

    return min(reached, key=rank)
