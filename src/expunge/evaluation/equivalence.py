"""Confidence intervals of the difference between a method's value and the retrained models'.

They are bootstrap intervals over rows, which leave out the spread between retraining seeds. The claims of a verdict
include that spread: see `excess.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats


@dataclass(frozen=True)
class Difference:
    """Candidate minus retrained: the estimate and its confidence interval over rows."""

    value: float
    low: float
    high: float


def bootstrap_means(values: NDArray[Any], rng: np.random.Generator, draws: int = 1000) -> Floats:
    """Means `(draws,)` of rows drawn with replacement from `values (n,)`."""
    x = np.asarray(values, np.float64)
    n = len(x)
    levels, counts = np.unique(x, return_counts=True)
    if len(levels) <= 64:  # for few distinct values (correct or not), drawing their counts is equivalent and faster
        return np.asarray(rng.multinomial(n, counts / n, size=draws) @ levels / n)
    block = max(1_000_000 // n, 1)  # draws at a time, to bound memory
    return np.concatenate(
        [x[rng.integers(0, n, (min(block, draws - i), n))].mean(axis=1) for i in range(0, draws, block)]
    )


def row_difference(differences: NDArray[Any], rng: np.random.Generator, alpha: float = 0.05) -> Difference | None:
    """Mean of per-row differences `(n,)` with a percentile bootstrap interval over rows; None without rows.

    Rows are paired: `differences` holds candidate minus retrained for each row.
    """
    x = np.asarray(differences, np.float64)
    if not len(x):
        return None
    low, high = np.quantile(bootstrap_means(x, rng), [alpha, 1 - alpha])
    return Difference(float(x.mean()), float(low), float(high))


def auc_draws(
    members: NDArray[Any], others: NDArray[Any], picks: Sequence[tuple[NDArray[Any], NDArray[Any]]]
) -> Floats:
    """AUC of each resample in `picks`; ties count half.

    A resample is a pair of counts `(n_members,), (n_others,)`: how often it holds each row.
    """
    a, b = np.asarray(members, np.float64), np.asarray(others, np.float64)
    order = np.argsort(b, kind="stable")
    left, right = np.searchsorted(b[order], a, side="left"), np.searchsorted(b[order], a, side="right")
    values = []
    for wa, wb in picks:
        total = np.concatenate([[0.0], np.cumsum(wb[order])])
        values.append(float(wa @ (total[left] + total[right])) / (2.0 * wa.sum() * wb.sum()))
    return np.asarray(values)


def auc_difference(
    candidate: tuple[NDArray[Any], NDArray[Any]],
    retrained: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    rng: np.random.Generator,
    alpha: float = 0.05,
    draws: int = 400,
) -> Difference | None:
    """AUC of the candidate minus the mean AUC of the retrained models, with a percentile bootstrap interval over rows.

    Each model is `(member scores, other scores)`. Every resample uses the same rows for all models. None if a side has
    no rows or there are no retrained models.
    """
    n, m = len(candidate[0]), len(candidate[1])
    if not n or not m or not retrained:
        return None
    everything = (np.ones(n), np.ones(m))
    picks = [everything] + [
        (np.bincount(rng.integers(0, n, n), minlength=n).astype(float), np.bincount(rng.integers(0, m, m), minlength=m))
        for _ in range(draws)
    ]
    values = auc_draws(*candidate, picks) - np.mean([auc_draws(*r, picks) for r in retrained], axis=0)
    low, high = np.quantile(values[1:], [alpha, 1 - alpha])
    return Difference(float(values[0]), float(low), float(high))
