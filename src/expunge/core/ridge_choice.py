"""The ridge and the temperature of a ridge head, chosen on leave-one-out grounds from rows or sums that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.core.cholesky import Factor
from expunge.core.class_sums import ClassSums, as_labelled
from expunge.system.errors import DataError

CHUNK_ROWS = 4096
TEMPERATURES = (1e-3, 10.0)  # the least and the largest


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Per row: what the head that never had it would be wrong by, `residuals (n, C)` float64, `y - scores`, and the
    row's `leverages (n,)` `h^T (S + ridge I)^-1 h`, in [0, 1)."""

    residuals: Tensor
    leverages: Tensor

    @property
    def scores(self) -> Tensor:
        """The memorisation score of each row, `(n,)` >= 0: by how much having the row changes its own prediction.

        The norm of `e_i / (1 - h_i) - e_i`, the leave-one-out residual less the residual. [derived]
        """
        change: Tensor = self.residuals.norm(dim=1) * self.leverages
        return change

    @property
    def press(self) -> float:
        """The mean squared residual over rows and classes."""
        return float(self.residuals.square().mean()) if len(self.residuals) else 0.0


def checked_rows(
    kept: tuple[Tensor | np.ndarray, Tensor | np.ndarray] | None, needed: bool, sums: ClassSums, n: int
) -> tuple[Tensor, Tensor] | None:
    """`kept`, features and labels, after checking that it is there where it is `needed` and has the `n` rows that the
    head will have. Raises DataError."""
    if kept is None:
        if needed:
            raise DataError(
                "ridge press and temperature leave-one-out are chosen from rows: give kept=(z, y), "
                "the rows that are there afterwards, or fix both"
            )
        return None
    z, y = as_labelled(*kept, sums.dim, sums.num_classes)
    if len(y) != n:
        raise DataError(f"kept has {len(y)} rows, but the head has {n} afterwards")
    return z, y


def chunks(sums: ClassSums, z: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """`h (k, p)` and one-hot labels `(k, C)`, float64, of rows that `as_labelled` passed."""
    for part, labels in zip(torch.split(z, CHUNK_ROWS), torch.split(y, CHUNK_ROWS), strict=True):
        h = sums.augmented(part)
        yield h, torch.nn.functional.one_hot(labels, sums.num_classes).to(h)


def leave_one_out(sums: ClassSums, factor: Factor, weights: Tensor, z: Tensor, y: Tensor) -> LeaveOneOut:
    """Of rows that are all among those of the head: `e_i / (1 - h_i)` [Allen's PRESS, 1974]; `O(n p^2)`."""
    residuals, leverages = [], []
    for h, onehot in chunks(sums, z, y):
        leverage = (h.T * factor.solve(h.T)).sum(dim=0)
        residuals.append((onehot - h @ weights) / (1 - leverage)[:, None])
        leverages.append(leverage)
    return LeaveOneOut(torch.cat(residuals), torch.cat(leverages))


def leave_group_out(sums: ClassSums, factor: Factor, weights: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """`(I - K)^-1 (Y - H W)`, `K = H P H^T`, `(k, C)`: residuals of rows that are all left out together. [derived]"""
    h = sums.augmented(z)
    onehot = torch.nn.functional.one_hot(y, sums.num_classes).to(h)
    inside = h @ factor.solve(h.T)
    eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
    left: Tensor = torch.linalg.solve(eye - inside, onehot - h @ weights)
    return left


def choose_ridge(
    ridge: float | str, sums: ClassSums, rows: tuple[Tensor, Tensor] | None, grid: Sequence[float]
) -> float:
    """The number `ridge`, or what "gcv" or "press" choose from `grid`; "press" wants the rows of the head."""
    if ridge == "gcv":
        return choose_by_gcv(sums, grid)
    if ridge == "press":
        assert rows is not None
        return choose_by_press(sums, *rows, grid)
    return float(ridge)


def check_choice(name: str, value: float | str, words: Sequence[str]) -> None:
    """Raise ValueError unless `value` is positive or one of `words`."""
    good = value in words if isinstance(value, str) else math.isfinite(value) and value > 0
    if not good:
        raise ValueError(f"{name} must be positive or one of {', '.join(words)}, got {value!r}")


def check_grid(grid: Sequence[float]) -> tuple[float, ...]:
    if not grid or any(not (math.isfinite(r) and r > 0) for r in grid):
        raise ValueError(f"grid must hold positive ridges, got {list(grid)}")
    return tuple(sorted(grid))


def choose_by_gcv(sums: ClassSums, grid: Sequence[float]) -> float:
    """The ridge of `grid` with the least generalised cross-validation [Golub, Heath, Wahba 1979], from sums alone.

    `n RSS / (n - tr S P)^2`, with `P = (S + ridge I)^-1`, `tr S P = p - ridge tr P` and
    `RSS = n - tr(W^T B) - ridge |W|^2` for one-hot labels [derived]; one factor per ridge, `O(p^3)`, no rows.
    """
    n, p, best = sums.n, sums.dim + 1, (math.inf, grid[-1])
    eye = torch.eye(p, dtype=torch.float64, device=sums.second.device)
    for ridge in grid:
        upper, bad = torch.linalg.cholesky_ex(sums.second + ridge * eye, upper=True)
        if int(bad):
            continue  # rounding exceeds this ridge: the next one is larger
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
        weights = inverse @ (inverse.T @ sums.by_class)
        free = n - (p - ridge * float(inverse.square().sum()))
        rest = n - float((weights * sums.by_class).sum()) - ridge * float(weights.square().sum())
        if free > 0:
            best = min(best, (n * max(rest, 0.0) / free**2, ridge))
    return best[1]


def choose_by_press(sums: ClassSums, z: Tensor, y: Tensor, grid: Sequence[float]) -> float:
    """The ridge of `grid` with the least sum of squared leave-one-out residuals over the rows of the head.

    From one eigendecomposition `S = V L V^T` and one pass: with `g = V^T h`, `h_i = sum_j g_j^2 / (L_j + ridge)`.
    """
    values, vectors = torch.linalg.eigh(sums.second)
    ridges = torch.tensor(grid, dtype=torch.float64, device=values.device)
    inverse = 1 / (values.clamp(min=0)[:, None] + ridges)  # (p, G)
    weights = inverse[:, :, None] * (vectors.T @ sums.by_class)[:, None, :]  # (p, G, C)
    press = torch.zeros_like(ridges)
    for h, onehot in chunks(sums, z, y):
        g = h @ vectors
        residuals = onehot[:, None, :] - (g @ weights.flatten(1)).view(len(g), len(ridges), -1)
        press += (residuals / (1 - g.square() @ inverse)[:, :, None]).square().sum(dim=(0, 2))
    return float(ridges[int(torch.argmin(press))])


def choose_temperature(loo: LeaveOneOut, y: Tensor) -> float:
    """The `T` in [1e-3, 10] that gives `softmax(scores / T)` the least mean log-loss, each row scored without itself.

    The loss is convex in `1 / T`: the root of its derivative `mean(E_p[score] - score_y)`, by Brent's method. (A search
    of the minimum itself would stop at half the digits.) Raises DataError where there is no row.
    """
    if not len(y):
        raise DataError("no row is left to choose a temperature from; give a fixed one")
    import scipy.optimize

    onehot = torch.nn.functional.one_hot(y, loo.residuals.shape[1]).to(loo.residuals)
    scores = onehot - loo.residuals
    own = scores.gather(1, y[:, None])[:, 0]

    def slope(inverse: float) -> float:
        expected = (torch.softmax(scores * inverse, dim=1) * scores).sum(dim=1)
        return float((expected - own).mean())

    low, high = (1 / t for t in reversed(TEMPERATURES))
    if slope(high) <= 0:
        return TEMPERATURES[0]
    if slope(low) >= 0:
        return TEMPERATURES[1]
    return 1 / float(scipy.optimize.brentq(slope, low, high, xtol=1e-13, rtol=1e-14))
