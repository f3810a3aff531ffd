"""Representation Unlearning with a linear map (arXiv 2601.21564, regime a), from moments alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.core.estimator import Estimator, History, is_recorded
from expunge.core.facts import Facts
from expunge.core.guard import distortion_from_moments, refuse_collapse
from expunge.core.head import LinearHead
from expunge.core.maps import AffineMap
from expunge.core.moments import Moments
from expunge.system.errors import ConfigError

Loss = Literal["per-dimension", "published"]


class RepresentationLinear(Estimator):
    """The affine map that sends forgotten features to the global mean and keeps retained ones, by least squares.

    L = 1/d E_r ||f(z + e) - z||^2 + beta k E_f E_ref ||f(z + e) - z_ref||^2,

    with e ~ N(0, noise_scale^2 I), and z_ref drawn from all rows.

    loss            "per-dimension": k = 1/d, so that both terms are means over dimensions; "published": k = 1, which
                    gives the forget term d times the weight
    solver          "exact": the minimum in closed form [derived]; "adam": full-batch Adam on the same loss
    steps           of Adam: a number, or "published": `epochs` passes over the forget set in batches of `batch_size`,
                    which is few steps for small requests
    max_distortion  the collapse guard: a map is refused where E_r ||f(z) - z||^2 / tr Cov_r exceeds it (measured
                    through the head's contrasts when `fit` gets the head); None disables the guard

    `RepresentationLinear.published(beta)` is the published configuration: loss and steps "published", Adam at 1e-3
    from the identity, no guard. Mini-batches are replaced by their expectation, which the moments give exactly.

    Fitted: `map_`, `objective_` (the loss without the constant tr Cov of z_ref), `distortion_`, `steps_`, `history_`
    (the objective along Adam's steps; empty for the exact solver).
    """

    facts: ClassVar[Facts] = Facts(("classes", "rows"), ("moments", "head"), "map", "closed form", "arXiv 2601.21564")
    map_: AffineMap
    objective_: float
    distortion_: float
    steps_: int
    history_: History

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
        """Return the published configuration; the paper's code searches beta in {1e-4 .. 1}. [code]"""
        return cls(beta, "adam", "published", steps="published", epochs=epochs, max_distortion=None)

    def fit(self, retain: Moments, forget: Moments, head: LinearHead | None = None) -> RepresentationLinear:
        """Fit from the moments of retained and forgotten features. Raises CollapseError, see `max_distortion`."""
        check_choice("solver", self.solver, ("exact", "adam"))
        problem = two_set_problem(retain, forget, forget_weight(self.beta, self.loss, retain.dim), self.noise_scale)
        self.steps_ = 0 if self.solver == "exact" else step_count(self.steps, self.epochs, forget.n, self.batch_size)
        m, history = (problem.solve(), []) if self.solver == "exact" else problem.adam(self.steps_, self.lr)
        self.history_ = [{**point, "loss": point["loss"] / retain.dim} for point in history]
        fitted = AffineMap(m[:, :-1], m[:, -1])
        self.objective_ = problem.objective(m) / retain.dim
        self.distortion_ = distortion_from_moments(fitted, retain, head)
        refuse_collapse(self.distortion_, self.max_distortion, "RepresentationLinear")
        self.map_ = fitted
        return self


@dataclass(frozen=True)
class LeastSquares:
    """The loss `floor + 2 <D, gradient> + <D gram, D>` with `D = M - [I 0]`, over affine maps `M (d, d + 1)`; float64.

    `gradient` is half the gradient of the loss at the identity, and `floor` is its value there.
    """

    gram: Tensor
    gradient: Tensor
    floor: float

    @property
    def start(self) -> Tensor:
        """The identity map `[I 0]`, `(d, d + 1)`."""
        d = self.gradient.shape[0]
        return torch.eye(d, d + 1, dtype=torch.float64, device=self.gram.device)

    def objective(self, m: Tensor) -> float:
        """Return the loss at `m (d, d + 1)`, summed over dimensions."""
        change = m - self.start
        return self.floor + float(2 * (change * self.gradient).sum() + ((change @ self.gram) * change).sum())

    def solve(self) -> Tensor:
        """Return the minimiser `(d, d + 1)`; where the gram is singular, the one nearest to the identity."""
        return self.start - solve_gram(self.gram, self.gradient.T).T

    def adam(self, steps: int, lr: float) -> tuple[Tensor, History]:
        """Take `steps` steps of full-batch Adam from the identity; return the map and the history of the loss.

        Adam's steps do not depend on a constant factor of the loss.
        """
        start = self.start
        m = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([m], lr=lr)
        history: History = []
        for step in range(1, steps + 1):
            m.grad = (2 / m.shape[0]) * ((m.detach() - start) @ self.gram + self.gradient)
            optimiser.step()
            if is_recorded(step, steps):
                history.append({"step": step, "loss": self.objective(m.detach())})
        return m.detach(), history


def two_set_problem(retain: Moments, forget: Moments, weight: float, noise_scale: float) -> LeastSquares:
    """Return the problem `E_r ||M h(e) - z||^2 + w E_f ||M h(e) - mu||^2`, `h(e) = [z + e; 1]`, `mu` the mean of all.

    Since E ||f - z_ref||^2 = E ||f - mu||^2 + tr Cov(z_ref), the reference rows only add a constant. [derived]
    """
    d = retain.dim
    mean = (retain.s + forget.s) / (retain.n + forget.n)
    second = forget.second(augmented=True)
    gradient = weight * (second[:d] - torch.outer(mean, second[d]))
    floor = weight * float(forget.second_about(mean).trace())
    problem = LeastSquares(retain.second(augmented=True) + weight * second, gradient, floor)
    return with_noise(problem, noise_scale**2 * (1 + weight))


def with_noise(problem: LeastSquares, ridge: float) -> LeastSquares:
    """Return the problem with `ridge ||A||^2` added, the effect of input noise on the expected loss of `M = [A a]`."""
    d = problem.gradient.shape[0]
    ridged = torch.zeros_like(problem.gram)
    ridged[:d, :d].diagonal().fill_(ridge)
    return LeastSquares(problem.gram + ridged, problem.gradient + ridged[:d], problem.floor + ridge * d)


def solve_gram(gram: Tensor, right: Tensor) -> Tensor:
    """Return `G^+ R` for a positive semi-definite `G`, all float64; by Cholesky where G is well conditioned."""
    factor, info = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal()
    if int(info) == 0 and float(pivots.min()) > 1e-6 * float(pivots.max()):
        solution: Tensor = torch.cholesky_solve(right, factor)
        return solution
    values, vectors = torch.linalg.eigh(gram)
    keep = values > gram.shape[0] * torch.finfo(gram.dtype).eps * values[-1]
    vectors = vectors[:, keep]
    solution = vectors @ ((vectors.T @ right) / values[keep, None])
    return solution


def step_count(steps: int | Literal["published"], epochs: int, forget_rows: int, batch_size: int) -> int:
    """Return the number of optimiser steps; "published" is `epochs` passes over the forget set. [code]"""
    return epochs * math.ceil(forget_rows / batch_size) if steps == "published" else steps


def forget_weight(beta: float, loss: str, dim: int) -> float:
    """Return the weight of the forget loss relative to the retain loss, both summed over dimensions.

    Raises ConfigError for an unknown `loss` or a negative `beta`.
    """
    check_choice("loss", loss, ("per-dimension", "published"))
    if not beta >= 0:
        raise ConfigError(f"beta must not be negative, got {beta!r}")
    return beta * (dim if loss == "published" else 1)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError, naming the argument and its choices, unless `value` is one of them."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
