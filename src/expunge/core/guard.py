"""The collapse guard: a map that distorts the retained features too much is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.core.head import LinearHead
from expunge.core.maps import AffineMap, FeatureMap
from expunge.core.moments import Moments
from expunge.system.errors import CollapseError


def class_contrasts(head: LinearHead) -> Tensor:
    """Return the head's weight less its mean over classes, `(C, d)` float64.

    A component common to all classes does not change which class has the largest logit.
    """
    weight = head.weight.double()
    return weight - weight.mean(dim=0)


def distortion_from_moments(fitted: AffineMap, retain: Moments, head: LinearHead | None = None) -> float:
    """Return `E ||P (f(z) - z)||^2 / tr(P Cov P^T)` over the rows of `retain`, computed exactly from their moments.

    `P` is the head's contrasts, or the identity without a head. The value is 0 for the identity map, and 1 for the map
    of every row onto the mean. [derived]
    """
    eye = torch.eye(retain.dim, dtype=torch.float64, device=retain.device)
    change = torch.cat([fitted.matrix() - eye, fitted.bias[:, None]], dim=1)
    cov = retain.cov(ddof=0)
    if head is not None:
        contrasts = class_contrasts(head).to(change)
        change, cov = contrasts @ change, contrasts @ cov @ contrasts.T
    return ratio(torch.sum((change @ retain.second(augmented=True)) * change), cov.trace())


def distortion(fitted: FeatureMap, z: Tensor, head: LinearHead | None = None) -> float:
    """Return the ratio of `distortion_from_moments` over a sample `z (n, d)` of retained features, for any map."""
    z = z.double()
    change, centred = fitted(z) - z, z - z.mean(dim=0)
    if head is not None:
        contrasts = class_contrasts(head).to(z)
        change, centred = change @ contrasts.T, centred @ contrasts.T
    return ratio(change.square().sum(), centred.square().sum())


def refuse_collapse(value: float, bound: float | None, method: str) -> None:
    """Raise CollapseError when the distortion `value` is above `bound` or NaN; a `bound` of None disables the guard."""
    if bound is not None and not value <= bound:
        raise CollapseError(
            f"{method}: the map distorts the retained features by {value:.3g} of their variance, but at most "
            f"{bound:g} is allowed (1 is the distortion of a map of every row onto the mean). Lower beta, or raise "
            "max_distortion"
        )


def ratio(numerator: Tensor, denominator: Tensor) -> float:
    """Return the ratio of two sums of squares.

    A numerator that rounding made negative counts as 0, and a denominator of 0 as the smallest positive number.
    """
    return float(numerator.clamp_min(0) / denominator.clamp_min(torch.finfo(torch.float64).tiny))
