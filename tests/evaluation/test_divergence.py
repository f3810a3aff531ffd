"""Divergences between predictions equal those of SciPy, and ZRF and agreement equal computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats

from expunge.evaluation import divergence as div


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 7)) * 3, rng.normal(size=(200, 7)) * 3


def test_log_softmax_matches_scipy_and_survives_large_logits(pair: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(div.log_softmax(pair[0]), scipy.special.log_softmax(pair[0], axis=1), atol=1e-12)
    np.testing.assert_allclose(div.log_softmax(np.array([[1e4, 1e4]]))[0], np.log([0.5, 0.5]))


def test_kl_matches_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = (scipy.special.softmax(x, axis=1) for x in pair)
    np.testing.assert_allclose(div.kl_rows(*pair), scipy.stats.entropy(p, q, axis=1), atol=1e-9)


def test_js_matches_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = (scipy.special.softmax(x, axis=1) for x in pair)
    np.testing.assert_allclose(div.js_rows(*pair), scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2, atol=1e-9)


def test_js_is_symmetric_and_reaches_ln_2_for_disjoint_predictions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(div.js_rows(*pair), div.js_rows(*pair[::-1]), atol=1e-12)
    assert div.js_rows(np.array([[50.0, 0.0]]), np.array([[0.0, 50.0]]))[0] == pytest.approx(np.log(2))


def test_divergences_of_two_coins_equal_a_computation_by_hand() -> None:
    p, q = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert div.kl_rows(p, q)[0] == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert div.activation_distance_rows(p, q)[0] == pytest.approx(np.sqrt(2) * 0.4)


def test_identical_predictions_are_exactly_zero_apart(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = {"kl": 0.0, "js": 0.0, "agreement": 1.0, "activation_distance": 0.0}
    assert div.summary(pair[0], pair[0].copy()) == expected


def test_a_masked_class_costs_a_finite_amount() -> None:
    p, q = np.array([[0.0, 0.0]]), np.array([[0.0, -np.inf]])
    assert div.kl_rows(p, q)[0] == pytest.approx(0.5 * np.log(0.5) + 0.5 * (np.log(0.5) - np.log(1e-12)))


def test_agreement_counts_equal_predictions() -> None:
    p, q = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[9.0, 0.0], [0.0, 1.0]])
    assert div.agreement_rows(p, q).tolist() == [True, False]


def test_zrf_is_one_for_a_model_like_its_teacher_and_lowest_for_a_sure_one() -> None:
    assert div.zrf(np.zeros((3, 4))) == 1.0
    teacher, model = np.array([[60.0, 0.0]]), np.array([[0.0, 60.0]])
    assert div.zrf(model, teacher) == pytest.approx(1 - np.log(2))
    assert div.zrf(np.zeros((0, 4))) is None


def test_no_rows_give_none() -> None:
    empty = np.zeros((0, 3))
    assert set(div.summary(empty, empty).values()) == {None}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_no_logits_are_refused_by_row(bad: float) -> None:
    with pytest.raises(ValueError, match="row 1"):
        div.log_softmax(np.array([[0.0, 1.0], [0.0, bad]]))


def test_a_row_without_any_allowed_class_and_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="row 0"):
        div.log_softmax(np.full((1, 3), -np.inf))
    with pytest.raises(ValueError, match="same rows and classes"):
        div.kl_rows(np.zeros((2, 3)), np.zeros((2, 4)))
