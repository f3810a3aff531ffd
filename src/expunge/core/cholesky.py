"""Rank-k updates of a Cholesky factor, for rows that are added to its matrix or removed from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from expunge.system.errors import DataError

PANEL = 64
# At most p / PENDING_SHARE rows are pending (or PENDING_LEAST) before they are worked into the factor.
PENDING_SHARE, PENDING_LEAST = 5, 32
FRESH_SHARE = 16  # with more than p / FRESH_SHARE pending rows a new factorisation is cheaper than an update


def rank_update(factor: Tensor, rows: Tensor, sign: int) -> bool:
    """Update `factor` in place to the factor of `factor^T factor + sign rows^T rows`, at cost `O(k p^2)`.

    `factor (p, p)` is upper triangular and `rows (k, p)`, both float64; `sign` is +1 or -1. Returns False where the
    result would not be positive definite; `factor` is then invalid and must be computed again.

    The update works on panels with blocks of rotations, hyperbolic ones for -1. With `X = R11^-T V1^T`,
    `C C^T = I + sign X X^T` and `D D^T = I + sign X^T X`, the panel becomes `R11' = C^T R11` and
    `R12' = C^-1 (R12 + sign X V2)`, and the rows still to be worked in become `V2' = D^T (V2 - X^T C^-T R12')`. This is
    the mixed form, which is also stable for -1.
    [derived; for one row these are LINPACK's dchud and the mixed form of dchdd]
    """
    v, (k, p) = rows.clone(), rows.shape
    eye_k = torch.eye(k, dtype=v.dtype, device=v.device)
    for start in range(0, p, PANEL):
        end = min(start + PANEL, p)
        r11, r12 = factor[start:end, start:end], factor[start:end, end:]
        x = torch.linalg.solve_triangular(r11.T, v[:, start:end].T, upper=False)
        eye = torch.eye(end - start, dtype=v.dtype, device=v.device)
        c, bad_c = torch.linalg.cholesky_ex(torch.addmm(eye, x, x.T, alpha=sign))
        d, bad_d = torch.linalg.cholesky_ex(torch.addmm(eye_k, x.T, x, alpha=sign))
        if int(bad_c) or int(bad_d):
            return False
        inverse = torch.linalg.solve_triangular(c, eye, upper=False)
        r11.copy_((c.T @ r11).triu_())
        r12.copy_(inverse @ torch.addmm(r12, x, v[:, end:], alpha=sign))
        v[:, end:] = d.T @ torch.addmm(v[:, end:], (inverse @ x).T, r12, alpha=-1)
    return True


class Factor:
    """Solve linear systems with `A + sum_j sign_j h_j h_j^T`, from a factor of `A` and the rows changed since.

    A changed row is kept as pending, with `G = A^-1 h`, until enough have accumulated to update the factor. A request
    therefore costs one triangular solve for its own rows. With `Z` the pending rows, `G = A^-1 Z^T` and `J` their
    signs, `(A + Z^T J Z)^-1 r = A^-1 r - G (J + Z G)^-1 Z A^-1 r` (Woodbury).
    """

    def __init__(self, matrix: Tensor) -> None:
        """Factor the symmetric `matrix (p, p)` float64. Raises DataError where it is not positive definite."""
        self.fresh(matrix)

    def fresh(self, matrix: Tensor) -> None:
        """Factor `matrix` and discard the pending rows. Raises DataError where it is not positive definite."""
        upper, bad = torch.linalg.cholesky_ex(matrix, upper=True)
        if int(bad):
            raise DataError(
                "the second moments of the rows plus the ridge are not positive definite; use a larger ridge"
            )
        self._upper = upper.contiguous()
        self._empty()

    def _empty(self) -> None:
        p = self._upper.shape[0]
        self._rows, self._solved = self._upper.new_empty(0, p), self._upper.new_empty(p, 0)
        self._signs = self._upper.new_empty(0)
        self._core: tuple[Tensor, Tensor] | None = None

    @property
    def waiting(self) -> int:
        """The number of pending rows."""
        return len(self._rows)

    @property
    def limit(self) -> int:
        """The largest number of rows that stay pending; with more, the factor is updated."""
        return max(PENDING_LEAST, len(self._upper) // PENDING_SHARE)

    def _base(self, right: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(self._upper.T, right, upper=False)
        solved: Tensor = torch.linalg.solve_triangular(self._upper, half, upper=True)
        return solved

    def _follow(self, base: Tensor) -> Tensor:
        """Return the solution that accounts for the pending rows, from `base = A^-1 r` (Woodbury)."""
        if not self.waiting:
            return base
        if self._core is None:
            self._core = torch.linalg.lu_factor(torch.diag(self._signs) + self._rows @ self._solved)
        small: Tensor = torch.linalg.lu_solve(*self._core, self._rows @ base)
        followed: Tensor = base - self._solved @ small
        return followed

    def solve(self, right: Tensor) -> Tensor:
        """Solve for the right sides `(p, c)` float64 and return the solutions, of the same shape."""
        return self._follow(self._base(right))

    def prepare(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the solutions `(p, k)` for `rows (k, p)` with the present matrix, and with `A` for `push`."""
        base = self._base(rows.T)
        return self._follow(base), base

    def push(self, rows: Tensor, base: Tensor, sign: int, matrix: Callable[[], Tensor]) -> None:
        """Add `rows (k, p)` with `sign`; `base` is from `prepare`, and `matrix()` returns the matrix with these rows.

        `matrix` is called only where a new factorisation is due.
        """
        if self.waiting + rows.shape[0] > self.limit:
            self._work_in(rows, sign, matrix)
            return
        self._rows, self._solved = torch.cat([self._rows, rows]), torch.cat([self._solved, base], dim=1)
        self._signs = torch.cat([self._signs, self._signs.new_full((rows.shape[0],), float(sign))])
        self._core = None

    def _work_in(self, rows: Tensor, sign: int, matrix: Callable[[], Tensor]) -> None:
        """Update the factor by the pending rows and `rows`.

        Additions come first: a row may be removed after it was added, and the matrix must stay positive definite.
        """
        waiting, signs = torch.cat([self._rows, rows]), torch.cat([self._signs, rows.new_full((len(rows),), sign)])
        if FRESH_SHARE * len(waiting) > rows.shape[1]:
            return self.fresh(matrix())
        for one in (1, -1):
            chosen = waiting[signs == one]
            if len(chosen) and not rank_update(self._upper, chosen, one):
                return self.fresh(matrix())
        self._empty()
        return None


def refined(
    factor: Factor, matrix: Tensor, ridge: float, right: Tensor, x: Tensor, enough: float
) -> tuple[Tensor, float]:
    """Return `x (p, c)` after at most one step of iterative refinement, and the relative residual.

    The residual is `|right - (matrix + ridge I) x|` relative to `tr(matrix + ridge I) |x| + |right|`. The step is
    skipped where the residual of the given `x` is at most `enough`.
    """
    size = float(matrix.trace()) + ridge * len(matrix)
    for attempt in (0, 1):
        rest = right - matrix @ x - ridge * x
        scale = size * float(x.norm()) + float(right.norm())
        left = float(rest.norm()) / max(scale, torch.finfo(torch.float64).tiny)
        if left <= enough or attempt:
            break
        x = x + factor.solve(rest)
    return x, left
