"""Random features: a wide layer drawn from a seed, on which a linear head answers as a kernel machine on z would.

Rahimi and Recht (NeurIPS 2007) draw features whose products approximate a kernel; with rectified ones it is the
arc-cosine kernel of degree 1 (Cho and Saul, NeurIPS 2009). Nothing in the layer comes from data, so a head on it is
deleted from as exactly as one on z.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from expunge.models.classifier import Classifier

SEED = 0  # one for all models, so that models of different training seeds have the same features


class RandomFeatures(nn.Module):
    """`backbone`'s z `(n, d)` to `[u, sqrt(2/N) relu(u A)]`, `(n, d + N)`, with `u = z / |z|` and `A (d, N)` standard
    normal. The length of z is left out, so that no scale has to be learned from data; a z of zero stays zero."""

    def __init__(self, backbone: nn.Module, dim: int, count: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        drawn = torch.randn(dim, count, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("drawn", drawn)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.backbone(x)
        unit = z / z.norm(dim=1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        drawn = self.drawn
        assert isinstance(drawn, Tensor)
        return torch.cat([unit, torch.relu(unit @ drawn) * (2 / drawn.shape[1]) ** 0.5], dim=1)


def with_random_features(classifier: Classifier, count: int) -> Classifier:
    """`classifier` with `count` random features of its z, in eval mode, and a head of zeros, to be fitted."""
    card = replace(classifier.card, feature_dim=classifier.card.feature_dim + count, random_features=count)
    backbone = RandomFeatures(classifier.backbone, classifier.card.feature_dim, count, SEED)
    head = nn.Linear(card.feature_dim, card.num_classes, device="meta").to_empty(device="cpu")
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return Classifier(backbone, head, classifier.preprocess, card).eval()
