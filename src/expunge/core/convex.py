"""Convex losses of a linear head over feature rows, minimised to the optimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK_ROWS = 16384

# Takes logits (n, C) and labels (n,); returns the loss summed over rows and its gradient in the logits (n, C).
PointLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LinearProblem:
    """The problem of minimising `1/n sum loss(P x, y) + 1/2 sum ridge_j P_ij^2 + <linear, P>` over `P (C, p)`.

    Products with `x (n, p)` are computed in its dtype and summed in float64. `ridge (p,)` and `linear (C, p)` are
    float64.
    """

    x: Tensor
    labels: Tensor
    loss: PointLoss
    ridge: Tensor
    linear: Tensor | float = 0.0

    def value_and_gradient(self, p: Tensor) -> tuple[float, Tensor]:
        """Return the value and the gradient `(C, p)` float64 at `p (C, p)` float64."""
        n, weight = self.x.shape[0], p.to(self.x.dtype)
        value, gradient = torch.zeros((), dtype=torch.float64, device=p.device), torch.zeros_like(p)
        for x, labels in zip(torch.split(self.x, CHUNK_ROWS), torch.split(self.labels, CHUNK_ROWS), strict=True):
            chunk_value, slope = self.loss(x @ weight.T, labels)
            value += chunk_value
            gradient += slope.T @ x
        penalty = 0.5 * (self.ridge * p.square()).sum() + (self.linear * p).sum()
        return float(value / n + penalty), gradient / n + self.ridge * p + self.linear


@dataclass(frozen=True)
class Minimum:
    """The solution `p (C, p)` float64, the Euclidean norm of the gradient there, and the number of L-BFGS steps."""

    p: Tensor
    gradient_norm: float
    steps: int


def minimise(problem: LinearProblem, start: Tensor, metric: Tensor, tol: float, steps: int) -> Minimum:
    """Minimise with L-BFGS in coordinates in which `metric (p, p)`, an approximate Hessian per class, is the identity.

    Stops when no entry of the gradient in these coordinates exceeds `tol`, or after `steps`.
    """
    # Directions without features and without ridge would make the metric singular; their gradient is zero.
    metric = metric.clone()
    metric.diagonal().add_(1e-10 * float(metric.diagonal().max()))
    factor = torch.linalg.cholesky(metric)

    def to_p(q: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(factor.T, q.T, upper=True)
        return solved.T

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        p = to_p(torch.from_numpy(flat).view_as(start).to(start.device))
        value, gradient = problem.value_and_gradient(p)
        gradient = torch.linalg.solve_triangular(factor, gradient.T, upper=False).T
        return value, gradient.cpu().contiguous().numpy().ravel()

    import scipy.optimize  # imported here because it takes a quarter of a second and only these fits need it

    found = scipy.optimize.minimize(
        objective,
        (start @ factor).cpu().contiguous().numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "gtol": tol, "ftol": 0.0},
    )
    p = to_p(torch.from_numpy(found.x).view_as(start).to(start.device))
    return Minimum(p, float(problem.value_and_gradient(p)[1].norm()), int(found.nit))


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax cross-entropy summed over rows, and its gradient `(n, C)`."""
    log_p = torch.log_softmax(logits, dim=1)
    rows = torch.arange(len(labels), device=logits.device)
    slope = log_p.exp()
    slope[rows, labels] -= 1
    return -log_p[rows, labels].sum(dtype=torch.float64), slope


def signs(labels: Tensor, like: Tensor) -> Tensor:
    """Return the targets `(n, C)`: +1 for a row's own class, -1 for the others."""
    targets = torch.full_like(like, -1.0)
    targets[torch.arange(len(labels), device=like.device), labels] = 1.0
    return targets


def one_vs_rest_logistic(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the binary logistic losses, one per class, summed over rows and classes, and their gradient `(n, C)`."""
    y = signs(labels, logits)
    return torch.nn.functional.softplus(-y * logits).sum(dtype=torch.float64), -y * torch.sigmoid(-y * logits)


def one_vs_rest_squared(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the squared distance to the targets +1 and -1, summed over rows and classes, and its gradient."""
    residual = logits - signs(labels, logits)
    return 0.5 * residual.square().sum(dtype=torch.float64), residual
