"""The collapse guard: a map that ruins the retained features is refused instead of returned."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.core.head import LinearHead
from expunge.core.maps import AffineMap, FeatureMap
from expunge.core.moments import Moments
from expunge.system.errors import CollapseError


def class_contrasts(head: LinearHead) -> Tensor:
    """The head's weight with the mean over classes taken off, `(C, d)` float64: what decides between classes."""
    weight = head.weight.double()
    return weight - weight.mean(dim=0)


def distortion_from_moments(fitted: AffineMap, retain: Moments, head: LinearHead | None = None) -> float:
    """`E ||P (f(z) - z)||^2 / tr(P Cov P^T)` over the rows of `retain`, exactly; `P` is the identity, or the head's
    contrasts.

    0 is the identity; 1 is what the map of every row onto the mean scores. [derived]
    """
    eye = torch.eye(retain.dim, dtype=torch.float64, device=retain.device)
    change = torch.cat([fitted.matrix() - eye, fitted.bias[:, None]], dim=1)
    cov = retain.cov(ddof=0)
    if head is not None:
        contrasts = class_contrasts(head).to(change)
        change, cov = contrasts @ change, contrasts @ cov @ contrasts.T
    return ratio(torch.sum((change @ retain.second(augmented=True)) * change), cov.trace())


def distortion(fitted: FeatureMap, z: Tensor, head: LinearHead | None = None) -> float:
    """The same ratio over a sample `z (n, d)` of retained features, for any map."""
    z = z.double()
    change, centred = fitted(z) - z, z - z.mean(dim=0)
    if head is not None:
        contrasts = class_contrasts(head).to(z)
        change, centred = change @ contrasts.T, centred @ contrasts.T
    return ratio(change.square().sum(), centred.square().sum())


def refuse_collapse(value: float, bound: float | None, method: str) -> None:
    """Raise CollapseError when the distortion `value` is above `bound`, or is not a number; None turns the guard
    off.
    """
    if bound is not None and not value <= bound:
        raise CollapseError(
            f"{method}: the map distorts retained features by {value:.3g} of their variance, more than {bound:g}; "
            "1 is what mapping every row onto the mean does. Lower beta, or raise max_distortion to accept it"
        )


def ratio(numerator: Tensor, denominator: Tensor) -> float:
    """Of two sums of squares: a denominator of zero counts as the smallest number, rounding below zero as zero."""
    return float(numerator.clamp_min(0) / denominator.clamp_min(torch.finfo(torch.float64).tiny))
