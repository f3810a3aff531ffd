"""The effect of a group of rows on a ridge head, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def group_effect(second: Tensor, z: Tensor, residuals: Tensor) -> Tensor:
    """Return `D (p, C)` float64 such that `W_r = W - D` is exactly the ridge solution without the group.

    second      `H = Z'Z + l2 I` of all rows, `(p, p)`
    z           inputs of the group, `(m, p)`
    residuals   `Y - Z W` of the group under the solution with it, `(m, C)`

    D = (H - Z_f'Z_f)^-1 Z_f' R_f [derived]. For an input z, z'D is the effect that a datamodel of the head's logits
    predicts for the group. It is not the sum of the effects of removing each row alone.
    """
    z, residuals = z.double(), residuals.double()
    factor = torch.linalg.cholesky(second.double() - z.T @ z)
    return torch.cholesky_solve(z.T @ residuals, factor)


def ridge(z: Tensor, targets: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Return `W (p, C)`, which minimises `||Y - Z W||^2 + l2 ||W||^2`, and `H = Z'Z + l2 I`; both float64."""
    z, targets = z.double(), targets.double()
    second = z.T @ z + l2 * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.cholesky_solve(z.T @ targets, torch.linalg.cholesky(second)), second
