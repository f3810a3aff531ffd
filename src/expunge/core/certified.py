"""Certified removal for a linear head (Guo, Goldstein, Hannun, van der Maaten, arXiv 1911.03030)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.core.convex import LinearProblem, PointLoss, minimise, one_vs_rest_logistic, one_vs_rest_squared
from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.head import LinearHead
from expunge.core.maps import AffineMap, identity
from expunge.core.moments import Moments, as_features
from expunge.core.newton_cg import conjugate_gradients
from expunge.core.representation import check_choice
from expunge.core.secret_noise import secret_normal
from expunge.system.errors import DataError, QualityError

# The largest |l'''|: how fast the curvature of the loss changes along a logit. (The paper uses 1/4 for the logistic.)
LIPSCHITZ = {"logistic": 1 / (6 * math.sqrt(3)), "squared": 0.0}


class CertifiedRemoval(Estimator):
    """One-vs-rest heads trained with objective perturbation, from which rows are removed by one Newton step.

    Training minimises, for every class, `sum l(w . x, y) + l2 n / 2 ||w||^2 + b . w` with `b ~ N(0, sigma^2 I)` and
    `x = [z / radius; 1] / sqrt 2`, whose length is at most 1. A removal subtracts `H^-1 grad`, the Newton step on the
    remaining rows. The norm of the gradient that is left is bounded, and the bounds of all requests are added up.
    While the sum is at most `sigma epsilon / sqrt(2 ln(1.5 / delta))`, the head is (epsilon, delta)-indistinguishable
    from one trained on the remaining rows [paper, theorem 3, over all classes together]. A removal that would exceed
    this budget is refused, and the head must be trained again.

    The bound per step is `lipschitz / 2 ||X|| ||(x_i . v)^2||` over the retained rows, with v the step, plus the
    residual of conjugate gradients [derived: the paper's corollary 2 with the fourth power of the changes of logits,
    so it is never larger]. With `loss="squared"` the curvature is constant, so a removal is exact up to rounding.

    The certificate covers the head alone. It says nothing about a backbone that was trained on the rows, so `fit`
    refuses that case. The noise is secret (see `secret_normal`), so a head cannot be reproduced bit for bit.

    radius      a constant chosen independently of the rows; longer rows are shortened to it. None takes the norm of the
                longest row of `radius_of`; a removal after which no remaining row is as long is refused
    delta       None takes a tenth of 1 / n. With 1 / n or more no guarantee is claimed, because (epsilon, delta) then
                allows a head that reveals a row

    Fitted: `head_`, `weights_` `(C, d + 1)` float64 (of the scaled features), `map_` (the identity), `budget_`,
    `spent_` (gradient norms), `epsilon_spent_`, `removed_`, `delta_`, `radius_`, and `why_not_`, the reason why nothing
    is claimed (None where the certificate holds).
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows"),
        ("features", "retained rows", "deletable model"),
        "head",
        "features only",
        "arXiv 1911.03030",
    )
    head_: LinearHead
    map_: AffineMap
    budget_: float
    spent_: float
    removed_: int
    radius_: float
    delta_: float
    why_not_: str | None

    def __init__(
        self,
        l2: float = 1e-4,
        sigma: float = 1.0,
        epsilon: float = 1.0,
        delta: float | None = None,
        loss: Literal["logistic", "squared"] = "logistic",
        radius: float | None = None,
        tol: float = 1e-10,
        steps: int = 1000,
    ) -> None:
        self.l2 = l2
        self.sigma = sigma
        self.epsilon = epsilon
        self.delta = delta
        self.loss = loss
        self.radius = radius
        self.tol = tol
        self.steps = steps

    @property
    def epsilon_spent_(self) -> float:
        """The epsilon spent so far at `delta_`, including `epsilon_before` of earlier releases."""
        return self.epsilon * self.spent_ / self.budget_

    def fit(
        self,
        head: LinearHead,
        z: Tensor,
        labels: Tensor,
        *,
        saw_forget_data: bool,
        radius_of: Tensor | None = None,
        epsilon_before: float = 0.0,
        noise: Tensor | None = None,
    ) -> CertifiedRemoval:
        """Train on all rows `z (n, d)`, `labels (n,)`; only the number of classes and features is taken from `head`.

        `radius_of (k, d)`: retained rows that determine the radius, so that it does not depend on the removed rows;
        None takes all rows. `epsilon_before`: the epsilon that earlier releases from these rows have spent; it counts
        against `epsilon` [basic composition]. `noise (C, d + 1)`: standard normal noise for tests; because the caller
        knows it, no guarantee is claimed. Raises DataError where the backbone was trained on the rows to be forgotten.
        """
        if saw_forget_data:
            raise DataError(
                "certified removal covers only the head, but this backbone was trained on the forgotten rows; use a "
                "backbone that never saw them, or another method"
            )
        check_choice("loss", self.loss, ("logistic", "squared"))
        z = as_features(z, head.dim)
        longest = _longest(z if radius_of is None else as_features(radius_of, head.dim))
        self.radius_ = longest if self.radius is None else self.radius
        x, n = self._inputs(z), len(z)
        self.delta_ = 0.1 / n if self.delta is None else self.delta
        self.why_not_ = None
        if noise is not None:
            self.why_not_ = "the noise was given by the caller and is therefore not secret"
        elif self.delta_ >= 1 / n:
            self.why_not_ = f"delta must be below 1/n = {1 / n:.3g}, but it is {self.delta_:.3g}"
        noise = (secret_normal(head.num_classes, head.dim + 1) if noise is None else noise.double()).to(x.device)
        ridge = torch.full((head.dim + 1,), self.l2, dtype=torch.float64, device=x.device)
        problem = LinearProblem(x, labels.long(), self._point_loss, ridge, self.sigma * noise / n)
        second = Moments.of(x).second()
        # The metric only scales the coordinates; 1/4 is the largest curvature of the logistic loss.
        found = minimise(problem, torch.zeros_like(noise), 0.25 * second + torch.diag(ridge), self.tol, self.steps)
        self.weights_ = found.p
        # Rows are only removed, so the spectral norm of the training inputs remains an upper bound.
        self._norm = math.sqrt(n * float(torch.linalg.eigvalsh(second)[-1]))
        self.budget_ = self.sigma * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta_))
        self.spent_ = n * found.gradient_norm + self.budget_ * epsilon_before / self.epsilon
        self.removed_ = 0
        self.map_ = identity(head.dim)
        self.head_ = self._head()
        return self

    def remove(
        self, z_retain: Tensor, labels_retain: Tensor, z_forget: Tensor, labels_forget: Tensor
    ) -> CertifiedRemoval:
        """Remove `z_forget (m, d)` from the head; `z_retain (n - m, d)` are all remaining rows.

        Raises QualityError and changes nothing when the step would exceed the budget, or when the longest row, which
        determines the radius, is among the removed rows.
        """
        if self.radius is None and _longest(z_retain) < self.radius_ * (1 - 1e-6):
            raise QualityError(
                f"the row with the largest norm, {self.radius_:.4g}, is among the forgotten rows, so the scale of "
                "the features would reveal it; set fit.NAME.radius to a value that does not depend on the rows"
            )
        x, x_f = self._inputs(z_retain), self._inputs(z_forget)
        ridge = self.l2 * len(x)
        _, slope = self._point_loss(x_f @ self.weights_.T, labels_forget.long())
        gradient = slope.T @ x_f + self.l2 * len(x_f) * self.weights_
        curvature = self._curvature(x @ self.weights_.T)
        step, left = solve_by_class(x, curvature, ridge, gradient, self.tol)
        change = (x @ step.T).square().norm(dim=0)
        bound = float((0.5 * LIPSCHITZ[self.loss] * self._norm * change + left).norm())
        if self.spent_ + bound > self.budget_:
            raise QualityError(
                f"removing {len(x_f)} rows would raise the gradient residual to {self.spent_ + bound:.3g}, but "
                f"epsilon {self.epsilon:g}, delta {self.delta_:g} and sigma {self.sigma:g} allow only "
                f"{self.budget_:.3g}; train the head again on the retained rows"
            )
        self.weights_ = self.weights_ + step
        self.spent_ += bound
        self.removed_ += len(x_f)
        self.head_ = self._head()
        return self

    def _inputs(self, z: Tensor) -> Tensor:
        """Return the inputs `x (n, d + 1)` float64: rows scaled by the radius, with a constant, of norm at most 1."""
        z = z.double() / self.radius_
        z = z / z.norm(dim=1, keepdim=True).clamp_min(1.0)
        return torch.cat([z, z.new_ones(len(z), 1)], dim=1) / math.sqrt(2)

    def _head(self) -> LinearHead:
        return LinearHead(self.weights_[:, :-1] / (self.radius_ * math.sqrt(2)), self.weights_[:, -1] / math.sqrt(2))

    @property
    def _point_loss(self) -> PointLoss:
        return one_vs_rest_logistic if self.loss == "logistic" else one_vs_rest_squared

    def _curvature(self, logits: Tensor) -> Tensor:
        """The second derivative of the loss, `(n, C)`; it does not depend on the sign of the label for either loss."""
        return torch.ones_like(logits) if self.loss == "squared" else torch.sigmoid(logits) * torch.sigmoid(-logits)


def _longest(z: Tensor) -> float:
    return float(z.double().norm(dim=1).max())


def solve_by_class(x: Tensor, curvature: Tensor, ridge: float, right: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Solve `(sum_i curvature_ic x_i x_i^T + ridge I) v_c = right_c` for every class c without forming the matrices.

    The preconditioner is the matrix with the mean curvature in place of each row's, factored once for all classes.
    Returns `v (C, p)`, whose residual is at most `tol` times the norm of `right`, and the norms of its residuals
    `(C,)`.
    """
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(float(curvature.mean()) * (x.T @ x) + ridge * eye)

    def product(v: Tensor) -> Tensor:
        return (curvature * (x @ v.T)).T @ x + ridge * v

    v, _ = conjugate_gradients(
        product, right, lambda residual: torch.cholesky_solve(residual.T, factor).T, tol * float(right.norm())
    )
    return v, (right - product(v)).norm(dim=1)
