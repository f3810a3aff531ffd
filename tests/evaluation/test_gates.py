"""The values that gates compute per row equal their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.evaluation.gates import direction_rows, hide, true_class_margin
from expunge.evaluation.membership import auc, placements

RNG = np.random.default_rng(0)


def test_placements_average_to_the_auc() -> None:
    a, b = RNG.integers(0, 9, 50), RNG.integers(0, 9, 70)
    assert placements(a, b).mean() == pytest.approx(auc(a, b))


def test_the_margin_is_the_log_odds_of_the_true_class() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])
    got = true_class_margin(np.log(p), np.array([0, 2]))
    np.testing.assert_allclose(got, np.log([0.7 / 0.3, 0.05 / 0.95]))


def test_hiding_a_class_drops_its_column() -> None:
    logits = RNG.normal(size=(4, 3))
    np.testing.assert_array_equal(hide(logits, np.array([1])), logits[:, [0, 2]])


def test_the_direction_is_the_mean_over_ordered_pairs() -> None:
    u, o, r = RNG.normal(size=8), RNG.normal(size=8), RNG.normal(size=(3, 8))
    pairs = [(u - r[a]) * (o - r[b]) for a in range(3) for b in range(3) if a != b]
    np.testing.assert_allclose(direction_rows(u, o, r), np.mean(pairs, axis=0))
    each = [direction_rows(r[k], o, np.delete(r, k, axis=0)) for k in range(3)]
    np.testing.assert_allclose(np.mean(each, axis=0), 0.0, atol=1e-12)
    with pytest.raises(ValueError, match="two retrained"):
        direction_rows(u, o, r[:1])
