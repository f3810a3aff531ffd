"""What a ridge head would say without a group of rows, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def group_effect(second: Tensor, z: Tensor, residuals: Tensor) -> Tensor:
    """`D (p, C)` with `W_r = W - D`: the ridge solution without the group from the one with it; exact.

    second      `H = Z'Z + l2 I` of all rows, `(p, p)`
    z           inputs of the group, `(m, p)`
    residuals   `Y - Z W` of the group under the solution with it, `(m, C)`

    D = (H - Z_f'Z_f)^-1 Z_f' R_f [derived]. The sum over rows of z'D is what a datamodel of the head's logits predicts
    for the group. Effects of rows taken one at a time do not add up to it. float64.
    """
    z, residuals = z.double(), residuals.double()
    factor = torch.linalg.cholesky(second.double() - z.T @ z)
    return torch.cholesky_solve(z.T @ residuals, factor)


def ridge(z: Tensor, targets: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """`W (p, C)` that minimises `||Y - Z W||^2 + l2 ||W||^2`, and `H = Z'Z + l2 I`; float64."""
    z, targets = z.double(), targets.double()
    second = z.T @ z + l2 * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.cholesky_solve(z.T @ targets, torch.linalg.cholesky(second)), second
