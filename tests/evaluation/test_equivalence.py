"""Intervals for differences between models agree with standard errors, and cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.evaluation import equivalence as eq
from expunge.evaluation.membership import auc


@pytest.mark.parametrize("values", [np.arange(400) % 2 * 1.0, np.random.default_rng(1).normal(size=400)])
def test_bootstrap_of_a_mean_has_the_standard_error_of_the_mean(values: np.ndarray) -> None:
    draws = eq.bootstrap_means(values, np.random.default_rng(0), draws=4000)
    assert draws.std() == pytest.approx(values.std() / 20, rel=0.06)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.005)


def test_row_difference_covers_the_truth_about_nine_times_in_ten() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        d = eq.row_difference(rng.normal(0.1, 1.0, 100), rng)
        assert d is not None
        hits += d.low <= 0.1 <= d.high
    assert 165 <= hits <= 195
    assert eq.row_difference(np.empty(0), rng) is None


def test_weighted_auc_equals_the_auc_of_the_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 5, 20).astype(float), rng.integers(0, 5, 15).astype(float)
    wa, wb = rng.integers(0, 3, 20), rng.integers(0, 3, 15)
    assert eq.auc_draws(a, b, [(wa, wb)])[0] == pytest.approx(auc(np.repeat(a, wa), np.repeat(b, wb)))


def test_auc_difference_of_a_model_to_itself_is_zero_and_to_a_worse_one_is_clear() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.0, 1, 500), rng.normal(0, 1, 500)
    same = eq.auc_difference((a, b), [(a, b)], rng)
    assert same is not None and same.low == same.high == 0
    leak = eq.auc_difference((a + 1.0, b), [(a, b)], rng)
    assert leak is not None and leak.low > 0.15
    assert leak.value == pytest.approx(auc(a + 1.0, b) - auc(a, b))  # type: ignore[operator]
    assert eq.auc_difference((a, b[:0]), [(a, b[:0])], rng) is None
