"""Learning rates relative to the recipe that trained the classifier, for all methods that use gradient steps.

A rate that suits one network can destroy another: SGD at 0.2 trains a small residual network and ruins an EfficientNet
that AdamW fine-tuned at 0.001. A method therefore gives its rate as a factor of the recipe's mean rate, and uses the
recipe's kind of optimizer. Steps of SGD scale with the gradient and those of AdamW do not, so each has its own factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from expunge.models.classifier import ModelCard

OPTIMIZERS = ("auto", "sgd", "adamw")
PRECISIONS = ("auto", "fp32", "bf16")
# For models whose training is not recorded: the mean rate of torch's SGD with a one-cycle schedule up to 0.2, rounded.
UNKNOWN = 0.1


@dataclass(frozen=True)
class Factors:
    """The rate of a method's first step as a factor of the recipe's mean rate, for SGD and for AdamW."""

    sgd: float
    adamw: float = 0.5


@dataclass(frozen=True)
class Steps:
    """The rate `lr` of the first step, and the `optimizer`, "sgd" or "adamw"."""

    lr: float
    optimizer: str

    @classmethod
    def of(cls, card: ModelCard, factors: Factors, lr: float | None, factor: float | None, optimizer: str) -> Steps:
        """Return the steps with `lr` where it is given, else `factor` times the recipe's mean rate.

        `factor` None takes the one of `factors`. `optimizer` "auto" is SGD where the recipe's is of that kind or
        unknown, else AdamW.
        """
        recipe = recorded(card)
        trained_by = str(recipe.get("optimizer", "sgd"))
        own = "sgd" if trained_by in ("sgd", "nesterov", "momentum", "sgdp", "sgdw") else "adamw"
        chosen = own if optimizer == "auto" else optimizer
        if lr is None:
            own_factor = factors.sgd if chosen == "sgd" else factors.adamw
            # The recipe's mean rate is meaningless for another kind of optimizer, which takes the reference rate.
            base = float(recipe["mean_lr"]) if recipe and chosen == own else UNKNOWN if chosen == "sgd" else ADAMW
            lr = (own_factor if factor is None else factor) * base
        return cls(lr, chosen)

    def make(self, parameters: Iterable[torch.nn.Parameter], momentum: float) -> torch.optim.Optimizer:
        """Return the optimizer without weight decay, which the loop applies; `momentum` is Nesterov's, for SGD only."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=momentum, nesterov=momentum > 0)


ADAMW = 5e-4  # as UNKNOWN, for AdamW: the mean rate of warm-up and cosine with the peak 0.001


def recorded(card: ModelCard) -> Mapping[str, Any]:
    """Return the recipe that trained all weights or those above a cut; empty if it is not recorded.

    It has `optimizer`, `mean_lr`, `passes` and `batch_size`, among others. The schedule of training above a cut rises
    and falls linearly, so its mean rate is half its peak.
    """
    if card.recipe is None and card.above is not None:
        above = card.above["recipe"]
        own = {"optimizer": above.get("optimizer", "sgd"), "mean_lr": above["lr"] / 2}
        return own | {"passes": above["epochs"], "batch_size": above["batch_size"]}
    return card.recipe or {}


def frozen_norms(card: ModelCard, asked: bool) -> bool:
    """Whether batch norm keeps its running statistics in all batches, because of `asked` or the recipe."""
    return asked or bool((card.recipe or {}).get("frozen_norm", False))


def uses_bf16(card: ModelCard, asked: str) -> bool:
    """Whether the forward pass computes in bf16, because of `asked` or, if that is "auto", the recipe."""
    return ((card.recipe or {}).get("precision") if asked == "auto" else asked) == "bf16"
