"""How far a value of a served model may move before an audit calls it worse. The verdict has margins of its own, see
`criteria`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Margins:
    """Largest tolerated difference to the retrained models: shares in [0, 1], `kl` in nats above the noise floor.

    `retain` is for accuracy on retained training rows, which follows how long a model was trained on them; `accuracy`
    is for forgotten and test rows.
    """

    accuracy: float
    retain: float
    kl: float
    agreement: float
    loss_auc: float
    mia: float
    probe: float


AUDIT = Margins(accuracy=0.015, retain=0.03, kl=0.1, agreement=0.05, loss_auc=0.05, mia=0.25, probe=0.02)
