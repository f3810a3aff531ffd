"""What features say about rows before a request is split: which are nearly copies of others, and which the model
learned by heart.

Near-duplicates of forgotten rows that stay behind undo an erasure, even by retraining (Ye et al., arXiv 2501.16663).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from expunge.features.store import Shards

Rows = np.ndarray
SHARE = 0.25  # of the median distance of a row to its nearest; the figures behind it are in docs/verdict.md
SAMPLE = 1000  # training rows whose nearest neighbour is looked for
QUERIES = 1024  # rows compared with a row group at a time
ROUNDING = 1e-5  # of squared norms: more than float32 loses in a product of a thousand dimensions or so


class Nearby:
    """Euclidean distances between rows of a feature store.

    `train (n,)` marks training rows, `subjects (n,)` names whose row each is: rows of one subject are no neighbours
    where the distance is measured, as pictures of one person are alike without being copies. Rows of nobody (None) are
    subjects of their own.

    Products are float32, as most of the time goes into them; what they leave in question is computed again in float64.
    Memory: the rows that are asked about, one row group of the store, and their products, `QUERIES` rows at a time.
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
        """Below it two rows are near-duplicates: SHARE of the median distance of SAMPLE training rows to the nearest
        training row of another subject. None where there is only one.

        A quarter of a median stays where it is even if many rows have copies, and on data without copies no row is as
        near as that to another. [measured]
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
        """Masks `(n,)`: those of the rows `others` that lie within `distance` of a row of `asked`, and those of `asked`
        that have such a row. Both arguments are masks `(n,)`."""
        rows = np.flatnonzero(asked)
        near, has = np.zeros(len(self.train), bool), np.zeros(len(self.train), bool)
        for first in range(0, len(rows), QUERIES):
            part = rows[first : first + QUERIES]
            exact = self._exact(part)
            for start, z, likeness in self._compared(part, others):
                # |a - b|^2 <= D^2 is the same as a.b - |b|^2 / 2 >= (|a|^2 - D^2) / 2, rows less their centre.
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
        """About the middle of all rows: smaller norms, so that less is lost in differences of products."""
        return np.asarray(next(self.store.iter_z())[1].mean(axis=0))

    def _exact(self, rows: Rows) -> np.ndarray:
        return np.asarray(self.store.z(rows), np.float64)

    def _compared(self, rows: Rows, others: Rows) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Per row group of the store: its first row, its features, and `a.b - |b|^2 / 2` of each of `rows` with its
        rows, `(len(rows), k)` float32, largest for the nearest; -inf for rows that are not among `others`."""
        asked = self.store.z(rows) - self._centre
        for start, z in self.store.iter_z():
            shifted = z - self._centre
            offset = np.where(others[start : start + len(z)], -0.5 * np.square(shifted).sum(axis=1), -np.inf)
            likeness = asked @ shifted.T
            likeness += offset.astype(np.float32)
            yield start, z, likeness


def memorisation_scores(store: Shards, labels: Rows, train: Rows, classes: int) -> Rows:
    """By how much having a training row changes what a ridge head on these features says of it: float64 `(n,)`, NaN
    for other rows.

    The leave-one-out residual less the residual, in closed form over all training rows; the ridge by generalised
    cross-validation. Two passes over the store, one row group in memory. [methods.md 8]
    """
    from expunge.core.ridge_head import RidgeHead  # with torch, which a split by another selector does without

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
