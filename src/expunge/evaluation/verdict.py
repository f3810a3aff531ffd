"""Values of a metrics block that an audit compares with those at registration and with the retrained models'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.evaluation.accuracy import PARTS
from expunge.evaluation.equivalence import Difference
from expunge.evaluation.margins import Margins


@dataclass(frozen=True)
class Gate:
    """One comparison: where the value lies in a metrics block, the margin, and whether only one side
    counts."""

    path: str
    margin: float
    side: str = "both"  # both | not above | not below

    def excess(self, difference: Difference) -> float:
        """How far the interval leaves the margin; 0 or less when the gate passes."""
        above, below = difference.high - self.margin, -self.margin - difference.low
        return {"both": max(above, below), "not above": above, "not below": below}[self.side]


def gates(margins: Margins) -> list[Gate]:
    """Every gate. KL and agreement are held against the floor between retrained models."""
    return [
        *(Gate(f"accuracy.{p}", margins.retain if p == "retain" else margins.accuracy) for p in PARTS),
        Gate("divergence.forget.kl", margins.kl, "not above"),
        Gate("divergence.forget.agreement", margins.agreement, "not below"),
        Gate("membership.loss_auc", margins.loss_auc),
        Gate("membership.mia_lr_member", margins.mia),
        Gate("representation.probe_z_prime", margins.probe),
        Gate("representation.probe_z", margins.probe),
    ]


def lookup(block: Mapping[str, Any], path: str) -> float | None:
    """Value at a dotted path, None where a key is missing or null."""
    value: Any = block
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)
