"""Maps that project directions out: POUR-P, from the head alone, and ESC, from forgotten features alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.head import LinearHead, class_indices
from expunge.core.maps import AffineMap
from expunge.core.moments import Moments
from expunge.system.errors import ConfigError


class PourP(Estimator):
    """Project out the head row of the forgotten class (arXiv 2511.19339); no data are needed.

    `z' = (I - w w^T / |w|^2) z - shift w / |w|^2`, with `w` the head row of the forgotten class. For several classes
    the span of their rows is projected out. `shift` lowers each forgotten logit by that amount, so that the affine map
    has the effect of a logit mask; 0 is the published form.

    Fitted: `map_`.
    """

    facts: ClassVar[Facts] = Facts(("classes",), ("head",), "map", "closed form", "arXiv 2511.19339")
    map_: AffineMap

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def fit(self, head: LinearHead, forget_classes: int | Sequence[int]) -> PourP:
        """Fit from the head. Raises ValueError for a class that the head does not have, or if all are forgotten."""
        rows = head.weight[class_indices(forget_classes, head.num_classes)].double()
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        span = right[values > 1e-7 * values[0]].T
        # The shortest a with w . a = -shift for every forgotten row w (least squares where rows depend on each other).
        offset = torch.linalg.pinv(rows, rtol=1e-7) @ rows.new_full((len(rows),), -self.shift)
        self.map_ = AffineMap(span, offset, "remove")
        return self


class Esc(Estimator):
    """Project out the leading `percent` of the d directions of forgotten features, at least one (arXiv 2504.02199).

    The directions are the eigenvectors of the uncentred second moment. The published code drops 1.5 %.

    Fitted: `map_`, `rank_`, the number of directions dropped.
    """

    facts: ClassVar[Facts] = Facts(("classes", "rows"), ("moments",), "map", "closed form", "arXiv 2504.02199")
    map_: AffineMap
    rank_: int

    def __init__(self, percent: float = 1.5) -> None:
        self.percent = percent

    def fit(self, forget: Moments) -> Esc:
        """Fit from the moments of forgotten features alone."""
        if not 0 < self.percent < 100:
            raise ConfigError(f"percent must be between 0 and 100, got {self.percent!r}")
        self.rank_ = max(1, round(forget.dim * self.percent / 100))
        _, vectors = np.linalg.eigh(forget.second().cpu().numpy())
        top = torch.from_numpy(np.ascontiguousarray(vectors[:, -self.rank_ :])).to(forget.device)
        self.map_ = AffineMap(top, torch.zeros(forget.dim, device=forget.device), "remove")
        return self
