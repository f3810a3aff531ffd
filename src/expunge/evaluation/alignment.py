"""Dimensional alignment: the share of the forgotten rows' feature energy in the leading directions of retained rows.

After Seo, Kim and Han (arXiv 2407.17710). The authors' formula was not found, so this one is a reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats


@dataclass(frozen=True)
class Alignment:
    """Alignment of one model's features.

    `at_rank`: the share of the forgotten rows' energy in the `rank` leading retained directions, in [0, 1].
    `area`: the mean of that share over all ranks 1..d, in (0, 1].
    Higher is not better. The target is the value of a model that never saw the rows. A projection onto the retained
    directions gives 1, which lies above that target [derived].
    """

    rank: int
    at_rank: float
    area: float

    def from_reference(self, reference: Alignment) -> dict[str, float]:
        """Signed differences to the retrained model's values, in [-1, 1]. Target: 0; both signs are deviations."""
        return {"at_rank": self.at_rank - reference.at_rank, "area": self.area - reference.area}


def alignment(retain: NDArray[Any], forget: NDArray[Any], energy: float = 0.95) -> Alignment:
    """Alignment of forgotten with retained features of one model.

    `at_rank` is taken at the smallest rank whose directions hold the share `energy` of the retained rows' energy.
    `retain` and `forget (d, d)`: uncentred second moments E[z z'] of the model's own features, as `Moments.second()`
    returns them. Raises ValueError for matrices of different shapes and for `energy` outside (0, 1].
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")
    if retain.shape != forget.shape or retain.ndim != 2 or retain.shape[0] != retain.shape[1]:
        raise ValueError(f"second moments must be square and of the same shape, got {retain.shape} and {forget.shape}")
    rank = energy_rank(retain, energy)
    curve = alignment_curve(retain, forget)
    return Alignment(rank, float(curve[rank - 1]), float(curve.mean()))


def alignment_curve(retain: NDArray[Any], forget: NDArray[Any]) -> Floats:
    """`DA_k = tr(P_k' S_f P_k) / tr(S_f)` for k = 1..d, `(d,)` float64, nondecreasing, its last value 1.

    `retain` and `forget (d, d)`: uncentred second moments S_r and S_f; P_k holds the k leading eigenvectors of S_r.
    Raises ValueError when S_f is zero, because the share is then undefined.
    """
    _, vectors = _spectrum(retain)
    total = float(np.trace(forget))
    if total <= 0:
        raise ValueError("the features of the forgotten rows are all zero, so their alignment is undefined")
    shares: Floats = np.einsum("ik,ij,jk->k", vectors, forget, vectors, optimize=True) / total
    curve: Floats = np.minimum(np.cumsum(np.maximum(shares, 0.0)), 1.0)
    return curve


def alignment_rows(retain: NDArray[Any], forget: NDArray[Any]) -> Floats:
    """Contribution of each forgotten row `(n,)` to the area under the alignment curve; their mean is the area.

    `retain (m, d)` and `forget (n, d)`: features. The area is taken over the ranks 1 .. k, k = min(m, d). In it the
    energy of a row in the j-th direction has the weight (k - j + 1) / k. Let `w` be the row's weighted energy and `t`
    its energy. The contribution is `area + (w - area t) / mean(t)`. The area is a ratio of means, and this is its
    linearisation, so the spread over rows is that of the ratio (delta method). [derived]
    Raises ValueError when the features of either side are all zero.
    """
    x, y = np.asarray(retain, np.float64), np.asarray(forget, np.float64)
    total = np.square(y).sum(axis=1)
    if total.sum() <= 0:
        raise ValueError("the features of the forgotten rows are all zero, so their alignment is undefined")
    directions = _directions(x)
    count = directions.shape[1]
    weighted = np.square(y @ directions) @ (np.arange(count, 0, -1) / count)
    area = weighted.sum() / total.sum()
    return np.asarray(area + (weighted - area * total) / total.mean())


def _directions(x: Floats) -> Floats:
    """Principal directions of the rows `x (m, d)` as orthonormal columns `(d, min(m, d))`, by falling energy.

    They are computed from the smaller of `x' x` and `x x'`, so that the eigenproblem has size min(m, d). From `x x'`,
    directions without energy come out as zero columns.
    """
    if x.shape[1] <= x.shape[0]:
        return _spectrum(x.T @ x)[1]
    values, vectors = _spectrum(x @ x.T)
    held = values > 1e-12 * values[0]
    return np.asarray(np.where(held, x.T @ vectors / np.sqrt(np.where(held, values, 1.0)), 0.0))


def energy_rank(second: NDArray[Any], energy: float) -> int:
    """Smallest k for which the k largest eigenvalues sum to the share `energy` of the trace of `second (d, d)`."""
    values, _ = _spectrum(second)
    held = np.cumsum(values) / values.sum()
    # Rounding can leave the last share slightly below 1, hence the tolerance and the upper limit.
    return min(int(np.searchsorted(held, energy - 1e-12)) + 1, len(values))


def _spectrum(second: NDArray[Any]) -> tuple[Floats, Floats]:
    """Eigenvalues of a symmetric matrix in falling order, and their eigenvectors as columns.

    Raises ValueError for a zero matrix.
    """
    values, vectors = np.linalg.eigh(np.asarray(second, np.float64))
    values = np.maximum(values[::-1], 0.0)
    if values.sum() <= 0:
        raise ValueError("the features of the retained rows are all zero, so they have no leading directions")
    return values, vectors[:, ::-1]
