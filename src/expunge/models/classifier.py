"""A classifier cut at its head: pictures -> z (the backbone) -> logits = W z + b (the head)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.models.preprocess import Images, Preprocess

TRAINING = ("full", "head", "none")


@dataclass(frozen=True)
class ModelCard:
    """What is known about a classifier besides its weights.

    `training`: what the pipeline trains, `full` (backbone and head), `head`, or `none` (it came trained).
    `saw_forget_data`: whether the backbone was trained on rows that a request may name; if so, nothing
    done to the head alone can equal retraining.
    `head`: the name the head had in the original model.
    `options`: what rebuilding the architecture needs besides its name, such as a transformers configuration.
    """

    name: str
    num_classes: int
    feature_dim: int
    training: str
    saw_forget_data: bool
    head: str = "head"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.training not in TRAINING:
            raise ValueError(f"training {self.training!r}: one of {', '.join(TRAINING)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelCard:
        return cls(**value)


class Classifier(nn.Module):
    """`head(backbone(preprocess(images)))`. Mode (train or eval) and gradients are the caller's affair."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, preprocess: Preprocess, card: ModelCard) -> None:
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

    def features(self, images: Images) -> Tensor:
        """z `(n, feature_dim)` of uint8 images (see Preprocess), or of a float tensor that is already preprocessed."""
        z: Tensor = self.backbone(self._pixels(images))
        return z

    def forward(self, images: Images) -> Tensor:
        """Logits `(n, num_classes)`; `images` as in `features`."""
        logits: Tensor = self.head(self.features(images))
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

    def _pixels(self, images: Images) -> Tensor:
        if isinstance(images, Tensor) and images.is_floating_point():
            return images
        return self.preprocess(images).to(self.head.weight.device, non_blocking=True)
