"""Random features: a wide random layer, on which a linear head approximates a kernel machine on z.

Inner products of random features approximate a kernel (Rahimi and Recht, NeurIPS 2007); for rectified ones it is the
arc-cosine kernel of degree 1 (Cho and Saul, NeurIPS 2009). The layer does not depend on data, so deletion from a head
on it is as exact as from a head on z.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from expunge.models.classifier import Classifier

SEED = 0  # the same for all models, so that models with different training seeds have the same random features


class RandomFeatures(nn.Module):
    """Maps the z `(n, d)` of `backbone` to `[u, sqrt(2/N) relu(u A)]`, `(n, d + N)`, with `u = z / |z|`.

    The entries of `A (d, N)` are standard normal. z is normalised, so that no scale has to be estimated from data; a
    zero z stays zero.
    """

    def __init__(self, backbone: nn.Module, dim: int, count: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        drawn = torch.randn(dim, count, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("drawn", drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Return the backbone's normalised features and the random ones, `(n, d + N)`."""
        z: Tensor = self.backbone(x)
        unit = z / z.norm(dim=1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        drawn = self.drawn
        assert isinstance(drawn, Tensor)
        return torch.cat([unit, torch.relu(unit @ drawn) * (2 / drawn.shape[1]) ** 0.5], dim=1)


def with_random_features(classifier: Classifier, count: int) -> Classifier:
    """Return a classifier in eval mode that appends `count` random features to z, with a head of zeros to be fitted."""
    card = replace(classifier.card, feature_dim=classifier.card.feature_dim + count, random_features=count)
    backbone = RandomFeatures(classifier.backbone, classifier.card.feature_dim, count, SEED)
    head = nn.Linear(card.feature_dim, card.num_classes, device="meta").to_empty(device="cpu")
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return Classifier(backbone, head, classifier.preprocess, card).eval()
