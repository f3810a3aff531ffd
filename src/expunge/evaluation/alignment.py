"""Dimensional alignment: the share of the forgotten rows' feature energy in the leading directions of retained rows.

After Seo, Kim and Han (arXiv 2407.17710). The authors' formula was not found, so this one is a reconstruction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats


def alignment_rows(retain: NDArray[Any], forget: NDArray[Any]) -> Floats:
    """Contribution of each forgotten row `(n,)` to the area under the alignment curve; their mean is the area.

    The curve is `DA_k = tr(P_k' S_f P_k) / tr(S_f)`: S_f is the second moment E[z z'] of the forgotten rows, and P_k
    holds the k leading eigenvectors of that of the retained rows. The area lies in (0, 1]. Higher is not better: the
    target is the value of a model that never saw the rows, and a projection onto the retained directions gives more.
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
    nonzero = values > 1e-12 * values[0]
    return np.asarray(np.where(nonzero, x.T @ vectors / np.sqrt(np.where(nonzero, values, 1.0)), 0.0))


def _spectrum(second: NDArray[Any]) -> tuple[Floats, Floats]:
    """Eigenvalues of a symmetric matrix in falling order, and their eigenvectors as columns.

    Raises ValueError for a zero matrix.
    """
    values, vectors = np.linalg.eigh(np.asarray(second, np.float64))
    values = np.maximum(values[::-1], 0.0)
    if values.sum() <= 0:
        raise ValueError("the features of the retained rows are all zero, so they have no leading directions")
    return values, vectors[:, ::-1]
