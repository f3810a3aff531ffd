"""Newton's method with conjugate gradients for a softmax head, whose loss is strongly convex with a ridge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 19  # numbers in a chunk of rows, which stays in the cache for both products with it
SUFFICIENT = 1e-4  # share of the linear decrease that a step must achieve (Armijo)
HALVINGS = 30

Apply = Callable[[Tensor], Tensor]  # (C, p) float64 -> (C, p) float64


@dataclass(frozen=True, eq=False)
class Point:
    """The value, the gradient `(C, p)` float64 and the probabilities `(n, C)` at some weights."""

    value: float
    gradient: Tensor
    probabilities: Tensor


@dataclass(frozen=True, eq=False)
class SoftmaxProblem:
    """`L(W) = 1/n sum_i (logsumexp(W h_i) - (W h_i)_{y_i}) + ridge/2 |W|^2` over `W (C, p)`, `h = [z; 1]`.

    `z (n, d)` floating, `y (n,)` int64. Values and gradients are computed in float64, products with the Hessian in
    the dtype of `z` (float32 at least). Without rows the mean is zero.
    """

    z: Tensor
    y: Tensor
    ridge: float

    def chunks(self) -> list[tuple[Tensor, Tensor]]:
        """Return the rows in parts `(z, y)` that bound the working memory; no part if there are no rows."""
        rows = max(256, CHUNK_NUMBERS // max(1, self.z.shape[1]))
        return list(zip(torch.split(self.z, rows), torch.split(self.y, rows), strict=True)) if len(self.y) else []

    def at(self, w: Tensor) -> Point:
        """Evaluate at `w (C, p)` float64; the probabilities have the dtype of `z`, float32 at least."""
        value, gradient, shares = 0.0, torch.zeros_like(w), []
        for z, y in self.chunks():
            z = z.double()
            logits = torch.addmm(w[:, -1], z, w[:, :-1].T)
            log_p = torch.log_softmax(logits, dim=1)
            value -= float(log_p.gather(1, y[:, None]).sum())
            p = log_p.exp()
            shares.append(p.to(self.dtype, copy=True))
            p[torch.arange(len(y), device=y.device), y] -= 1
            gradient[:, :-1].addmm_(p.T, z)
            gradient[:, -1] += p.sum(dim=0)
        n = max(1, len(self.y))
        probabilities = torch.cat(shares) if shares else w.new_zeros(0, len(w)).to(self.dtype)
        value = value / n + 0.5 * self.ridge * float(w.square().sum())
        return Point(value, gradient / n + self.ridge * w, probabilities)

    def changed(self, w: Tensor, point: Point, more: SoftmaxProblem, sign: int) -> Point:
        """Return the point at `w` with the rows of `more` added, or removed for `sign` -1.

        `point` is the point of `self` at `w`, so no pass over the rows of `self` is needed. The probabilities are those
        of `point`; the caller moves them along with the rows.
        """
        own, other, n, k = point, more.at(w), len(self.y), len(more.y)
        penalty, slope = 0.5 * self.ridge * float(w.square().sum()), self.ridge * w
        total = max(1, n + sign * k)
        value = (n * (own.value - penalty) + sign * k * (other.value - penalty)) / total + penalty
        gradient = (n * (own.gradient - slope) + sign * k * (other.gradient - slope)) / total + slope
        return Point(value, gradient, own.probabilities)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of probabilities and of products with the Hessian."""
        return torch.promote_types(self.z.dtype, torch.float32)

    def hessian(self, probabilities: Tensor) -> Apply:
        """Return the product with the Hessian, where `p_i` are the rows of `probabilities (n, C)`:

        `V -> 1/n sum_i (diag p_i - p_i p_i^T) V h_i h_i^T + ridge V`.
        """
        parts = list(zip(self.chunks(), torch.split(probabilities, self._rows()), strict=True)) if len(self.y) else []
        n = max(1, len(self.y))

        def product(v: Tensor) -> Tensor:
            low, out = v.to(self.dtype), torch.zeros_like(v)
            for (z, _), p in parts:
                z = z.to(self.dtype)
                u = torch.addmm(low[:, -1], z, low[:, :-1].T)
                u = p * (u - (p * u).sum(dim=1, keepdim=True))
                out[:, :-1] += u.T @ z
                out[:, -1] += u.sum(dim=0)
            return out / n + self.ridge * v

        return product

    def _rows(self) -> int:
        return max(256, CHUNK_NUMBERS // max(1, self.z.shape[1]))


@dataclass(frozen=True, eq=False)
class Solution:
    """The solution `w (C, p)` float64, the point there, and the numbers of Newton steps and of Hessian products."""

    w: Tensor
    point: Point
    steps: int
    products: int


def newton_cg(
    problem: SoftmaxProblem,
    start: Tensor,
    precondition: Callable[[Tensor, Tensor], Apply],
    tol: float,
    steps: int,
    scale: float | None = None,
    known: Point | None = None,
    on_pass: Callable[[float], None] | None = None,
) -> Solution:
    """Minimise from `start (C, p)` until the Euclidean norm of the gradient is at most `tol`, or after `steps`.

    `precondition(w, probabilities)` returns a positive definite approximate inverse of the Hessian for each step, and
    `known` is the point at `start`, if it has been computed. Each linear system is solved to the relative residual
    `min(1/10, sqrt(|g| / scale))`, but no further than `tol` needs (Dembo, Eisenstat, Steihaug 1982; Nocedal and
    Wright, algorithm 7.1). `scale` is the norm of the gradient at weight zero; None takes that at `start`. Steps are
    halved until the value decreases. `on_pass` is called with the norm of the gradient after each Hessian product.
    """
    w, products, step = start, 0, 0
    point = known or problem.at(w)
    norm = float(point.gradient.norm())
    first = max(norm if scale is None else scale, torch.finfo(torch.float64).tiny)
    while norm > tol and step < steps:
        apply = precondition(w, point.probabilities)
        forcing = max(min(0.1, math.sqrt(norm / first)), 0.3 * tol / norm)
        product = _watched(problem.hessian(point.probabilities), norm, on_pass)
        direction, used = conjugate_gradients(product, point.gradient, apply, forcing * norm)
        products += used
        found = _line_search(problem, w, point, direction)
        if found is None:
            break
        w, point = found
        norm = float(point.gradient.norm())
        step += 1
    return Solution(w, point, step, products)


def _watched(product: Apply, norm: float, on_pass: Callable[[float], None] | None) -> Apply:
    if on_pass is None:
        return product

    def watched(x: Tensor) -> Tensor:
        image = product(x)
        on_pass(norm)
        return image

    return watched


def _line_search(problem: SoftmaxProblem, w: Tensor, point: Point, direction: Tensor) -> tuple[Tensor, Point] | None:
    """Return the first of `w - direction`, `w - direction / 2`, ... that satisfies Armijo's rule, or None."""
    slope, length = float((point.gradient * direction).sum()), 1.0
    for _ in range(HALVINGS):
        trial = w - length * direction
        new = problem.at(trial)
        # Near the optimum the values differ by less than rounding, so a smaller gradient is accepted instead.
        flat = new.value <= point.value + 1e-13 * abs(point.value)
        if new.value <= point.value - SUFFICIENT * length * slope or (
            flat and float(new.gradient.norm()) < float(point.gradient.norm())
        ):
            return trial, new
        length /= 2
    return None


def conjugate_gradients(product: Apply, right: Tensor, precondition: Apply, tol: float) -> tuple[Tensor, int]:
    """Solve `product(x) = right` from zero with a preconditioner, to a residual of norm `tol`.

    Returns x and the number of products.
    """
    x, residual = torch.zeros_like(right), right.clone()
    solved = precondition(residual)
    direction, strength = solved, float((residual * solved).sum())
    used = 0
    while float(residual.norm()) > tol and used < right.numel():
        image = product(direction)
        used += 1
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        length = strength / curvature
        x = x + length * direction
        residual = residual - length * image
        solved = precondition(residual)
        new = float((residual * solved).sum())
        direction, strength = solved + (new / strength) * direction, new
    return x, used
