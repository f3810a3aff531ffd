"""The exact minimum of `(1 - tr U^T A U)^2 + (tr U^T B U)^2` over orthonormal `U (d, s)`, with a certificate. [derived]

With `r = tr U^T A U` and `f = tr U^T B U` the objective is the squared distance of `(r, f)` from `(1, 0)`. For every
angle `t` in `[0, pi/2]`, with `C(t) = cos t A - sin t B` and `E(t)` the sum of its s largest eigenvalues,

    sqrt(objective) >= (1 - r) cos t + f sin t >= cos t - E(t)      (Cauchy-Schwarz; Ky Fan),

so every eigendecomposition gives a feasible `U` and a lower bound that holds for all `U`. At the optimum the two agree:
`U` spans the leading eigenvectors of `C(t)`, and `tan t = f / (1 - r)`. That angle is the root of a decreasing function
of one variable.

A bracketed search finds it with one eigenproblem per trial. A first search in single precision (in a block Krylov space
for few vectors in many dimensions) gives a starting angle. From there the search in double precision, whose bound is
the certificate, usually needs one trial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

MAX_TRIALS = 80
SINGLE_TRIALS = 4  # more trials in single precision do not improve the angle
KRYLOV_ROUNDS = 3
KRYLOV_RANK = 32  # up to this rank three Krylov spaces of five blocks cost less than an eigendecomposition
ROUNDING = 1e-14
CROSSING = 1e-10  # radians; if the excess still changes sign within a bracket this narrow, eigenvalues cross in it


@dataclass(frozen=True)
class Subspace:
    """`basis (d, s)`, its shares `r` (retained) and `f` (forgotten), the angle of the optimum, and `gap`.

    No basis has an objective that is smaller by more than `gap`.
    """

    basis: Matrix
    angle: float
    retained: float
    forgotten: float
    gap: float

    @property
    def objective(self) -> float:
        """LOFT's objective `(1 - r)^2 + f^2`."""
        return (1 - self.retained) ** 2 + self.forgotten**2


@dataclass(frozen=True)
class _Trial:
    angle: float  # t
    basis: Matrix  # leading s eigenvectors of C(t)
    retained: float
    forgotten: float
    bound: float  # cos t - E(t), a lower bound on sqrt(objective) of every basis

    @property
    def objective(self) -> float:
        return (1 - self.retained) ** 2 + self.forgotten**2

    @property
    def excess(self) -> float:
        """The angle of this basis' `(1 - r, f)` less `angle`; it is zero at the optimum."""
        return float(np.arctan2(max(self.forgotten, 0.0), max(1 - self.retained, 0.0))) - self.angle


def minimise_subspace_objective(a: Matrix, b: Matrix, rank: int, tolerance: float = 1e-7) -> Subspace:
    """Return the optimum for positive semi-definite `a` and `b`, both `(d, d)` of unit trace.

    The search ends at `gap <= tolerance * objective + 1e-14`, at a crossing of eigenvalues, or after MAX_TRIALS.
    """
    single = a.astype(np.float32), b.astype(np.float32)
    if rank <= min(KRYLOV_RANK, a.shape[0] // 12):
        start = _krylov_angle(*single, rank)
    else:
        start = _search(*single, rank, tolerance, np.pi / 4, SINGLE_TRIALS).angle
    return _search(a, b, rank, tolerance, float(np.clip(start, 0, np.pi / 2)))


def _krylov_angle(a: NDArray[Any], b: NDArray[Any], rank: int) -> float:
    """Return the optimal angle within a block Krylov space, which approximates the optimum's at a lower cost."""
    angle, block = np.pi / 4, np.random.default_rng(0).standard_normal((a.shape[0], rank), np.float32)
    for _ in range(KRYLOV_ROUNDS):
        c, blocks = _mix(a, b, angle), [block]
        for _ in range(4):
            blocks.append(_orthonormal(_product(c.T, blocks[-1])))
        basis = _orthonormal(np.hstack(blocks))
        small_a, small_b = (_product(basis.T, _product(m.T, basis)) for m in (a, b))
        reduced = _search(small_a, small_b, rank, 1e-6, angle, SINGLE_TRIALS)
        block, angle = _product(basis, reduced.basis), reduced.angle
    return angle


def _search(
    a: NDArray[Any], b: NDArray[Any], rank: int, tolerance: float, start: float, most: int = MAX_TRIALS
) -> Subspace:
    """Search for the angle by bracketed inverse interpolation, with one eigendecomposition per trial."""
    trials: list[_Trial] = []
    low = high = None
    bound, angle, best = 0.0, start, None
    for _ in range(most):
        trial = _trial(a, b, rank, angle)
        trials.append(trial)
        bound = max(bound, trial.bound)
        if best is None or trial.objective < best.objective:
            best = trial
        low, high = (trial, high) if trial.excess > 0 else (low, trial)
        angle = _next_angle(trials)
        if best.objective - bound**2 <= tolerance * best.objective + ROUNDING:
            break
        if low and high and high.angle - low.angle < CROSSING:
            best = min(best, _best_between(a, b, low, high), key=lambda t: t.objective)
            break
    assert best is not None
    gap = max(best.objective - bound**2, 0.0)
    return Subspace(best.basis, angle, best.retained, best.forgotten, gap)


def _next_angle(trials: list[_Trial]) -> float:
    """Return the angle at which the excess should vanish, interpolated from the last trials.

    It is the middle of the bracket where the interpolation leaves the bracket or converges slowly.
    """
    # The angle of a basis decreases as the trial angle grows, so the root lies between the two in every trial.
    left = max([t.angle if t.excess > 0 else t.angle + t.excess for t in trials])
    right = min([t.angle if t.excess <= 0 else t.angle + t.excess for t in trials])
    middle = 0.5 * (left + right)
    last = trials[-3:]
    if len(trials) == 1 or (len(trials) > 12 and len(trials) % 2):
        return middle
    x, y = [t.angle for t in last], [t.excess for t in last]
    if len(set(y)) < len(y):
        return middle
    guess = 0.0
    for i in range(len(last)):  # Lagrange polynomial of the angle as a function of the excess, at excess 0
        guess += x[i] * float(np.prod([y[j] / (y[j] - y[i]) for j in range(len(last)) if j != i]))
    return guess if left < guess < right else middle


def _best_between(a: Matrix, b: Matrix, low: _Trial, high: _Trial) -> _Trial:
    """Return the optimum on the geodesic between two bases that are both optimal at (nearly) the same angle.

    Where eigenvalues cross, `(r, f)` jumps along a line on which the bound is constant. A rotation from one basis to
    the other passes through every point of that line between them.
    """
    left, cosines, right = np.linalg.svd(low.basis.T @ high.basis)
    start, end = low.basis @ left, high.basis @ right.T
    angles = np.arccos(np.clip(cosines, -1.0, 1.0))
    normal = end - start * np.cos(angles)
    norms = np.linalg.norm(normal, axis=0)
    normal = np.divide(normal, norms, out=np.zeros_like(normal), where=norms > 1e-12)

    def at(share: float) -> _Trial:
        basis = np.linalg.qr(start * np.cos(share * angles) + normal * np.sin(share * angles))[0]
        return _evaluate(a, b, basis, low.angle, low.bound)

    if at(0.0).excess <= 0 or at(1.0).excess >= 0:
        return min(at(0.0), at(1.0), key=lambda t: t.objective)
    from scipy.optimize import brentq  # imported here because it takes an eighth of a second and is rarely needed

    return at(float(brentq(lambda share: at(share).excess, 0.0, 1.0, xtol=1e-14)))


def _trial(a: Matrix, b: Matrix, rank: int, angle: float) -> _Trial:
    values, basis = _top_eigenvectors(_mix(a, b, angle), rank)
    return _evaluate(a, b, basis, angle, max(float(np.cos(angle) - values.sum()), 0.0))


def _evaluate(a: Matrix, b: Matrix, basis: Matrix, angle: float, bound: float) -> _Trial:
    retained, forgotten = (float(np.sum(basis * _product(m.T, basis))) for m in (a, b))
    return _Trial(angle, basis, retained, forgotten, bound)


def _mix(a: Matrix, b: Matrix, angle: float) -> Matrix:
    mixed: Matrix = math.cos(angle) * a - math.sin(angle) * b  # keeps the precision of a and b
    return mixed


# This module uses scipy's BLAS only. After a product the threads of numpy's own BLAS keep spinning for a while, on the
# cores that scipy's threads need.
def _product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Return `left @ right`, without copying arguments in Fortran order, such as transposes and eigenvectors."""
    product: NDArray[Any] = scipy.linalg.get_blas_funcs("gemm", (left, right))(1.0, left, right)
    return product


def _orthonormal(block: NDArray[Any]) -> NDArray[Any]:
    basis: NDArray[Any] = scipy.linalg.qr(block, mode="economic", check_finite=False)[0]
    return basis


def _top_eigenvectors(c: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the `count` largest eigenvalues, in ascending order, and their eigenvectors `(d, count)`."""
    dim = c.shape[0]
    if count > dim // 4:  # computing all of them by divide and conquer is faster
        values, vectors = scipy.linalg.eigh(c, driver="evd", check_finite=False, overwrite_a=True)
        return values[-count:], vectors[:, -count:]
    top = [dim - count, dim - 1]
    values, vectors = scipy.linalg.eigh(c, subset_by_index=top, driver="evr", check_finite=False, overwrite_a=True)
    return values, vectors
