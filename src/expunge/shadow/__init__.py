"""Shadow models for attacks that need many models: heads on cached features, or whole networks.

May import everything below it except tracking and report.
Start with `plan` here, then `heads.py` or `networks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from expunge.config import Model, Shadow

SAW = (
    "heads on its features cannot stand for models without the forgotten rows, because the backbone saw these rows; "
    "train whole networks instead with shadow.networks"
)

ABOVE = (
    "model.training is above, and heads on its features cannot stand for models without the forgotten rows, because "
    "the layers above model.cut were trained on these rows; shadow networks cannot be trained above a cut, but the "
    "claim of the method `exact` needs no shadow models"
)

SHARDS = (
    "model.shards is above 1, and shadow heads cannot stand for models of this procedure, because they are trained "
    "on all people at once; the claim of the method `exact` needs no shadow models"
)


@dataclass(frozen=True)
class AttackPlan:
    """Which shadow models to train.

    `valid_because`: why attacks on models of this `kind` are valid. `refused_because`: why models that params ask for
    are not trained.
    """

    kind: Literal["off", "refused", "heads", "networks"]
    valid_because: str | None = None
    refused_because: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set, by name."""
        fields = {"kind": self.kind, "valid_because": self.valid_because, "refused_because": self.refused_because}
        return {key: value for key, value in fields.items() if value is not None}


def plan(model: Model, asked: Shadow) -> AttackPlan:
    """Decide which of the shadow models that params ask for are valid for this model."""
    if not asked.heads and not asked.networks:
        return AttackPlan("off")
    if model.training == "above":
        return AttackPlan("refused", refused_because=ABOVE)
    if model.shards > 1:
        return AttackPlan("refused", refused_because=SHARDS)
    if not model.saw_forget_data:
        if asked.heads:
            return AttackPlan(
                "heads",
                "the model's description says that the backbone never saw the forgotten rows, so only heads were "
                "trained on them",
            )
        return AttackPlan(
            "refused", refused_because="this run trains no network; train heads instead with shadow.heads"
        )
    if asked.networks and model.training == "full":
        return AttackPlan(
            "networks",
            "every network is trained from its start by the recipe of this run",
            SAW * bool(asked.heads) or None,
        )
    if asked.networks:
        return AttackPlan(
            "refused",
            refused_because=f"model.training is {model.training}, so retrained models would share a backbone that "
            "saw the forgotten rows",
        )
    return AttackPlan("refused", refused_because=SAW)
