"""Class-wise membership inference reads the retained classes only, and finds the known AUC of a Gaussian shift."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from expunge.evaluation.cmia import FLOOR, cmia_rows, neighbour_log_probabilities


def outputs(seed: int, n: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6))


def cmia(model: np.ndarray, retrained: np.ndarray, forgotten: list[int]) -> float:
    rows = cmia_rows(model, retrained, forgotten)
    assert rows is not None
    return float(rows.mean())


def test_probabilities_are_those_of_the_classes_that_stay() -> None:
    logits = outputs(0)
    expected = log_softmax(logits[:, [0, 1, 3, 5]], axis=1)
    np.testing.assert_allclose(neighbour_log_probabilities(logits, [4, 2]), expected, atol=1e-12)
    shifted = logits.copy()
    shifted[:, [2, 4]] -= 1e4  # Masking the forgotten classes must not matter.
    np.testing.assert_array_equal(
        neighbour_log_probabilities(shifted, [4, 2]), neighbour_log_probabilities(logits, [4, 2])
    )
    assert neighbour_log_probabilities(np.array([[0.0, 100.0, 3.0]]), [2])[0, 0] == FLOOR


def test_the_same_outputs_cannot_be_told_apart() -> None:
    assert cmia(outputs(1), outputs(1), [2]) == pytest.approx(0.5, abs=1e-12)


def test_outputs_of_one_distribution_lie_near_one_half() -> None:
    values = [cmia(outputs(2 * s), outputs(2 * s + 1), [2]) for s in range(5)]
    assert abs(np.mean(values) - 0.5) < 0.03


def test_a_shift_is_found_with_the_gaussian_auc() -> None:
    """The log-odds of two classes are N(0, 2) and N(m, 2), so the best possible AUC is Phi(m / 2)."""
    from scipy.stats import norm

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 4000, 3))
    a[:, 1] += 2.0
    assert cmia(a, b, [0]) == pytest.approx(norm.cdf(2.0 / 2), abs=0.015)


def test_rows_of_one_kind_are_on_one_side_and_few_give_none() -> None:
    assert cmia_rows(outputs(4)[:9], outputs(5)[:9], [1]) is None
    with pytest.raises(ValueError, match="of the same rows"):
        cmia(outputs(4), outputs(5)[:-1], [1])
    for removed in ([], [6], [0, 1, 2, 3, 4]):
        with pytest.raises(ValueError, match="at least two classes must be retained"):
            cmia(outputs(4), outputs(5), removed)


def test_rows_say_which_of_them_give_the_model_away() -> None:
    a, b = outputs(6), outputs(7)
    a[:40, 0] += 6.0
    rows = cmia_rows(a, b, [2])
    assert rows is not None
    assert rows.min() >= 0 and rows.max() <= 1 and rows[:40].mean() > rows[40:].mean() + 0.2
