"""Margins of the audit: how far a value of a served model may move before the audit calls it worse.

The verdict has other margins, see `criteria`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Margins:
    """Largest tolerated difference to the retrained models: shares in [0, 1], and `kl` in nats above the noise floor.

    `retain` applies to accuracy on retained training rows, which depends on how long a model was trained on them.
    `accuracy` applies to forgotten and test rows.
    """

    accuracy: float
    retain: float
    kl: float
    agreement: float
    loss_auc: float
    mia: float
    probe: float


AUDIT = Margins(accuracy=0.015, retain=0.03, kl=0.1, agreement=0.05, loss_auc=0.05, mia=0.25, probe=0.02)
