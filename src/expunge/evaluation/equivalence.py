"""Is a method's value the same as the retrained models', within a margin? Confidence intervals of differences.

Equivalence (two one-sided tests at level alpha, TOST) is shown when the 1 - 2 alpha confidence interval of the
difference lies inside [-margin, margin]. Over several retraining seeds the interval is a t interval; with one it comes
from the bootstrap over rows, which knows nothing of the spread between seeds, and the result is marked as indicative.
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
    """Candidate minus retrained: estimate, confidence interval, and whether it rests on one retraining seed only."""

    value: float
    low: float
    high: float
    indicative: bool

    def within(self, margin: float) -> bool:
        """Two-sided equivalence: the whole interval lies in [-margin, margin]."""
        return -margin <= self.low and self.high <= margin


def seed_difference(candidate: Sequence[float], retrained: Sequence[float], alpha: float = 0.05) -> Difference:
    """Difference of means with its t interval of confidence 1 - 2 alpha (TOST, Schuirmann 1987).

    One candidate value is that of the very model that would be shipped: it is taken as given, and the interval is that
    of the retrained models' mean. Several are a method's values over seeds: then it is the pooled two-sample interval.
    Needs at least two retrained values; equal values on both sides give an interval of width zero.
    """
    from scipy.stats import t

    c, r = np.asarray(candidate, np.float64), np.asarray(retrained, np.float64)
    if not len(c) or len(r) < 2:
        raise ValueError(f"a t interval needs two retrained values, got {len(r)}; use row_difference")
    df = len(c) + len(r) - 2
    pooled = (((c - c.mean()) ** 2).sum() + ((r - r.mean()) ** 2).sum()) / df
    share = 1 / len(r) + (1 / len(c) if len(c) > 1 else 0.0)
    half = float(t.ppf(1 - alpha, df)) * float(np.sqrt(pooled * share))
    value = float(c.mean() - r.mean())
    return Difference(value, value - half, value + half, indicative=False)


def bootstrap_means(values: NDArray[Any], rng: np.random.Generator, draws: int = 1000) -> Floats:
    """Means `(draws,)` of rows drawn with replacement from `values (n,)`."""
    x = np.asarray(values, np.float64)
    n = len(x)
    levels, counts = np.unique(x, return_counts=True)
    if len(levels) <= 64:  # few distinct values, as for right or wrong: draw their counts instead of the rows
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
    return Difference(float(x.mean()), float(low), float(high), indicative=True)


def auc_draws(
    members: NDArray[Any], others: NDArray[Any], picks: Sequence[tuple[NDArray[Any], NDArray[Any]]]
) -> Floats:
    """AUC of each resample in `picks`, pairs of row counts `(n_members,), (n_others,)`; ties count half."""
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
    """AUC of the candidate minus the mean AUC of the retrained models, bootstrap over the same rows for all of them.

    Each entry is `(member scores, other scores)`; None if a side has no rows.
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
    return Difference(float(values[0]), float(low), float(high), indicative=True)
