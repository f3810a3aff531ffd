"""Near-duplicates and memorised rows, found by features before a request is split.

Retained near-duplicates of forgotten rows undo an erasure, even one by retraining (Ye et al., arXiv 2501.16663).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from expunge.features.store import Shards

Rows = np.ndarray
SHARE = 0.25  # of the median distance of a row to its nearest neighbour; docs/verdict.md has the measurements
SAMPLE = 1000  # training rows for which that distance is computed
QUERIES = 1024  # rows that are compared with a row group at a time; bounds memory
ROUNDING = 1e-5  # relative to squared norms: exceeds the float32 error of products in about 1,000 dimensions


class Nearby:
    """Euclidean distances between rows of a feature store.

    `train (n,)` is the mask of training rows, `subjects (n,)` the subject of each row. Rows of one subject are not
    neighbours when the threshold is measured, because images of one person are similar without being copies. A row
    without a subject (None) counts as a subject of its own.

    Inner products, which take most of the time, are computed in float32; distances near the threshold are computed
    again in float64. Memory holds the queried rows (at most QUERIES at a time), one row group of the store, and their
    products.
    """

    def __init__(self, store: Shards, train: Rows, subjects: Sequence[str | None] | None = None, seed: int = 0) -> None:
        self.store = store
        self.train = np.asarray(train, bool)
        number: dict[str | int, int] = {}
        names = subjects if subjects is not None else [None] * len(self.train)
        keys = (row if name is None else name for row, name in enumerate(names))
        self.groups = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
        self.seed = seed

    def distance(self) -> float | None:
        """Return the distance below which two rows are near-duplicates; None if there is only one subject.

        It is SHARE times the median distance of SAMPLE training rows to the nearest training row of another subject.
        The median does not change if many rows have copies, and in data without copies no two rows were as close as a
        quarter of it. [measured]
        """
        rows = np.flatnonzero(self.train)
        if len(np.unique(self.groups[rows])) < 2:
            return None
        if len(rows) > SAMPLE:
            rows = np.sort(np.random.default_rng([self.seed, 0]).choice(rows, SAMPLE, replace=False))
        best, nearest = np.full(len(rows), -np.inf), np.zeros(len(rows), np.int64)
        for start, _, likeness in self._compared(rows, self.train):
            likeness[self.groups[rows][:, None] == self.groups[start : start + likeness.shape[1]]] = -np.inf
            here = likeness.argmax(axis=1)
            value = likeness[np.arange(len(rows)), here]
            nearest = np.where(value > best, start + here, nearest)
            best = np.maximum(best, value)
        return SHARE * float(np.median(np.linalg.norm(self._exact(rows) - self._exact(nearest), axis=1)))

    def near(self, asked: Rows, others: Rows, distance: float) -> tuple[Rows, Rows]:
        """Return the rows of `others` near to a row of `asked`, and the rows of `asked` that have such a neighbour.

        Near means within `distance`. Arguments and results are masks `(n,)`.
        """
        rows = np.flatnonzero(asked)
        near, has = np.zeros(len(self.train), bool), np.zeros(len(self.train), bool)
        for first in range(0, len(rows), QUERIES):
            part = rows[first : first + QUERIES]
            exact = self._exact(part)
            for start, z, likeness in self._compared(part, others):
                # |a - b|^2 <= D^2 is equivalent to a.b - |b|^2 / 2 >= (|a|^2 - D^2) / 2; a and b are centred rows.
                shifted = exact - self._centre
                own = np.square(shifted).sum(axis=1)
                slack = ROUNDING * (own + float(np.square(z - self._centre).sum(axis=1).max()))
                for i in np.flatnonzero(likeness.max(axis=1) >= (own - distance**2) / 2 - slack):
                    apart = np.square(z.astype(np.float64) - exact[i]).sum(axis=1)
                    close = (apart <= distance**2) & others[start : start + len(z)]
                    near[start : start + len(z)] |= close
                    has[part[i]] |= close.any()
        return near, has

    @cached_property
    def _centre(self) -> np.ndarray:
        """The mean of the first row group. Centred rows have smaller norms, and so smaller rounding errors."""
        return np.asarray(next(self.store.iter_z())[1].mean(axis=0))

    def _exact(self, rows: Rows) -> np.ndarray:
        return np.asarray(self.store.z(rows), np.float64)

    def _compared(self, rows: Rows, others: Rows) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield for each row group of the store its first row, its features `(k, d)`, and `a.b - |b|^2 / 2`.

        The latter is float32 `(len(rows), k)`, for each a of `rows` and each b of the row group, both centred. It is
        largest for the nearest row, and -inf for a b outside the mask `others`.
        """
        asked = self.store.z(rows) - self._centre
        for start, z in self.store.iter_z():
            shifted = z - self._centre
            offset = np.where(others[start : start + len(z)], -0.5 * np.square(shifted).sum(axis=1), -np.inf)
            likeness = asked @ shifted.T
            likeness += offset.astype(np.float32)
            yield start, z, likeness


def memorisation_scores(store: Shards, labels: Rows, train: Rows, classes: int) -> Rows:
    """Return how strongly a ridge head on these features memorises each training row: float64 `(n,)`, NaN elsewhere.

    The score is the leave-one-out residual minus the residual, in closed form over all training rows; the ridge
    parameter is chosen by generalised cross-validation. The store is read twice, with one row group in memory.
    [derived]
    """
    from expunge.core.ridge_head import RidgeHead  # imports torch, which other selectors do not need

    head = RidgeHead(ridge="gcv")
    scores = np.full(len(train), np.nan)
    for start, z in store.iter_z():
        rows = np.flatnonzero(train[start : start + len(z)])
        if len(rows):
            head.update(z[rows], labels[start + rows], classes)
    head.solve()
    for start, z in store.iter_z():
        rows = np.flatnonzero(train[start : start + len(z)])
        if len(rows):
            scores[start + rows] = head.leave_one_out(z[rows], labels[start + rows]).scores.numpy()
    return scores
