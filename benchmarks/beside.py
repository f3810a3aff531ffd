"""What the tables of methods have in common: which rows are shown, what a model answers, how far references are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from expunge.core import FeatureMap
from expunge.evaluation import divergence
from expunge.evaluation.measuring import Outputs
from expunge.models.classifier import Classifier

RETAINED_ROWS = 6000  # retained training rows that are evaluated; all others are
AT_ONCE = 500


def shown_rows(parts: np.ndarray) -> np.ndarray:
    """Dataset positions, ascending, of the rows in the table; `parts (n,)` says what each row is."""
    kept = np.random.default_rng(0).permutation(np.flatnonzero(parts == "retain"))[:RETAINED_ROWS]
    return np.sort(np.r_[kept, np.flatnonzero(parts != "retain")])


@torch.no_grad()
def answers(model: Classifier, images: np.ndarray, map_: FeatureMap | None = None) -> Outputs:
    """Logits and features of `images (n, h, w, c)`, with `map_` between backbone and head."""
    z = torch.cat([model.features(images[at : at + AT_ONCE]) for at in range(0, len(images), AT_ONCE)])
    z_prime = z if map_ is None else map_(z)
    return Outputs(model.head(z_prime).numpy(), z.numpy(), None if map_ is None else z_prime.numpy())


def distances(out: Outputs, references: Sequence[Outputs], forget: np.ndarray) -> dict[str, float]:
    """KL, JS and agreement with each reference on the rows `forget`, their means; nothing without references."""
    far = [divergence.summary(r.logits[forget], out.logits[forget]) for r in references]
    return {key: float(np.mean([f[key] for f in far])) for key in ("kl", "js", "agreement")} if far else {}
