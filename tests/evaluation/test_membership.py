"""Membership attacks equal their definitions, scikit-learn and SciPy, and guess where there is no signal."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score, roc_curve

from expunge.evaluation import membership as mia


def confident(p: np.ndarray, labels: np.ndarray, classes: int = 4) -> np.ndarray:
    """Return logits that give the true class probability p and the others equal shares."""
    probability = np.repeat(((1 - p) / (classes - 1))[:, None], classes, axis=1)
    probability[np.arange(len(p)), labels] = p
    return np.log(probability)


def test_auc_with_ties_matches_scikit_learn_and_mann_whitney() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 12, 300).astype(float), rng.integers(0, 10, 200).astype(float)
    truth = np.r_[np.ones(300), np.zeros(200)]
    assert mia.auc(a, b) == pytest.approx(roc_auc_score(truth, np.r_[a, b]))
    assert mia.auc(a, b) == pytest.approx(scipy.stats.mannwhitneyu(a, b).statistic / (300 * 200))


def test_auc_of_ties_is_one_half_of_empty_sets_none_and_nan_is_refused() -> None:
    assert mia.auc(np.ones(5), np.ones(7)) == 0.5
    assert mia.auc(np.ones(5), np.empty(0)) is None
    assert mia.auc(np.array([np.inf]), np.array([0.0])) == 1.0
    with pytest.raises(ValueError, match="NaN"):
        mia.auc(np.array([np.nan]), np.ones(2))


@pytest.mark.parametrize("fpr", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_tpr_is_the_best_point_of_the_roc_curve_left_of_the_rate(fpr: float) -> None:
    rng = np.random.default_rng(1)
    a, b = np.round(rng.normal(0.7, 1, 400), 1), np.round(rng.normal(0, 1, 300), 1)
    x, y, _ = roc_curve(np.r_[np.ones(400), np.zeros(300)], np.r_[a, b], drop_intermediate=False)
    assert mia.tpr_at_fpr(a, b, fpr) == pytest.approx(y[x <= fpr + 1e-12].max())


def test_tpr_of_ties_is_zero_and_of_empty_sets_none() -> None:
    assert mia.tpr_at_fpr(np.ones(3), np.ones(3), 0.1) == 0.0
    assert mia.tpr_at_fpr(np.empty(0), np.ones(3), 0.1) is None


def test_loss_is_cross_entropy_with_a_floor() -> None:
    logits = np.log([[0.2, 0.8], [0.5, 0.5]])
    np.testing.assert_allclose(mia.loss(logits, np.array([0, 1])), -np.log([0.2, 0.5]))
    assert mia.loss(np.array([[0.0, -np.inf]]), np.array([1]))[0] == pytest.approx(-np.log(1e-12))


def test_loss_auc_is_above_half_for_rows_that_fit_better_and_below_for_over_forgetting() -> None:
    y = np.zeros(50, dtype=int)
    low, high = confident(np.linspace(0.3, 0.5, 50), y), confident(np.linspace(0.6, 0.9, 50), y)
    assert mia.loss_auc(high, y, low, y) == 1.0
    assert mia.loss_auc(low, y, high, y) == 0.0
    masked = np.tile([-np.inf, 0.0, 0.0], (50, 1))
    assert mia.loss_auc(masked, y, masked, y) == 0.5


def test_entropies_equal_scipy_and_a_computation_by_hand() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(50, 6))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mia.entropy(logits), scipy.stats.entropy(p, axis=1), atol=1e-9)
    got = mia.modified_entropy(np.log([[0.7, 0.2, 0.1]]), np.array([0]))[0]
    assert got == pytest.approx(-0.3 * np.log(0.7) - 0.2 * np.log(0.8) - 0.1 * np.log(0.9))
    assert mia.modified_entropy(np.array([[80.0, 0.0]]), np.array([0]))[0] == pytest.approx(0.0, abs=1e-9)


def share_of_members(*sets: np.ndarray) -> float | None:
    rows = mia.mia_lr_rows(*sets)
    return None if rows is None else float(rows.mean())


def test_mia_lr_puts_its_threshold_between_members_and_strangers() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 3000)
    sure, unsure = confident(rng.uniform(0.95, 0.999, 3000), y), confident(rng.uniform(0.3, 0.6, 3000), y)
    assert share_of_members(sure, unsure[:500], sure[:100]) == 1.0
    assert share_of_members(sure, unsure[:500], unsure[:100]) == 0.0
    half = np.concatenate([sure[:60], unsure[:40]])
    assert share_of_members(sure, unsure, half) == pytest.approx(0.6)


def test_mia_lr_without_signal_is_one_half_and_without_rows_none() -> None:
    flat = np.zeros((40, 3))
    assert share_of_members(flat, flat[:10], flat[:5]) == 0.5
    assert share_of_members(flat, flat[:0], flat) is None
    assert share_of_members(flat, flat, flat[:0]) is None


def test_mia_svc_tells_members_from_strangers_by_every_informative_feature() -> None:
    rng = np.random.default_rng(4)
    y = rng.integers(0, 4, 400)
    sure, wrong = confident(rng.uniform(0.9, 0.99, 400), y), confident(rng.uniform(0.01, 0.2, 400), y)
    shares = mia.mia_svc((sure, y), (wrong, y), (sure[:100], y[:100]), rng)
    assert set(shares) == set(mia.SVC_FEATURES)
    assert all(value is not None and value > 0.95 for value in shares.values())
    shares = mia.mia_svc((sure, y), (wrong, y), (wrong[:100], y[:100]), rng)
    assert all(value is not None and value < 0.05 for value in shares.values())


def test_mia_svc_on_constant_features_is_a_guess_and_on_empty_sets_none() -> None:
    flat, y = np.zeros((30, 3)), np.zeros(30, dtype=int)
    rng = np.random.default_rng(0)
    assert set(mia.mia_svc((flat, y), (flat, y), (flat, y), rng).values()) == {0.5}
    assert set(mia.mia_svc((flat, y), (flat, y), (flat[:0], y[:0]), rng).values()) == {None}
    with pytest.raises(ValueError, match="unknown feature"):
        mia.svc_feature("loss", flat, y)


def test_rmia_is_the_pairwise_definition() -> None:
    rng = np.random.default_rng(5)
    p, refs = rng.uniform(0.01, 1, 30), rng.uniform(0.01, 1, (3, 30))
    q, q_refs = rng.uniform(0.01, 1, 40), rng.uniform(0.01, 1, (3, 40))
    got = mia.rmia_scores(p, refs, q, q_refs, gamma=1.3)
    ratio = (p / refs.mean(axis=0))[:, None] / (q / q_refs.mean(axis=0))[None]
    np.testing.assert_allclose(got, (ratio > 1.3).mean(axis=1))


def test_rmia_of_a_model_against_itself_says_nothing() -> None:
    p = np.linspace(0.1, 0.9, 9)
    np.testing.assert_array_equal(mia.rmia_scores(p, p[None], p, p[None]), 0.5)
    with pytest.raises(ValueError, match="at least one reference"):
        mia.rmia_scores(p, np.empty((0, 9)), p, np.empty((0, 9)))


def test_class_geometry_finds_a_class_by_its_neighbours_only_if_it_shows_there() -> None:
    rng = np.random.default_rng(6)
    y = rng.integers(0, 4, 2000)
    logits = np.eye(4)[y] * 4 + rng.normal(size=(2000, 4)) * 0.3
    telling = logits.copy()
    telling[y == 3, 1] += 3.0  # Its rows favour one neighbouring class.
    telling[:, 3] = -np.inf
    found = mia.class_geometry_rows(telling, y == 3, np.array([3]), np.random.default_rng(0))
    held_out = (y == 3).sum() - (y == 3).sum() // 2  # The smaller side sets the size of both.
    assert found is not None and found.shape == (2 * held_out,) and set(found) == {0.0, 1.0}
    assert found[:held_out].mean() > 0.8 and found[held_out:].mean() > 0.8
    silent = rng.normal(size=(2000, 4))
    guesses = mia.class_geometry_rows(silent, y == 3, np.array([3]), np.random.default_rng(0))
    assert guesses is not None and guesses.mean() == pytest.approx(0.5, abs=0.06)


def test_class_geometry_needs_rows_and_classes() -> None:
    logits, y = np.zeros((20, 2)), np.arange(20) % 2
    assert mia.class_geometry_rows(logits, y == 1, np.array([1]), np.random.default_rng(0)) is None
    nobody = np.zeros(20, dtype=bool)
    assert mia.class_geometry_rows(np.zeros((20, 3)), nobody, np.array([2]), np.random.default_rng(0)) is None
