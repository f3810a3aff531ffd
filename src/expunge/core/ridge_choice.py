"""Selection of the ridge and the temperature of a ridge head, by leave-one-out or generalised cross-validation."""

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
    """Leave-one-out `residuals (n, C)` and `leverages (n,)` of rows, float64.

    A residual is `y - scores` under the head fitted without the row. The leverage `h^T (S + ridge I)^-1 h` of a row is
    in [0, 1).
    """

    residuals: Tensor
    leverages: Tensor

    @property
    def scores(self) -> Tensor:
        """The memorisation score of each row, `(n,)` >= 0: how much training on the row changes its own prediction.

        It is the norm of `e_i / (1 - h_i) - e_i`, the leave-one-out residual less the residual. [derived]
        """
        change: Tensor = self.residuals.norm(dim=1) * self.leverages
        return change

    @property
    def press(self) -> float:
        """The mean squared leave-one-out residual over rows and classes; 0 without rows."""
        return float(self.residuals.square().mean()) if len(self.residuals) else 0.0


def checked_rows(
    kept: tuple[Tensor | np.ndarray, Tensor | np.ndarray] | None, needed: bool, sums: ClassSums, n: int
) -> tuple[Tensor, Tensor] | None:
    """Return `kept`, features and labels, after validation; None where it is not given.

    Raises DataError where it is `needed` and not given, or does not have the `n` rows that the head will have.
    """
    if kept is None:
        if needed:
            raise DataError(
                "ridge: press and temperature: leave-one-out are chosen from rows; give kept=(z, y), the rows that "
                "the head has afterwards, or give both as numbers"
            )
        return None
    z, y = as_labelled(*kept, sums.dim, sums.num_classes)
    if len(y) != n:
        raise DataError(f"kept has {len(y)} rows, but the head has {n} afterwards")
    return z, y


def chunks(sums: ClassSums, z: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `h (k, p)` and one-hot labels `(k, C)`, both float64, of rows checked by `as_labelled`, in chunks."""
    for part, labels in zip(torch.split(z, CHUNK_ROWS), torch.split(y, CHUNK_ROWS), strict=True):
        h = sums.augmented(part)
        yield h, torch.nn.functional.one_hot(labels, sums.num_classes).to(h)


def leave_one_out(sums: ClassSums, factor: Factor, weights: Tensor, z: Tensor, y: Tensor) -> LeaveOneOut:
    """Return leave-one-out residuals `e_i / (1 - h_i)` [Allen's PRESS, 1974] of rows of the head, in `O(n p^2)`."""
    residuals, leverages = [], []
    for h, onehot in chunks(sums, z, y):
        leverage = (h.T * factor.solve(h.T)).sum(dim=0)
        residuals.append((onehot - h @ weights) / (1 - leverage)[:, None])
        leverages.append(leverage)
    return LeaveOneOut(torch.cat(residuals), torch.cat(leverages))


def choose_ridge(
    ridge: float | str, sums: ClassSums, rows: tuple[Tensor, Tensor] | None, grid: Sequence[float]
) -> float:
    """Return `ridge` if it is a number, else the value of `grid` that "gcv" or "press" chooses.

    "press" needs the rows of the head.
    """
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
    """Return the ridges in ascending order. Raises ValueError if there are none, or if one is not positive."""
    if not grid or any(not (math.isfinite(r) and r > 0) for r in grid):
        raise ValueError(f"grid must hold positive ridges, got {list(grid)}")
    return tuple(sorted(grid))


def choose_by_gcv(sums: ClassSums, grid: Sequence[float]) -> float:
    """Return the ridge of `grid` with the least generalised cross-validation [Golub, Heath, Wahba 1979], from sums.

    `n RSS / (n - tr S P)^2`, with `P = (S + ridge I)^-1`, `tr S P = p - ridge tr P` and
    `RSS = n - tr(W^T B) - ridge |W|^2` for one-hot labels [derived]. Each ridge takes one factorisation, `O(p^3)`.
    """
    n, p, best = sums.n, sums.dim + 1, (math.inf, grid[-1])
    eye = torch.eye(p, dtype=torch.float64, device=sums.second.device)
    for ridge in grid:
        upper, bad = torch.linalg.cholesky_ex(sums.second + ridge * eye, upper=True)
        if int(bad):
            continue  # not positive definite in floating point; the grid ascends, so the next ridge is larger
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
        weights = inverse @ (inverse.T @ sums.by_class)
        free = n - (p - ridge * float(inverse.square().sum()))
        rest = n - float((weights * sums.by_class).sum()) - ridge * float(weights.square().sum())
        if free > 0:
            best = min(best, (n * max(rest, 0.0) / free**2, ridge))
    return best[1]


def choose_by_press(sums: ClassSums, z: Tensor, y: Tensor, grid: Sequence[float]) -> float:
    """Return the ridge of `grid` with the least sum of squared leave-one-out residuals over the rows of the head.

    It takes one eigendecomposition `S = V L V^T` and one pass over the rows. With `g = V^T h`, the leverage of a row is
    `sum_j g_j^2 / (L_j + ridge)`.
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
    """Return the `T` in [1e-3, 10] that minimises the mean log-loss of `softmax(scores / T)` over leave-one-out scores.

    The loss is convex in `1 / T`. Brent's method finds the root of its derivative `mean(E_p[score] - score_y)`, because
    a search for the minimum itself reaches only half as many digits. Raises DataError where there is no row.
    """
    if not len(y):
        raise DataError("no row is left to choose a temperature from; give the temperature as a number")
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
