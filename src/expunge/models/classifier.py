"""A classifier divided into backbone and head: images or texts -> z (backbone) -> logits = W z + b (head)."""

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
ABOVE = "above"  # the layers above a cut are trained from public weights, on activations of the frozen layers below
FROZEN = ("head", "ridge")  # only a head is fitted, to the features of a frozen backbone


@dataclass(frozen=True)
class ModelCard:
    """The description of a classifier, without its weights.

    `training`: what the pipeline trains: `full` (backbone and head), `above` (the layers above a cut, and the head),
    `head` (softmax regression), `ridge` (least squares), or `none` (the model was trained elsewhere).
    `saw_forget_data`: whether the weights that training starts from and keeps were trained on rows that a request may
    name. If so, no method that changes only the trained part can equal retraining.
    `head`: the name of the head in the original model.
    `options`: what rebuilding the architecture needs besides its name, such as a transformers configuration.
    `layers`: the modules whose pooled outputs are concatenated to z; PENULTIMATE alone is the input of the original
    model's head.
    `random_features`: the number of random features that are appended to z (see `models/random_features.py`).
    `weights`: the public weights that training started from, by `source` (the path of a checkpoint as in params, or
    the name of the model) and `digest` of that file; None if they are not declared public.
    `above`: for training `above`, the `recipe` (arguments of `Relearn` with the cut and the seed) and the
    `lower_digest` of the layers below the cut (see `models/lower.py`), which is all that retraining without some rows
    needs. With shards also `shards`: `count`, `slices`, the fingerprint of the `key` that assigns subjects, and
    `parts`: for every step of every shard its rows, their Merkle root and the digest of its weights (see
    `models/sharded.py`).
    `recipe`: the resolved settings with which all weights were trained (see `training/settings.py`), with `mean_lr`
    and `final_lr`; None if the model was trained elsewhere or only above a cut.
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
            raise ValueError(f"training must be one of {', '.join(TRAINING)}, got {self.training!r}")

    @property
    def features_saw(self) -> bool:
        """Whether the features may depend on rows that a request may name."""
        return self.saw_forget_data or self.training == ABOVE

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name; `model.json` holds them under `card`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelCard:
        """Return the card with these fields."""
        return cls(**value)


class Classifier(nn.Module):
    """Computes `head(backbone(preprocess(inputs)))`. The caller sets the mode (train or eval) and gradients.

    Raises ValueError if the shape of `head` differs from that in `card`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear, preprocess: Preprocess | Tokens, card: ModelCard) -> None:
        super().__init__()
        if (head.out_features, head.in_features) != (card.num_classes, card.feature_dim):
            raise ValueError(
                f"the head must have the shape of its card, {card.num_classes} x {card.feature_dim}, got "
                f"{head.out_features} x {head.in_features}"
            )
        self.backbone = backbone
        self.head = head
        self.preprocess = preprocess
        self.card = card

    def features(self, inputs: Inputs) -> Tensor:
        """Return z `(n, feature_dim)` of uint8 images (see Preprocess) or texts (see Tokens).

        A tensor of floats or of token ids counts as preprocessed.
        """
        z: Tensor = self.backbone(self._prepared(inputs))
        return z

    def forward(self, inputs: Inputs) -> Tensor:
        """Return logits `(n, num_classes)`; `inputs` as in `features`."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Copy `weight (k, d)` and `bias (k,)`, such as those of a refit, into the head.

        Raises ValueError for other shapes than the head's.
        """
        if weight.shape != self.head.weight.shape or bias.shape != self.head.bias.shape:
            raise ValueError(
                f"weight and bias must fit the head {tuple(self.head.weight.shape)}, got {tuple(weight.shape)} and "
                f"{tuple(bias.shape)}"
            )
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def _prepared(self, inputs: Inputs) -> Tensor:
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            return inputs
        return self.preprocess(inputs).to(self.head.weight.device, non_blocking=True)
