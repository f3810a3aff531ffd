"""Step sizes relative to the recipe that trained the classifier: one helper for every method that descends.

A rate that suits one network destroys another: SGD at 0.2 trains a small residual network and ruins an EfficientNet
that AdamW fine-tuned at 0.001. So a method names its rate as a factor of the mean rate of that recipe, and descends
with its kind of optimizer. AdamW's steps do not grow with the loss or its gradient, SGD's do: each has its factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from expunge.models.classifier import ModelCard

OPTIMIZERS = ("auto", "sgd", "adamw")
# For models whose training is not recorded: what torch's SGD with one cycle to 0.2 has on average, to a digit.
UNKNOWN = 0.1


@dataclass(frozen=True)
class Factors:
    """Rate of a method's first step as a factor of the recipe's mean rate, under SGD and under AdamW."""

    sgd: float
    adamw: float = 0.5


@dataclass(frozen=True)
class Steps:
    """`lr`: rate of the first step; `optimizer`: "sgd" or "adamw"."""

    lr: float
    optimizer: str

    @classmethod
    def of(cls, card: ModelCard, factors: Factors, lr: float | None, factor: float | None, optimizer: str) -> Steps:
        """`lr` where it is given, else `factor`, by default the one of `factors`, times the recipe's mean rate.
        `optimizer`: "auto" is SGD where the recipe's is SGD or unknown, else AdamW."""
        recipe = _recorded(card)
        trained_by = str(recipe.get("optimizer", "sgd"))
        own = "sgd" if trained_by in ("sgd", "nesterov", "momentum", "sgdp", "sgdw") else "adamw"
        chosen = own if optimizer == "auto" else optimizer
        if lr is None:
            own_factor = factors.sgd if chosen == "sgd" else factors.adamw
            # A mean rate is of the recipe's optimizer: under another kind it says nothing, so the reference stands in.
            base = float(recipe["mean_lr"]) if recipe and chosen == own else UNKNOWN if chosen == "sgd" else ADAMW
            lr = (own_factor if factor is None else factor) * base
        return cls(lr, chosen)

    def make(self, parameters: Iterable[torch.nn.Parameter], momentum: float) -> torch.optim.Optimizer:
        """Without weight decay, which the loop adds itself. `momentum`: of SGD, Nesterov's."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=momentum, nesterov=momentum > 0)


def _recorded(card: ModelCard) -> Mapping[str, Any]:
    """What is known of the training: of all weights, or of those above a cut, whose mean rate is half its peak."""
    if card.recipe is None and card.above is not None:
        above = card.above["recipe"]
        return {"optimizer": above.get("optimizer", "sgd"), "mean_lr": above["lr"] / 2}
    return card.recipe or {}


ADAMW = 5e-4  # as UNKNOWN, for AdamW: the mean of warm-up and cosine to 0.001


def frozen_norms(card: ModelCard, asked: bool) -> bool:
    """Whether batch norm keeps its statistics throughout: asked for, or the recipe trained like that."""
    return asked or bool((card.recipe or {}).get("frozen_norm", False))
