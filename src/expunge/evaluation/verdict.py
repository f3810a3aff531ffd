"""From metrics to a claim: which level a method reaches, and which gates it failed by how much.

(a) accuracies like a retrained model's; (b) the served model's predictions like a retrained model's; (c) z' carries
what a retrained model's features carry; (d) so do the shipped network's own features. Levels are cumulative and gates
against the retrained models are two-sided: over-forgetting fails like under-forgetting.

A gate passes when the confidence interval of the difference to the retrained models lies inside the margin: over seeds
where there are two or more, else over rows (`intervals` of the metrics), and then the verdict is marked as indicative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.evaluation.accuracy import PARTS
from expunge.evaluation.equivalence import Difference, seed_difference
from expunge.evaluation.margins import Margins

LEVELS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Gate:
    """One comparison: where the value lies in a metrics block, its level, the margin, and whether only one side
    counts."""

    path: str
    level: str
    margin: float
    side: str = "both"  # both | not above | not below

    def excess(self, difference: Difference) -> float:
        """How far the interval leaves the margin; 0 or less when the gate passes."""
        above, below = difference.high - self.margin, -self.margin - difference.low
        return {"both": max(above, below), "not above": above, "not below": below}[self.side]


def gates(margins: Margins) -> list[Gate]:
    """Every gate, in the order of levels. KL and agreement are held against the floor between retrained models."""
    return [
        *(Gate(f"accuracy.{p}", "a", margins.retain if p == "retain" else margins.accuracy) for p in PARTS),
        Gate("divergence.forget.kl", "b", margins.kl, "not above"),
        Gate("divergence.forget.agreement", "b", margins.agreement, "not below"),
        Gate("membership.loss_auc", "b", margins.loss_auc),
        Gate("membership.mia_lr_member", "b", margins.mia),
        Gate("representation.probe_z_prime", "c", margins.probe),
        Gate("representation.probe_z", "d", margins.probe),
    ]


def lookup(block: Mapping[str, Any], path: str) -> float | None:
    """Value at a dotted path, None where a key is missing or null."""
    value: Any = block
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def verdict(
    candidate: Mapping[str, Any],
    original: Mapping[str, Any],
    retrained: Sequence[Mapping[str, Any]],
    margins: Margins,
    whole_classes: bool,
) -> dict[str, Any]:
    """Level reached, failed gates and gates that could not be evaluated.

    `candidate`, `original` and each of `retrained` are blocks as `suite.evaluate` returns them; a retrained block was
    evaluated against the other retrained models, so that its divergence is the noise floor (null with one seed: floor 0
    and agreement 1). A gate is left out where the reference has no value. A level is earned when all lower ones are,
    none of its gates failed and at least one was evaluated; without a retrained model only (a) can be, by what needs no
    reference: retained accuracies not below the original's, and forgotten ones near 0 where whole classes were
    forgotten.
    """
    compared = [_compare(g, candidate, retrained) for g in gates(margins)] if retrained else None
    if compared is None:
        compared = _without_reference(candidate, original, margins, whole_classes)
    failed, left_out, evaluated, indicative = [], [], set(), not retrained
    for gate, target, difference in compared:
        if target is None:
            left_out.append({"gate": gate.path, "level": gate.level, "reason": "no reference value"})
            continue
        evaluated.add(gate.level)
        if difference is not None and not np.isfinite([difference.low, difference.high]).all():
            raise ValueError(f"gate {gate.path}: the difference to the reference is not finite")
        indicative = indicative or difference is None or difference.indicative
        excess = None if difference is None else gate.excess(difference)
        if excess is None or excess > 1e-12:
            failed.append(
                {
                    "gate": gate.path,
                    "level": gate.level,
                    "value": lookup(candidate, gate.path),
                    "target": target,
                    "margin": gate.margin,
                    "excess": excess,
                    "interval": None if difference is None else [difference.low, difference.high],
                }
            )
    level = "none"
    for name in LEVELS:
        if name not in evaluated or any(f["level"] == name for f in failed):
            break
        level = name
    return {
        "level": level,
        "failed_gates": failed,
        "not_evaluated": left_out,
        "indicative": indicative,
        "reference": f"{len(retrained)} retrained" if retrained else "original only",
    }


Compared = tuple[Gate, float | None, Difference | None]


def _compare(gate: Gate, candidate: Mapping[str, Any], retrained: Sequence[Mapping[str, Any]]) -> Compared:
    """Difference of the candidate's value to the retrained models', with its interval."""
    value = lookup(candidate, gate.path)
    known = [v for v in (lookup(block, gate.path) for block in retrained) if v is not None]
    if gate.path.startswith("divergence.") and not known:
        known = [1.0 if gate.path.endswith("agreement") else 0.0]
    if not known:
        return gate, None, None
    target = float(np.mean(known))
    if value is None:
        return gate, target, None
    if len(known) > 1:
        return gate, target, seed_difference([value], known)
    low, high = candidate.get("intervals", {}).get(gate.path) or (value, value)
    return gate, target, Difference(value - target, low - target, high - target, indicative=True)


def _without_reference(
    candidate: Mapping[str, Any], original: Mapping[str, Any], margins: Margins, whole_classes: bool
) -> list[Compared]:
    """What can be said without a retrained model; every other gate gets no target."""
    sides: dict[str, tuple[float | None, str]] = {
        f"accuracy.{part}": (lookup(original, f"accuracy.{part}"), "not below") for part in ("retain", "test_retain")
    }
    if whole_classes:
        sides |= {f"accuracy.{part}": (0.0, "not above") for part in ("forget", "test_forget")}
    compared: list[Compared] = []
    for base in gates(margins):
        target, side = sides.get(base.path, (None, base.side))
        value = lookup(candidate, base.path)
        gate = Gate(base.path, base.level, base.margin, side)
        if target is None or value is None:
            compared.append((gate, None, None))
        else:
            gap = value - target
            compared.append((gate, target, Difference(gap, gap, gap, indicative=True)))
    return compared
