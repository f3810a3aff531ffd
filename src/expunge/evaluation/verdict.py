"""The values of a metrics block that an audit compares with those at registration and of the retrained models."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.evaluation.accuracy import PARTS
from expunge.evaluation.equivalence import Difference
from expunge.evaluation.margins import Margins


@dataclass(frozen=True)
class Gate:
    """One comparison: the value's path in a metrics block, the margin, and the side on which it counts."""

    path: str
    margin: float
    side: str = "both"  # both | not above | not below

    def excess(self, difference: Difference) -> float:
        """How far the interval exceeds the margin; 0 or less if the gate passes."""
        above, below = difference.high - self.margin, -self.margin - difference.low
        return {"both": max(above, below), "not above": above, "not below": below}[self.side]


def gates(margins: Margins) -> list[Gate]:
    """Return every gate of the audit. KL and agreement are compared with the noise floor between retrained models."""
    return [
        *(Gate(f"accuracy.{p}", margins.retain if p == "retain" else margins.accuracy) for p in PARTS),
        Gate("divergence.forget.kl", margins.kl, "not above"),
        Gate("divergence.forget.agreement", margins.agreement, "not below"),
        Gate("membership.loss_auc", margins.loss_auc),
        Gate("membership.mia_lr_member", margins.mia),
        Gate("representation.probe_z_prime", margins.probe),
        Gate("representation.probe_z", margins.probe),
    ]
