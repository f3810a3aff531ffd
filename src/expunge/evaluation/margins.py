"""The margins of the verdict, as params.yaml has them; apart, so that reading params imports no numbers."""

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
