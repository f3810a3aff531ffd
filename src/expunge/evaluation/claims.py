"""Claims about one model, derived from its gates: each is shown, refuted, or cannot be decided from this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.criteria import (
    ALPHA,
    ALPHA_REFUTE,
    BACKBONE,
    CANNOT_TELL,
    CLAIMS,
    EXACT,
    FEATURES,
    KEPT,
    LOST,
    MIN_REFERENCES,
    OUTPUTS,
    REFUTED,
    SHOWN,
    UTILITY,
)
from expunge.evaluation.excess import GateRows, power_of, row_error, rows_needed, share_of, t_quantile
from expunge.evaluation.gates import STAGE

STATISTICAL = (OUTPUTS, FEATURES, BACKBONE)


def judge_gates(gates: Sequence[GateRows], values: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Judge a candidate at every gate: one JSON block each, with the gate's power, share, interval and outcome.

    `values` holds the candidate's per-row values by path. A gate without an entry is neither passed nor refuted.
    """
    powers = [power_of(gate) for gate in gates]
    telling = {c: sum(p.tells and g.claim == c for g, p in zip(gates, powers, strict=True)) for c in STATISTICAL}
    blocks = []
    for gate, power in zip(gates, powers, strict=True):
        block: dict[str, Any] = {
            "path": gate.path,
            "claim": gate.claim,
            "power": power.power,
            "tells": power.tells,
            "rows": gate.rows,
            "excess": power.excess,
            "excess_interval": None if power.interval is None else list(power.interval),
            "value": None,
            "target": float(gate.retrained.mean()),
            "share": None,
            "interval": None,
            "passed": None,
            "refuted": False,
            "reason": power.reason,
            "fit_spread": gate.fit_spread,
            "rows_needed": rows_needed(gate) if gate.usable and gate.shows and not power.power else None,
        }
        if gate.path in values:
            # Bonferroni: ALPHA_REFUTE is the error rate over all gates of the claim that can refute.
            found = share_of(gate, values[gate.path], ALPHA_REFUTE / max(telling[gate.claim], 1))
            block["value"] = found.value
            if power.tells and found.interval is not None:
                block |= {"share": found.share, "interval": list(found.interval), "refuted": found.refuted}
            if power.power:
                block["passed"] = found.passed
        blocks.append(block)
    return blocks


def outcome(claim: str, blocks: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Outcome of one claim from its gates alone, before the controls are considered, and the reason for it."""
    mine = [b for b in blocks if b["claim"] == claim]
    if not mine:
        return CANNOT_TELL, "nothing was measured"
    refuted = [b for b in mine if b["refuted"]]
    if refuted:
        worst = max(refuted, key=lambda b: abs(b["share"]))
        side = "left" if worst["share"] > 0 else "overshot"
        return REFUTED, f"{abs(worst['share']):.0%} of the original's excess is {side} ({worst['path']})"
    powered = [b for b in mine if b["power"]]
    if not powered:
        return CANNOT_TELL, "no measure tells the original from retrained models well enough on these rows"
    open_ = [b for b in powered if not b["passed"]]
    if open_:
        return CANNOT_TELL, f"the interval reaches beyond the margin ({open_[0]['path']})"
    return SHOWN, f"{len(powered)} measure{'s' * (len(powered) > 1)} with power passed"


def fails(claim: str, blocks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a gate with power refutes the control for this claim. A candidate has to pass every such gate."""
    return any(b["claim"] == claim and b["power"] and b["refuted"] for b in blocks)


def claims_of(
    blocks: Sequence[Mapping[str, Any]],
    controls: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    references: int,
    clean_references: bool = True,
    every_stage: bool = False,
    control: str | None = None,
    exact: Mapping[str, Any] | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Outcome and reason of every claim of one model.

    `blocks`: its gates, from `judge_gates`. `controls`: the gates of the run's negative controls; a claim is shown only
    if each control fails a gate with power. `clean_references`: whether the reference models' backbones never saw the
    forgotten rows; otherwise they count as a reference for no claim. `every_stage`: whether the backbone was measured
    at each of its stages; otherwise its claim can only be refuted. `control`: the name of the negative control whose
    answers the model gives, or None. `exact`: `info["exact"]` with `holds` and `why`, or None if it is not claimed.
    """
    claims, why = {}, {}
    for claim in STATISTICAL:
        if references < MIN_REFERENCES:
            claims[claim] = CANNOT_TELL
            there_are = f"{references} retrained model{'s' * (references != 1)}"
            why[claim] = f"{there_are}, but {MIN_REFERENCES} are needed (retrain.seeds)"
            continue
        if not clean_references:
            claims[claim] = CANNOT_TELL
            why[claim] = "the reference models stand on a backbone that saw the forgotten rows"
            continue
        claims[claim], why[claim] = outcome(claim, blocks)
        if claims[claim] != SHOWN:
            continue
        passing = [name for name, theirs in controls.items() if not fails(claim, theirs)]
        if control is not None:
            claims[claim], why[claim] = CANNOT_TELL, f"it does what a control does ({control})"
        elif not controls:
            claims[claim], why[claim] = CANNOT_TELL, "no control was judged beside it"
        elif passing:
            claims[claim], why[claim] = (
                CANNOT_TELL,
                f"a model that forgot nothing is not refuted ({', '.join(passing)})",
            )
        elif claim == BACKBONE and not every_stage:
            claims[claim], why[claim] = CANNOT_TELL, "only the last stage of the backbone was measured"
    claims[EXACT], why[EXACT] = exact_claim(exact)
    return {c: claims[c] for c in CLAIMS}, {c: why[c] for c in CLAIMS}


def exact_claim(exact: Mapping[str, Any] | None) -> tuple[str, str]:
    """Outcome and reason of the claim `exact`, from the candidate's record; it needs no statistics or references."""
    if exact is None or exact.get("holds") is None:
        reason = str((exact or {}).get("why") or "the weights were made from the original's")
        return CANNOT_TELL, reason
    if exact["holds"] is True:
        return SHOWN, str(exact.get("why") or "by construction")
    return REFUTED, str(exact.get("why") or "the record says that it does not hold")


def utility_of(
    candidate: Mapping[str, NDArray[Any]], retrained: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, Any]:
    """Test one-sidedly whether the model is as accurate as retrained ones; a better model passes.

    Each mapping goes from a part of the rows to the successes `(n,)` per row, over the same rows for all models.
    Utility is `kept` if the estimate of every part is at most UTILITY below the retrained models' mean. The estimate
    decides, because the measured model is the one that would be served. It is `lost` if for one part the whole interval
    (models as in `excess`, rows paired) lies below that margin, and undecided otherwise. Without retrained models pass
    the original; the interval is then over rows only.
    """
    parts = {}
    outcomes = []
    for part, values in candidate.items():
        others = np.array([r[part] for r in retrained], dtype=np.float64)
        if not len(values) or not len(others):
            continue
        difference = np.asarray(values, np.float64) - others.mean(axis=0)
        half = t_quantile(ALPHA, max(len(values) - 1, 1)) * (row_error(difference) if len(values) > 1 else np.inf)
        if len(others) > 1:
            spread = float(others.mean(axis=1).std(ddof=1))
            half = float(np.hypot(half, t_quantile(ALPHA, len(others) - 1) * spread * np.sqrt(1 + 1 / len(others))))
        gap = float(difference.mean())
        found = KEPT if gap >= -UTILITY - 1e-12 else LOST if gap + half < -UTILITY else CANNOT_TELL
        outcomes.append(found)
        parts[part] = {"difference": gap, "interval": [gap - half, gap + half], "outcome": found}
    overall = LOST if LOST in outcomes else CANNOT_TELL if CANNOT_TELL in outcomes or not outcomes else KEPT
    return {"outcome": overall, "parts": parts, "margin": UTILITY}


def sentence(utility: str, claims: Mapping[str, str], why: Mapping[str, str]) -> str:
    """Summarise utility and claims in one sentence, with the reason for the first claim that was not shown."""
    words = {SHOWN: [], REFUTED: [], CANNOT_TELL: []}  # type: dict[str, list[str]]
    for claim in CLAIMS:
        words[claims[claim]].append(claim)
    clauses = [f"{state}: {', '.join(names)}" for state, names in words.items() if names]
    first = next((c for c in CLAIMS if claims[c] == REFUTED), next((c for c in CLAIMS if claims[c] != SHOWN), None))
    reason = f" ({first}: {why[first]})" if first else ""
    return f"Utility {utility}; {'; '.join(clauses)}{reason}."


def verdict_of(
    block: Mapping[str, Any],
    controls: Mapping[str, Sequence[Mapping[str, Any]]],
    references: int,
    clean_references: bool,
    exact: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The verdict of one model as written to summary.json, from `judged` in its metrics block (`judging.judge`)."""
    judged = block["judged"]
    claims, why = claims_of(
        judged["gates"],
        controls,
        references=references,
        clean_references=clean_references,
        every_stage=any(gate["path"].startswith(STAGE) for gate in judged["gates"]),
        control=judged["control"],
        exact=exact,
    )
    utility = str(judged["utility"]["outcome"])
    return {
        "utility": utility,
        "claims": claims,
        "gates": judged["gates"],
        "why": sentence(utility, claims, why),
        "reasons": why,
        "references": references,
        "control": judged["control"],
        "choice": judged["choice"],
        "utility_parts": judged["utility"]["parts"],
        "utility_against": judged["utility"]["against"],
    }


def shown_claims(verdict: Mapping[str, Any]) -> list[str]:
    """The erasure claims that were shown, in the order of CLAIMS."""
    return [claim for claim in CLAIMS if verdict["claims"][claim] == SHOWN]


def shown_words(verdict: Mapping[str, Any]) -> str:
    """The shown claims as text for a tag or a table: `outputs, features`, or `none`."""
    return ", ".join(shown_claims(verdict)) or "none"


def may_serve(shown: Sequence[str], least: str) -> bool:
    """Whether the shown claims include `least` and all claims before it, or `exact`, which implies every other.

    Raises ValueError for an unknown claim.
    """
    if least not in CLAIMS:
        raise ValueError(f"unknown claim {least!r}, expected one of {', '.join(CLAIMS)}")
    if EXACT in shown:
        return True
    return least != EXACT and all(claim in shown for claim in CLAIMS[: CLAIMS.index(least) + 1])


def useful(shown: Sequence[str], utility: str) -> bool:
    """Whether utility permits serving the model: it was `kept`, or `exact` was shown and utility was not `lost`.

    An exact model is what training without the rows gives, so only chance makes another model without them better.
    """
    return utility == KEPT or (EXACT in shown and utility != LOST)


def gates_against(verdict: Mapping[str, Any]) -> list[str]:
    """Paths of the gates that prevent a claim: those that refute it, and those with power that were not passed."""
    return [g["path"] for g in verdict["gates"] if g["refuted"] or (g["power"] and g["passed"] is False)]


def claim_tags(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Return a verdict as tags: the shown `claims`, the `utility`, and the `failed_gates` that prevent a claim."""
    return {
        "claims": shown_words(verdict),
        "utility": str(verdict["utility"]),
        "failed_gates": ", ".join(gates_against(verdict)) or ("none" if verdict["references"] else "not evaluated"),
    }
