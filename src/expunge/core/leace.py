"""LEACE for the concept "is to be forgotten" (arXiv 2306.03819), from moments, with the package concept-erasure."""

from __future__ import annotations

from typing import ClassVar

import torch

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.maps import AffineMap
from expunge.core.moments import Moments


class Leace(Estimator):
    """The affine map nearest to the identity after which no linear probe separates forgotten from retained rows.

    The concept is standardised to mean 0 and variance 1, so that `svd_tol`, below which the package drops a singular
    value, is a correlation. With a 0/1 concept, requests of fewer than about 1e-4 of the rows would not be erased.
    `shrinkage` uses the package's shrunk covariance; otherwise the sample covariance is used.

    Fitted: `map_`.
    """

    facts: ClassVar[Facts] = Facts(("classes", "rows"), ("moments",), "map", "closed form", "arXiv 2306.03819")
    map_: AffineMap

    def __init__(self, shrinkage: bool = False, svd_tol: float = 1e-3) -> None:
        self.shrinkage = shrinkage
        self.svd_tol = svd_tol

    def fit(self, retain: Moments, forget: Moments) -> Leace:
        """Fit from the moments of retained and forgotten features."""
        from concept_erasure import LeaceFitter

        total = retain + forget
        share = forget.n / total.n
        fitter = LeaceFitter(
            total.dim, 1, shrinkage=self.shrinkage, svd_tol=self.svd_tol, dtype=torch.float64, device=total.device
        )
        fitter.n = torch.tensor(total.n, device=total.device)
        fitter.mean_x = total.mean
        fitter.sigma_xx_ = total.cov(ddof=0) * total.n
        spread = (share * (1 - share)) ** 0.5
        # For the 0/1 concept c with share p, the sum of (x - mean)(c - p) over rows is n p (1 - p) (mean_f - mean_r);
        # dividing it by the standard deviation of c, `spread`, standardises the concept.
        fitter.sigma_xz_ = (total.n * spread * (forget.mean - retain.mean))[:, None]
        eraser = fitter.eraser
        matrix = eraser.P
        self.map_ = AffineMap(matrix, total.mean - matrix @ total.mean)
        return self
