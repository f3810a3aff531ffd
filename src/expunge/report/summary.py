"""reports/summary.json: the whole result of a run as data for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.evaluation.claims import may_serve, shown_claims, useful, verdict_of
from expunge.evaluation.criteria import EXACT, OUTPUTS

SCHEMA = 2
CONTROL = "logit-mask"


def build_summary(
    request: Mapping[str, Any],
    model: Mapping[str, Any],
    references: Mapping[str, Any],
    evaluations: Mapping[str, dict[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    clean_references: bool,
    shadow: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Join the results of the stages, judge every method, and return the summary.

    `references` holds the block of the original and one per retrained model; `evaluations` and `costs` are keyed by
    method. The control is judged like the methods, shown among the references, and never selected. `clean_references`:
    whether the retrained models' backbones never saw the forgotten rows. `shadow` is the result of the shadow stage:
    numbers of a method go into its block, the rest under "shadow" of the summary. "metrics" of the summary describes
    metrics of other packages, whose values are below "plugins" of every block; both are absent if there are none.
    "drawn" of the summary says of which parts only some rows were measured.
    """
    many = dict(shadow or {"kind": "off"})
    attacked, floors = many.pop("methods", {}), many.pop("references", {})
    original, retrained = references["original"], references["retrained"]
    controls, count = references.get("controls", {}), len(retrained)
    methods = {
        name: {
            **_plain(block),
            "cost": dict(costs[name]),
            "verdict": verdict_of(block, controls, count, clean_references, block.get("exact")),
        }
        for name, block in evaluations.items()
    }
    for name, block in attacked.items():
        methods[name]["shadow"] = block
    return {
        "schema": SCHEMA,
        "request": dict(request),
        "model": dict(model),
        "shadow": many,
        **({"metrics": described} if (described := dict(references.get("metrics", {}))) else {}),
        "references": {
            "original": {
                **_plain(original),
                "verdict": verdict_of(original, controls, count, clean_references),
                "shadow": floors.get("original"),
            },
            "retrained": {
                **mean_of([_plain(block) for block in retrained]),
                "seeds": len(retrained),
                "spread": spread_of([_plain(block) for block in retrained]),
                "verdict": verdict_of(
                    retrained[0], controls, count - 1, clean_references, exact_of_retrained(clean_references)
                ),
                "shadow": floors.get("retrained"),
            }
            if retrained
            else None,
            "logit_mask": methods.get(CONTROL),
        },
        "methods": methods,
        "selected": select(methods),
        **({"drawn": drawn} if (drawn := dict(references.get("drawn", {}))) else {}),
    }


def _plain(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block of metrics without the inputs of its verdict, which the verdict itself contains."""
    return {key: value for key, value in block.items() if key != "judged"}


def exact_of_retrained(clean: bool) -> dict[str, Any]:
    """Return whether the claim `exact` holds for a retrained model, and why.

    It holds unless the model's backbone is the original's, which saw the rows.
    """
    if clean:
        return {"holds": True, "why": "trained without these rows, from weights that never saw them"}
    return {"holds": None, "why": "its backbone is the original's, which saw the rows; only its head was trained again"}


def mean_of(blocks: Sequence[Any]) -> Any:
    """Return the mean of equally shaped blocks, number by number; other values are those of the first block."""
    return _join(blocks, lambda values: float(np.mean(values)))


def spread_of(blocks: Sequence[Any]) -> Any:
    """Return the standard deviation over seeds (ddof 1), number by number; None with one seed."""
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
    """Return the method that may serve, or None.

    Its utility is kept and the claim `outputs` is shown, or it is exact and did not lose utility.

    Among several, exact methods come before statistical ones, then more claims, then the smallest share of the excess
    on the rows that the verdict does not use, then the smallest KL. A control is never selected, whatever the name of
    its entry.
    """
    reached = {
        name: m
        for name, m in methods.items()
        if name != CONTROL
        and m["verdict"]["control"] is None
        and useful(shown_claims(m["verdict"]), m["verdict"]["utility"])
        and may_serve(shown_claims(m["verdict"]), OUTPUTS)
    }
    if not reached:
        return None

    def rank(name: str) -> tuple[bool, int, float, float, str]:
        verdict, kl = reached[name]["verdict"], reached[name]["divergence"]["forget"]["kl"]
        shown, choice = shown_claims(verdict), verdict["choice"]
        far = float("inf")
        return (EXACT not in shown, -len(shown), far if choice is None else choice, far if kl is None else kl, name)

    return min(reached, key=rank)
