"""What features say about rows before a request is split: which are nearly copies of others, and which the model
learned by heart.

Near-duplicates of forgotten rows that stay behind undo an erasure, even by retraining (Ye et al., arXiv 2501.16663).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from expunge.core.ridge_head import RidgeHead
from expunge.features.store import Shards

Rows = np.ndarray
SHARE = 0.25  # of the median distance of a row to its nearest; the figures behind it are in docs/verdict.md
SAMPLE = 1000  # training rows whose nearest neighbour is looked for
QUERIES = 1024  # rows compared with a row group at a time


class Nearby:
    """Distances between rows of a feature store, Euclidean, in float64.

    `train (n,)` marks training rows, `subjects (n,)` names whose row each is: rows of one subject are no neighbours
    where the distance is measured, as pictures of one person are alike without being copies. Rows of nobody (None) are
    subjects of their own.
    Memory: the rows that are asked about, one row group of the store, and their distances, `QUERIES` at a time.
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
        nearest = np.full(len(rows), np.inf)
        for start, found in self._squares(rows):
            others = slice(start, start + found.shape[1])
            found[:, ~self.train[others]] = np.inf
            found[self.groups[rows][:, None] == self.groups[others]] = np.inf
            nearest = np.minimum(nearest, found.min(axis=1))
        return SHARE * float(np.median(np.sqrt(nearest)))

    def near(self, asked: Rows, others: Rows, distance: float) -> tuple[Rows, Rows]:
        """Masks `(n,)`: those of the rows `others` that lie within `distance` of a row of `asked`, and those of `asked`
        that have such a row. Both arguments are masks `(n,)`."""
        rows = np.flatnonzero(asked)
        near, has = np.zeros(len(self.train), bool), np.zeros(len(self.train), bool)
        for first in range(0, len(rows), QUERIES):
            part = rows[first : first + QUERIES]
            for start, found in self._squares(part):
                cut = slice(start, start + found.shape[1])
                close = (found <= distance**2) & others[cut]
                near[cut] |= close.any(axis=0)
                has[part] |= close.any(axis=1)
        return near, has

    def _squares(self, rows: Rows) -> Iterator[tuple[int, np.ndarray]]:
        """Per row group of the store its first row and the squared distances `(len(rows), k)` to its rows."""
        asked = self.store.z(rows).astype(np.float64)
        centre = asked.mean(axis=0)  # smaller norms, so that less is lost in the difference of squares
        asked -= centre
        own = (asked * asked).sum(axis=1)
        for start, z in self.store.iter_z():
            shifted = z.astype(np.float64) - centre
            squares = own[:, None] + (shifted * shifted).sum(axis=1) - 2.0 * (asked @ shifted.T)
            yield start, np.maximum(squares, 0.0)


def memorisation_scores(store: Shards, labels: Rows, train: Rows, classes: int) -> Rows:
    """By how much having a training row changes what a ridge head on these features says of it: float64 `(n,)`, NaN
    for other rows.

    The leave-one-out residual less the residual, in closed form over all training rows; the ridge by generalised
    cross-validation. Two passes over the store, one row group in memory. [methods.md 8]
    """
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
