"""Representation Unlearning with a linear map (arXiv 2601.21564, regime a), from moments alone."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from expunge.core.estimator import Estimator
from expunge.core.guard import distortion_from_moments, refuse_collapse
from expunge.core.head import LinearHead
from expunge.core.maps import AffineMap
from expunge.core.moments import Moments
from expunge.errors import ConfigError

Loss = Literal["per-dimension", "published"]


class RepresentationLinear(Estimator):
    """Map forgotten features to the global mean and leave retained ones where they are, in least squares.

    L = 1/d E_r ||f(z + e) - z||^2 + beta k E_f E_ref ||f(z + e) - z_ref||^2,   e ~ N(0, noise_scale^2 I), z_ref from
    all rows

    loss            "per-dimension": k = 1/d, so beta weighs like with like; "published": k = 1, which weighs d times more
    solver          "exact": the minimum in closed form [derived]; "adam": full-batch Adam on the same loss
    steps           of Adam: a number, or "published": `epochs` passes over the forget set in batches of `batch_size`,
                    which is few steps for small requests
    max_distortion  the collapse guard: refuse a map with E_r ||f(z) - z||^2 / tr Cov_r above it (through the head's
                    contrasts when `fit` gets the head); None turns it off

    `RepresentationLinear.published(beta)` is the published configuration: that loss, Adam 1e-3 from the identity, that
    number of steps, no guard. Its mini-batches are replaced by their expectation, which moments give exactly.

    Fitted: `map_`, `objective_` (the loss without the constant tr Cov of z_ref), `distortion_`, `steps_`.
    """

    map_: AffineMap
    objective_: float
    distortion_: float
    steps_: int

    def __init__(
        self,
        beta: float = 0.1,
        solver: Literal["exact", "adam"] = "exact",
        loss: Loss = "per-dimension",
        noise_scale: float = 0.0,
        steps: int | Literal["published"] = 1000,
        lr: float = 1e-3,
        epochs: int = 10,
        batch_size: int = 256,
        max_distortion: float | None = 0.5,
    ) -> None:
        self.beta = beta
        self.solver = solver
        self.loss = loss
        self.noise_scale = noise_scale
        self.steps = steps
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_distortion = max_distortion

    @classmethod
    def published(cls, beta: float, epochs: int = 10) -> RepresentationLinear:
        """The published configuration; beta was searched in {1e-4 .. 1}. [code]"""
        return cls(beta, "adam", "published", steps="published", epochs=epochs, max_distortion=None)

    def fit(self, retain: Moments, forget: Moments, head: LinearHead | None = None) -> RepresentationLinear:
        """Fit from the moments of retained and forgotten features. Raises CollapseError, see `max_distortion`."""
        check_choices(self.solver, self.loss, self.beta)
        weight = self.beta * (retain.dim if self.loss == "published" else 1)
        problem = LeastSquares(retain, forget, weight, self.noise_scale)
        if self.solver == "exact":
            m, self.steps_ = problem.solve(), 0
        else:
            self.steps_ = step_count(self.steps, self.epochs, forget.n, self.batch_size)
            m = problem.adam(self.steps_, self.lr)
        fitted = AffineMap(m[:, :-1], m[:, -1])
        self.objective_ = problem.objective(m) / retain.dim
        self.distortion_ = distortion_from_moments(fitted, retain, head)
        refuse_collapse(self.distortion_, self.max_distortion, "RepresentationLinear")
        self.map_ = fitted
        return self


class LeastSquares:
    """`E_r ||M h(e) - z||^2 + w E_f ||M h(e) - mu||^2` over `M (d, d + 1)`, `h(e) = [z + e; 1]`, `mu` the mean of all
    rows.

    The mean over reference rows only adds the constant `w tr Cov(z_ref)`: E ||f - z_ref||^2 = E ||f - mu||^2 + tr Cov.
    [derived]
    """

    def __init__(self, retain: Moments, forget: Moments, weight: float, noise_scale: float) -> None:
        d = retain.dim
        mean = (retain.s + forget.s) / (retain.n + forget.n)
        second_f = forget.second(augmented=True)
        ridge = noise_scale**2 * (1 + weight)
        self.start = torch.cat([torch.eye(d), torch.zeros(d, 1)], dim=1).to(mean)
        self.gram = retain.second(augmented=True) + weight * second_f
        self.gram[:d, :d].diagonal().add_(ridge)
        # Half the gradient at the identity: w E_f[(z - mu) h^T] + ridge [I 0].
        self.gradient = weight * (second_f[:d] - torch.outer(mean, second_f[d])) + ridge * self.start
        # The loss at the identity: nothing on retained rows.
        self.floor = ridge * d + weight * float(forget.second_about(mean).trace())

    def objective(self, m: Tensor) -> float:
        """The loss, a sum over dimensions."""
        change = m - self.start
        return self.floor + float(2 * (change * self.gradient).sum() + ((change @ self.gram) * change).sum())

    def solve(self) -> Tensor:
        """The minimum; where no row tells (a singular gram), the one nearest to the identity."""
        return self.start - solve_gram(self.gram, self.gradient.T).T

    def adam(self, steps: int, lr: float) -> Tensor:
        """`steps` of full-batch Adam from the identity, on the mean over dimensions."""
        m = self.start.clone().requires_grad_()
        optimiser = torch.optim.Adam([m], lr=lr)
        for _ in range(steps):
            m.grad = (2 / m.shape[0]) * ((m.detach() - self.start) @ self.gram + self.gradient)
            optimiser.step()
        return m.detach()


def solve_gram(gram: Tensor, right: Tensor) -> Tensor:
    """`G^+ R` for a positive semi-definite `G`, all float64; by Cholesky where G is well conditioned."""
    factor, info = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal()
    if int(info) == 0 and float(pivots.min()) > 1e-6 * float(pivots.max()):
        solution: Tensor = torch.cholesky_solve(right, factor)
        return solution
    values, vectors = torch.linalg.eigh(gram)
    keep = values > gram.shape[0] * torch.finfo(gram.dtype).eps * values[-1]
    vectors = vectors[:, keep]
    return vectors @ ((vectors.T @ right) / values[keep, None])


def step_count(steps: int | Literal["published"], epochs: int, forget_rows: int, batch_size: int) -> int:
    """The number of optimiser steps; "published" is `epochs` passes over the forget set. [code]"""
    return epochs * math.ceil(forget_rows / batch_size) if steps == "published" else steps


def check_choices(solver: str, loss: str, beta: float) -> None:
    if solver not in ("exact", "adam"):
        raise ConfigError(f"solver must be exact or adam, got {solver!r}")
    if loss not in ("per-dimension", "published"):
        raise ConfigError(f"loss must be per-dimension or published, got {loss!r}")
    if not beta >= 0:
        raise ConfigError(f"beta must not be negative, got {beta!r}")
