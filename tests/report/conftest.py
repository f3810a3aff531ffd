"""Fixtures for the tests of reports: a summary and evidence as the stages write them.

The data are Gaussian classes; metrics and verdicts are computed from them by the package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from expunge.evaluation.measuring import Outputs
from expunge.evaluation.shadow_scores import ShadowMargins, against, floor
from expunge.evaluation.suite import controls_of, evaluate
from expunge.report.evidence import Evidence, draw_view
from expunge.report.summary import build_summary

HOSTILE = ("$x^2$ | *b*", '"><img src=x onerror=y>', "<script>alert(1)</script>", "#010203", "a & b\n# c")
CLASSES, DIM, ROWS, GONE = 5, 6, 700, 2
Run = tuple[dict[str, Any], Evidence]
FARED = {"forgotten_left": 0.0, "retained_lost": 0.004, "retained_kl": 0.1, "refused": None}
REFUSED = {"forgotten_left": None, "retained_lost": None, "retained_kl": None, "refused": "it collapsed"}
SETTINGS: dict[str, dict[str, Any]] = {
    "logit-mask": {"params": {}, "chosen": None},
    "loft": {
        "params": {"choose": {"rank": [8, 1]}, "solver": "exact"},
        "chosen": {
            "taken": {"rank": 8},
            "candidates": [{"settings": {"rank": 8}, **FARED}, {"settings": {"rank": 1}, **REFUSED}],
        },
    },
    "keep": {
        "params": {"choose": {"a": [1]}},
        "chosen": {"taken": {"a": 1}, "candidates": [], "why_first": "the request names rows, not classes"},
    },
}


def many_models() -> dict[str, Any]:
    """Return reports/shadow.json of a run whose backbone never saw the rows, from random margins."""
    rng = np.random.default_rng(0)

    def side(shift: float) -> ShadowMargins:
        return ShadowMargins(rng.normal(shift, 1, (16, 40)), rng.normal(0, 1, (16, 50)))

    retrained = side(0.0)
    return {
        "kind": "heads",
        "valid_because": "the backbone never saw the rows",
        "models": {"trained": 16, "retrained": 16, "had_each_row": 8, "per_group": 8},
        "rows": {"forget": 40, "population": 50},
        "references": {"original": against(side(2.0), retrained, 8, 0), "retrained": floor(retrained, 0)},
        "methods": {"loft": {"unlearned_by": "its map", **against(side(0.1), retrained, 8, 0)}},
        "not_covered": {"keep": "it changes the backbone"},
    }


@cache
def make(whole: bool, seeds: int, shadow: bool = False) -> Run:
    rng = np.random.default_rng(0)
    centres = 1.3 * rng.normal(size=(CLASSES, DIM))
    labels = rng.integers(0, CLASSES, ROWS)
    x = centres[labels] + 0.8 * rng.normal(size=(ROWS, DIM))
    train = np.arange(ROWS) < ROWS * 3 // 4
    removed = labels == GONE if whole else rng.random(ROWS) < 0.2
    parts = np.where(train, np.where(removed, "forget", "retain"), "test_retain").astype("U11")
    if whole:
        parts[~train & removed] = "test_forget"

    def model(seed: int, bias: float, prime: float | None = None) -> Outputs:
        z = (x + 0.02 * np.random.default_rng(seed).normal(size=x.shape)).astype(np.float32)
        logits = (3 * (z @ centres.T - 0.5 * (centres**2).sum(axis=1))).astype(np.float32)
        logits[:, GONE] += bias
        return Outputs(logits, z, None if prime is None else z * np.float32(prime))

    forgets = -60.0 if whole else 0.0
    original = model(1, 0.0)
    retrained = [model(10 + s, forgets) for s in range(seeds)]
    methods = {"logit-mask": model(1, -np.inf if whole else 0.0), "loft": model(2, forgets, 0.5), "keep": model(1, 0.0)}

    def block(candidate: Outputs, others: list[Outputs]) -> dict[str, Any]:
        return evaluate(candidate, original, others, labels, parts, 0)

    cost = {"fit_s": 0.01, "evaluate_s": 1.0, "peak_rss_mb": 300.0}
    cost |= {"retrain_s": 5.0, "speedup_vs_retrain": 500.0} if seeds else {}
    summary = build_summary(
        {
            "selector": "classes" if whole else "random",
            "classes": np.unique(labels[parts == "forget"]).tolist(),
            "whole_classes": [GONE] if whole else [],
            "forget_rows": int((parts == "forget").sum()),
            "retain_rows": int((parts == "retain").sum()),
            "digest": "sha256:" + "a" * 64,
            "validation": {"share": 0.1, "seed": 0},
        },
        {"name": "gauss", "feature_dim": DIM, "saw_forget_data": True, "digest": "sha256:" + "b" * 64},
        {
            "original": block(original, retrained),
            "retrained": [block(r, [o for o in retrained if o is not r]) for r in retrained],
            "controls": controls_of(original, retrained, labels, parts, 0) if retrained else {},
        },
        {name: {**block(m, retrained), "settings": SETTINGS[name]} for name, m in methods.items()},
        dict.fromkeys(methods, cost),
        True,
        many_models() if shadow else None,
    )
    if seeds:  # A method is selected only with a shown claim.
        loft = summary["methods"]["loft"]["verdict"]
        loft["claims"] = {**loft["claims"], "outputs": "shown"}
        summary["selected"] = "loft"
    summary["refused"] = {"ru-mlp": "it would collapse <i>the features</i>"}
    # t-SNE is slow, so only every eighth row is drawn.
    shown, groups = (array[::8] for array in draw_view(labels, parts, 0))
    logits = {"original": original.logits, **({"retrained": retrained[0].logits} if seeds else {})}
    logits |= {name: m.logits for name, m in methods.items()}
    views = {"z of the original": original.z[shown], "z' of loft": methods["loft"].head_input[shown]}
    evidence = Evidence(HOSTILE, labels, parts, logits, views, groups, "All rows are counted.")
    return summary, evidence


@pytest.fixture(scope="session")
def run() -> Callable[..., Run]:
    """Return a function `run(whole=True, seeds=2, shadow=False)` that returns a summary and evidence.

    Tests share the returned objects, so a test that changes them must copy them first.
    """
    return lambda whole=True, seeds=2, shadow=False: make(whole, seeds, shadow)
