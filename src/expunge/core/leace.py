"""LEACE with the concept "is to be forgotten" (arXiv 2306.03819), from moments, through the package concept-erasure."""

from __future__ import annotations

from typing import ClassVar

import torch

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.maps import AffineMap
from expunge.core.moments import Moments


class Leace(Estimator):
    """The affine map nearest to the identity after which no linear probe tells forgotten from retained rows.

    The concept is standardised (mean 0, variance 1), so that `svd_tol`, below which the package drops a singular value,
    is a correlation and does not hide small requests: for a 0/1 concept it would stop erasing at 1e-4 of the rows.
    `shrinkage` is the package's shrunk covariance; off, the covariance is the sample's own.

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
        # sum over rows of (x - mean)(c - mean c) for the 0/1 concept c is n p (1 - p) (mean_f - mean_r).
        fitter.sigma_xz_ = (total.n * spread * (forget.mean - retain.mean))[:, None]
        eraser = fitter.eraser
        matrix = eraser.P
        self.map_ = AffineMap(matrix, total.mean - matrix @ total.mean)
        return self
