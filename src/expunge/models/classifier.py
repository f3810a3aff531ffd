"""A classifier cut at its head: pictures or texts -> z (the backbone) -> logits = W z + b (the head)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.models.layers import PENULTIMATE
from expunge.models.preprocess import Inputs, Preprocess
from expunge.models.tokens import Tokens

TRAINING = ("full", "above", "head", "ridge", "none")
ABOVE = "above"  # what lies above a cut is trained from public weights, on activations of layers that stay
FROZEN = ("head", "ridge")  # a head is fitted to the features of a backbone that stays as it is


@dataclass(frozen=True)
class ModelCard:
    """What is known about a classifier besides its weights.

    `training`: what the pipeline trains, `full` (backbone and head), `above` (what lies above a cut, and the head),
    `head` (softmax), `ridge` (least squares), or `none` (it came trained).
    `saw_forget_data`: whether the weights that training started from and keeps were trained on rows that a request may
    name; if so, nothing done to what is trained here can equal retraining.
    `head`: the name the head had in the original model.
    `options`: what rebuilding the architecture needs besides its name, such as a transformers configuration.
    `layers`: the modules whose pooled outputs are z, side by side; what the head of the original model reads if only
    PENULTIMATE.
    `random_features`: how many features drawn from a fixed seed stand beside z (see `models/random_features.py`).
    `weights`: the public weights that training started from, `source` (a checkpoint's path as params name it, or the
    model's name) and `digest` of the backbone's tensors; None where nothing is claimed.
    `above`: for training `above` the `recipe` (arguments of `Relearn`, its cut and seed among them) and `lower_digest`,
    what lies below the cut (see `models/lower.py`): all that training again without some rows needs. With shards also
    `shards`: `count`, `slices`, the fingerprint of the `key` that places subjects, and `parts`, for every step of every
    shard its rows, their Merkle root and the digest of its weights (see `models/sharded.py`).
    `recipe`: how all weights were trained, every setting resolved (see `training/settings.py`), with `mean_lr` and
    `final_lr`; None where they came trained or lie above a cut.
    """

    name: str
    num_classes: int
    feature_dim: int
    training: str
    saw_forget_data: bool
    head: str = "head"
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = (PENULTIMATE,)
    weights: Mapping[str, str] | None = None
    above: Mapping[str, Any] | None = None
    random_features: int = 0
    recipe: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.training not in TRAINING:
            raise ValueError(f"training {self.training!r}: one of {', '.join(TRAINING)}")

    @property
    def features_saw(self) -> bool:
        """Whether the features depend on rows that a request may name."""
        return self.saw_forget_data or self.training == ABOVE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelCard:
        return cls(**value)


class Classifier(nn.Module):
    """`head(backbone(preprocess(inputs)))`. Mode (train or eval) and gradients are the caller's affair."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, preprocess: Preprocess | Tokens, card: ModelCard) -> None:
        super().__init__()
        if (head.out_features, head.in_features) != (card.num_classes, card.feature_dim):
            raise ValueError(
                f"head is {head.out_features} x {head.in_features}, its card says "
                f"{card.num_classes} x {card.feature_dim}"
            )
        self.backbone = backbone
        self.head = head
        self.preprocess = preprocess
        self.card = card

    def features(self, inputs: Inputs) -> Tensor:
        """z `(n, feature_dim)` of uint8 images (see Preprocess) or texts (see Tokens), or of a tensor that is already
        preprocessed."""
        z: Tensor = self.backbone(self._prepared(inputs))
        return z

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits `(n, num_classes)`; `inputs` as in `features`."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Copy `weight (k, d)` and `bias (k,)` into the head, as a refit or a fold makes them."""
        if weight.shape != self.head.weight.shape or bias.shape != self.head.bias.shape:
            raise ValueError(
                f"head is {tuple(self.head.weight.shape)}, given {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def _prepared(self, inputs: Inputs) -> Tensor:
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            return inputs
        return self.preprocess(inputs).to(self.head.weight.device, non_blocking=True)
