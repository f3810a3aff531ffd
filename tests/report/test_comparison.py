"""Test the comparison of two models on the same rows: counts of changes, and Wilson's interval of a share."""

import numpy as np
import pytest

from expunge.report.comparison import ComparedRows, counts, share


def part(labels, before, after):
    return ComparedRows(np.arange(len(labels)), *(np.array(x) for x in (labels, before, after)))


def test_changed_lost_and_gained_are_counted():
    p = part([0, 0, 1, 1, 2, 2], [0, 1, 1, 0, 2, 0], [0, 0, 0, 0, 1, 1])
    # The rows are, in order: right both times, gained, lost, the same error twice, lost, and two different errors.
    assert (int(p.changed.sum()), p.lost, p.gained) == (4, 2, 1)
    assert p.moves() == [(1, 0, 2), (0, 1, 1), (2, 1, 1)]
    before, after = p.accuracies()
    assert (before.value, after.value) == (3 / 6, 2 / 6)
    assert p.difference().value == pytest.approx(-1 / 6)
    assert counts({"test_retain": p}) == {"test_retain": {"of": 6, "changed": 4, "lost": 2, "gained": 1}}


@pytest.mark.parametrize(
    ("hits", "n"),
    [(0, 10), (10, 10), (7, 10), (95, 100), (1, 1)],
)
def test_the_interval_holds_the_shares_that_a_score_test_does_not_reject(hits, n):
    """The reference is the definition of Wilson's interval, evaluated on a fine grid."""
    z = 1.959963984540054
    p = hits / n

    def rejected(x):
        return (p - x) ** 2 > z * z * x * (1 - x) / n

    grid = np.linspace(1e-9, 1 - 1e-9, 400_001)
    retained = grid[~rejected(grid)]
    i = share(np.arange(n) < hits)
    assert i.value == p and i.rows == n
    assert (i.low, i.high) == pytest.approx((retained[0], retained[-1]), abs=1e-5)


def test_nothing_to_count_is_no_share():
    assert share(np.zeros(0, bool)).value is None
    assert part([0, 1], [0, 1], [0, 1]).moves() == []
