"""Make verdicts in the form of summary.json, for tests that need one without an evaluation."""

from collections.abc import Sequence
from typing import Any

from expunge.evaluation.criteria import BACKBONE, CANNOT_TELL, CLAIMS, EXACT, FEATURES, OUTPUTS, REFUTED, SHOWN

REACHED = {
    "none": (),
    "outputs": (OUTPUTS,),
    "features": (OUTPUTS, FEATURES),
    "backbone": (OUTPUTS, FEATURES, BACKBONE),
}


def gate(path: str, claim: str = OUTPUTS, **fields: Any) -> dict[str, Any]:
    found = {
        "path": path,
        "claim": claim,
        "power": True,
        "tells": True,
        "rows": 100,
        "excess": 0.4,
        "excess_interval": [0.3, 0.5],
        "value": 0.62,
        "target": 0.5,
        "share": 0.3,
        "interval": [0.2, 0.4],
        "passed": False,
        "refuted": False,
        "reason": "",
        "rows_needed": None,
    }
    return {**found, **fields}


def verdict_with(
    shown: Sequence[str] = (OUTPUTS,), utility: str = "kept", failed: Sequence[str] = (), refuted: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a verdict with these claims. `failed` are the paths of gates that speak against the claim outputs."""
    states = {c: SHOWN if c in shown else REFUTED if c in refuted else CANNOT_TELL for c in CLAIMS}
    return {
        "utility": utility,
        "claims": states,
        "gates": [gate(path) for path in failed],
        "why": "because",
        "reasons": dict.fromkeys(CLAIMS, "that is so"),
        "references": 3,
        "control": None,
        "choice": None,
        "utility_parts": {},
        "utility_against": "retrained",
    }


def exact_verdict() -> dict[str, Any]:
    return verdict_with((EXACT,))
