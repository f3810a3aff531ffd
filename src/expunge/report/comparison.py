"""Compare two classifiers on the same rows: accuracies, changed predictions, forgotten rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from expunge.data.dataset import Dataset, Inputs
from expunge.data.schema import FORGET, TEST_FORGET, TEST_RETAIN
from expunge.evaluation.equivalence import Difference, row_difference

ROWS = 5_000  # largest number of rows of each part, drawn with a fixed seed
PARTS = {
    TEST_RETAIN: "retained test rows",
    TEST_FORGET: "test rows of forgotten classes",
    FORGET: "forgotten training rows",
}

Predict = Callable[[Inputs], NDArray[np.int64]]
Answers = Callable[[NDArray[np.int64]], NDArray[np.int64]]


class RowsOfParts(Protocol):
    """A split or a substitute: gives the ascending dataset positions, int64, of the rows of a part."""

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the positions of the rows of `part`."""


@dataclass(frozen=True)
class ComparedRows:
    """Answers of both classifiers on the same rows: `labels (n,)` and predicted classes `before (n,)` and `after (n,)`.

    `rows`: positions in the dataset, for callers that show the rows themselves; they are never printed or stored.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Mask of the rows whose predicted class differs."""
        return np.asarray(self.before != self.after)

    @property
    def lost(self) -> int:
        """The number of rows that were right before and are wrong after."""
        return int(((self.before == self.labels) & (self.after != self.labels)).sum())

    @property
    def gained(self) -> int:
        """The number of rows that were wrong before and are right after."""
        return int(((self.before != self.labels) & (self.after == self.labels)).sum())

    def accuracies(self) -> tuple[Interval, Interval]:
        """Return the accuracies before and after, with their intervals."""
        return share(self.before == self.labels), share(self.after == self.labels)

    def difference(self) -> Difference | None:
        """Return the accuracy after minus before, with its 90 % bootstrap interval over paired rows."""
        right = (self.after == self.labels).astype(float) - (self.before == self.labels)
        return row_difference(right, np.random.default_rng(0))

    def moves(self, most: int = 5) -> list[tuple[int, int, int]]:
        """Return the most frequent changes: (class before, class after, number of rows)."""
        pairs = Counter(zip(self.before[self.changed].tolist(), self.after[self.changed].tolist(), strict=True))
        return [(a, b, n) for (a, b), n in sorted(pairs.items(), key=lambda p: (-p[1], p[0]))[:most]]


@dataclass(frozen=True)
class Interval:
    """A share in [0, 1] of `rows` rows, with its 95 % Wilson interval; all None without rows."""

    value: float | None
    low: float | None
    high: float | None
    rows: int


def share(hits: NDArray[np.bool_]) -> Interval:
    """Return the share of true values in `hits (n,)`.

    The interval is Wilson's (1927), which keeps its level near 0 and 1, where accuracies of interest lie.
    """
    n = len(hits)
    if not n:
        return Interval(None, None, None, 0)
    from scipy.stats import binomtest  # the import takes half a second

    found = binomtest(int(hits.sum()), n).proportion_ci(0.95, method="wilson")
    return Interval(float(np.mean(hits)), float(found.low), float(found.high), n)


def predictions_of_parts(
    before: Predict, after: Predict, dataset: Dataset, split: RowsOfParts
) -> dict[str, ComparedRows]:
    """Compute the predictions of both classifiers on the same rows of each part that has rows."""
    return on_same_rows(lambda r: before(dataset.inputs(r)), lambda r: after(dataset.inputs(r)), dataset, split)


def on_same_rows(before: Answers, after: Answers, dataset: Dataset, split: RowsOfParts) -> dict[str, ComparedRows]:
    """Return the answers of `before` and `after` on the same rows of each part that has rows.

    Both are called with ascending dataset positions.
    """
    labels = dataset.labels()
    out = {}
    for part in PARTS:
        rows = split.rows(part)
        if len(rows) > ROWS:
            rows = np.sort(np.random.default_rng(0).choice(rows, ROWS, replace=False))
        if len(rows):
            out[part] = ComparedRows(rows, labels[rows].astype(np.int64), before(rows), after(rows))
    return out


def counts(parts: Mapping[str, ComparedRows]) -> dict[str, Any]:
    """Return what a reviewer was shown as counts, which may be stored."""
    return {
        part: {"of": len(p.labels), "changed": int(p.changed.sum()), "lost": p.lost, "gained": p.gained}
        for part, p in parts.items()
    }
