"""The choice of the rows that each metric uses.

Rows are sorted by their content and then drawn with a seed, so results do not depend on the order of the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.accuracy import PARTS, UNSEEN
from expunge.evaluation.exposure import CanaryRows

Index = NDArray[np.int64]
Sides = tuple[Index, Index] | None
PROBE_TRAIN, PROBE_TEST = 4000, 1000  # rows on each side of a probe
MOST_ROWS = 100_000  # of one part that are measured; a share of these has a standard error of at most 0.16 points


def thinned(rows: Index, size: int, rng: np.random.Generator) -> Index:
    """At most `size` of `rows`, drawn without replacement and in their order."""
    return rows if len(rows) <= size else rows[np.sort(rng.choice(len(rows), size, replace=False))]


def measured_rows(
    part: NDArray[Any], among: NDArray[np.bool_], seed: int, always: NDArray[Any] | None = None, most: int = MOST_ROWS
) -> NDArray[np.bool_]:
    """Return the mask `(n,)` of the rows that are measured: at most `most` of each part, drawn from the mask `among`.

    The features and logits in memory therefore do not grow with the dataset. `part (n,)`: the part of every row.
    `always`: positions of rows in `among` that are measured beyond `most`, such as canaries.
    """
    rng = np.random.default_rng([seed, 15])
    found = np.zeros(len(part), bool)
    for name in np.unique(part[among]):
        found[thinned(np.flatnonzero(among & (part == name)), most, rng)] = True
    if always is not None:
        found[always[among[always]]] = True
    return found


@dataclass(frozen=True)
class Rows:
    """The rows that each metric uses, chosen once by `choose_rows` and the same for every model.

    `unseen`: the test rows of the forgotten rows' classes. `whole_classes`: whether no row of a forgotten class is
    retained. If so, probes predict the forgotten class; otherwise they predict whether a row was forgotten or never
    seen. `canaries`: the planted canaries and their counterparts, or None.
    """

    labels: NDArray[Any]
    parts: dict[str, Index]
    test: Index
    unseen: Index
    whole_classes: bool
    forgotten_classes: NDArray[Any]
    probe_train: tuple[Index, Index] | None
    probe_test: tuple[Index, Index] | None
    population: Index
    population_unseen: Index
    seed: int
    canaries: CanaryRows | None = None

    @property
    def forget(self) -> Index:
        """Positions of the forgotten rows."""
        return self.parts["forget"]

    def rng(self, stream: int) -> np.random.Generator:
        """Return a generator for one purpose, so that adding a metric does not change the draws of another."""
        return np.random.default_rng([self.seed, stream])

    def thin(self, rows: Index, size: int, stream: int) -> Index:
        """`thinned` with the generator of one purpose."""
        return thinned(rows, size, self.rng(stream))


def choose_rows(
    labels: NDArray[Any],
    part: NDArray[Any],
    order_by: NDArray[Any],
    seed: int,
    canaries: CanaryRows | None = None,
) -> Rows:
    """Choose the rows of every metric.

    `labels (n,)` int. `part (n,)`: one of PARTS, or UNSEEN for a row that no metric uses. `order_by (n, d)`: features
    by which rows are sorted. Raises ValueError for inputs of different lengths or an unknown part.
    """
    labels, part = np.asarray(labels), np.asarray(part).astype(str)
    if labels.ndim != 1 or part.shape != labels.shape or len(order_by) != len(labels):
        raise ValueError(
            f"labels, part and features must describe the same rows, got {labels.shape}, {part.shape} and "
            f"{len(order_by)}"
        )
    unknown = sorted(set(np.unique(part)) - {*PARTS, UNSEEN})
    if unknown:
        raise ValueError(f"unknown part {str(unknown[0])!r}, expected one of {', '.join(PARTS)}")
    keys = [np.asarray(order_by)[:, j] for j in range(min(8, np.shape(order_by)[1]))]
    order = np.lexsort((*keys, labels))
    parts = {name: order[part[order] == name] for name in PARTS}
    test = order[np.char.startswith(part[order], "test")]
    forgotten = np.unique(labels[parts["forget"]])
    whole = len(forgotten) > 0 and not np.isin(forgotten, labels[parts["retain"]]).any()
    unseen = test[np.isin(labels[test], forgotten)]
    rng = np.random.default_rng([seed, 0])
    probe_train, probe_test = _probe_rows(parts, unseen, whole, rng)
    mixed = rng.permutation(len(unseen))
    population_unseen = unseen if whole else unseen[np.sort(mixed[: len(unseen) // 2])]
    population = np.setdiff1d(test, np.concatenate([population_unseen, parts["test_forget"]]), assume_unique=False)
    population = order[np.isin(order, population)]
    return Rows(
        labels,
        parts,
        test,
        unseen,
        whole,
        forgotten,
        probe_train,
        probe_test,
        population,
        population_unseen,
        seed,
        canaries,
    )


def _probe_rows(parts: dict[str, Index], unseen: Index, whole: bool, rng: np.random.Generator) -> tuple[Sides, Sides]:
    """Balanced (positive, negative) rows for a probe to learn from and to be scored on; None if there are too few.

    With whole classes forgotten, the probe learns forgotten against retained training rows and is scored on their test
    rows. Otherwise it separates forgotten from unseen rows and learns from one half of each.
    """

    def draw(rows: Index, size: int) -> Index:
        return rows[np.sort(rng.choice(len(rows), size, replace=False))]

    def halves(rows: Index) -> tuple[Index, Index]:
        mixed = rng.permutation(len(rows))
        return rows[np.sort(mixed[: len(rows) // 2])], rows[np.sort(mixed[len(rows) // 2 :])]

    forget, retain = parts["forget"], parts["retain"]
    if whole and len(parts["test_forget"]) and len(parts["test_retain"]):
        sides = ((forget, parts["test_forget"]), (retain, parts["test_retain"]))
    else:
        sides = (halves(forget), halves(retain if whole else unseen))
    n = min(len(sides[0][0]), len(sides[1][0]), PROBE_TRAIN)
    m = min(len(sides[0][1]), len(sides[1][1]), PROBE_TEST)
    if n < 2 or m < 1:
        return None, None
    return (draw(sides[0][0], n), draw(sides[1][0], n)), (draw(sides[0][1], m), draw(sides[1][1], m))
