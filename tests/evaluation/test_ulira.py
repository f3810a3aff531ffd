"""U-LiRA, RMIA, KLoM, epsilon and the forgetting score equal their definitions on simulated ensembles."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from expunge.evaluation import ulira as ul
from expunge.evaluation.membership import auc, tpr_at_fpr


def ensemble(rng: np.random.Generator, models: int, rows: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of models that each had a random half of the rows, and which rows those were.

    A row that a model had scores `shift` higher on it.
    """
    member = np.stack([rng.permutation(rows) < rows // 2 for _ in range(models)])
    difficulty = rng.normal(0, 3, rows)
    return difficulty + rng.normal(size=(models, rows)) + shift * member, member


def test_margins_are_log_odds_of_the_true_class() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
    got = ul.margins(np.log(p), np.array([0, 1]))
    np.testing.assert_allclose(got, [np.log(0.7 / 0.3), np.log(0.25 / 0.75)])
    masked = ul.margins(np.array([[-np.inf, 0.0]]), np.array([0]))
    assert masked[0] == -ul.MARGIN_LIMIT
    with pytest.raises(ValueError, match="two classes"):
        ul.margins(np.zeros((2, 1)), np.zeros(2, dtype=int))


def test_likelihood_ratio_is_that_of_gaussians_fitted_without_the_scored_model() -> None:
    scores, member = ensemble(np.random.default_rng(0), 12, 30, 1.0)
    got = ul.lira_scores(scores, member)
    for i, j in [(0, 0), (5, 7), (11, 29)]:
        inside = [scores[k, j] for k in range(12) if member[k, j] and k != i]
        outside = [scores[k, j] for k in range(12) if not member[k, j] and k != i]
        expected = scipy.stats.norm.logpdf(scores[i, j], np.mean(inside), np.std(inside)) - scipy.stats.norm.logpdf(
            scores[i, j], np.mean(outside), np.std(outside)
        )
        assert got[i, j] == pytest.approx(expected, rel=1e-4)


def test_ulira_finds_what_a_pooled_attack_cannot_and_nothing_where_there_is_nothing() -> None:
    scores, member = ensemble(np.random.default_rng(1), 64, 400, 1.5)
    found = ul.ulira(scores, member)
    best = scipy.stats.norm.cdf(1.5 / np.sqrt(2))  # An attacker who knows both Gaussians gets this.
    assert found["auc"] == pytest.approx(best, abs=0.03)
    assert auc(scores[member], scores[~member]) < best - 0.15  # type: ignore[operator]
    assert found["tpr_at_fpr_1pct"] > 0.1  # type: ignore[operator]
    nothing = ul.ulira(*ensemble(np.random.default_rng(2), 64, 400, 0.0))
    assert nothing["auc"] == pytest.approx(0.5, abs=0.02)
    assert nothing["tpr_at_fpr_1pct"] == pytest.approx(0.01, abs=0.005)


def test_ulira_needs_three_models_on_each_side_of_a_row() -> None:
    scores = np.random.default_rng(3).normal(size=(5, 10))
    member = np.arange(5)[:, None] < np.full((1, 10), 2)
    assert set(ul.ulira(scores, member).values()) == {None}
    with pytest.raises(ValueError, match="finite"):
        ul.ulira(np.full((6, 2), np.inf), np.zeros((6, 2), bool))
    with pytest.raises(ValueError, match=r"\(models, rows\)"):
        ul.ulira(scores, member[:3])


def test_ulira_of_models_with_equal_outputs_is_a_guess() -> None:
    member = np.arange(8)[:, None] % 2 == np.arange(10)[None] % 2
    assert ul.ulira(np.ones((8, 10)), member)["auc"] == 0.5


def test_rmia_over_an_ensemble_finds_members() -> None:
    rng = np.random.default_rng(4)
    scores, member = ensemble(rng, 32, 300, 2.0)
    population = rng.normal(0, 3, 200) + rng.normal(size=(32, 200))

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    found = ul.rmia(sigmoid(scores), member, sigmoid(population))
    blind = ul.rmia(sigmoid(scores - 2.0 * member), member, sigmoid(population))
    assert found["auc"] > 0.75  # type: ignore[operator]
    assert blind["auc"] == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match="at least one reference"):
        ul.rmia(scores[:1], member[:1], population[:1])


def test_klom_is_the_kl_of_two_histograms() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.5, 1, (200, 3)), rng.normal(0, 1, (150, 3))
    got = ul.klom_rows(a, b)
    for j in range(3):
        edges = np.linspace(min(a[:, j].min(), b[:, j].min()), max(a[:, j].max(), b[:, j].max()), 21)
        p, q = np.histogram(a[:, j], edges)[0] / 200, np.histogram(b[:, j], edges)[0] / 150
        expected = sum(x * np.log(x / max(y, 1e-5)) for x, y in zip(p, q, strict=True) if x > 0)
        assert got[j] == pytest.approx(expected)


def test_klom_is_zero_for_identical_ensembles_and_largest_for_disjoint_ones() -> None:
    m = np.random.default_rng(6).normal(size=(40, 5))
    assert ul.klom(m, m) == {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    assert ul.klom(np.ones((4, 2)), np.ones((4, 2)))["p50"] == 0.0
    assert ul.klom(np.ones((4, 2)), np.zeros((4, 2)))["p50"] == pytest.approx(np.log(1e5))
    assert set(ul.klom(m[:, :0], m[:, :0]).values()) == {None}
    assert ul.klom(np.full((4, 1), np.inf), np.zeros((4, 1)))["p50"] == pytest.approx(np.log(1e5))
    with pytest.raises(ValueError, match="same rows"):
        ul.klom(m, m[:, :2])


def brute_epsilon(x: np.ndarray, y: np.ndarray, delta: float) -> float:
    levels = np.unique(np.r_[x, y])
    cuts = np.r_[-np.inf, (levels[1:] + levels[:-1]) / 2, np.inf]
    best = 0.0
    for i in range(len(cuts)):
        for j in range(i + 1, len(cuts)):
            fpr = np.mean((y > cuts[i]) & (y < cuts[j]))
            fnr = 1 - np.mean((x > cuts[i]) & (x < cuts[j]))
            if fpr == 0 and fnr == 0:
                return float("inf")
            if fpr == 0 or fnr < 1e-12:
                continue
            for a, b in ((fpr, fnr), (fnr, fpr)):
                if 1 - delta - a > 0:
                    best = max(best, np.log(1 - delta - a) - np.log(b))
    return best


def test_epsilon_is_the_best_of_all_interval_attacks() -> None:
    rng = np.random.default_rng(7)
    a, b = np.round(rng.normal(0.8, 1, (14, 6)), 1), np.round(rng.normal(0, 1, (11, 6)), 1)
    expected = [brute_epsilon(x, y, 1e-5) for x, y in zip(a.T, b.T, strict=True)]
    np.testing.assert_allclose(ul.epsilon_rows(a, b), expected, rtol=1e-9)


def test_epsilon_of_separated_and_of_identical_models() -> None:
    m = np.random.default_rng(8).normal(size=(20, 4))
    assert np.isinf(ul.epsilon_rows(m + 100, m)).all()
    assert (ul.epsilon_rows(m, m) < 1e-3).all()
    assert ul.epsilon_rows(np.ones((5, 1)), np.ones((5, 1)))[0] == 0.0


def test_forgetting_score_halves_with_every_bin() -> None:
    assert ul.forgetting_score(np.array([0.0, 0.49])) == 1.0
    assert ul.forgetting_score(np.array([0.5])) == 0.5
    assert ul.forgetting_score(np.array([1.2, np.inf])) == pytest.approx((2 / 2**3 + 2 / 2**13) / 2)
    assert ul.forgetting_score(np.empty(0)) is None
    with pytest.raises(ValueError, match="non-negative"):
        ul.forgetting_score(np.array([np.nan]))


def test_the_interval_of_the_tpr_is_a_bootstrap_over_models() -> None:
    rng = np.random.default_rng(6)
    scores, member = ensemble(rng, 40, 200, 1.0)
    scores += rng.normal(0, 1.5, (40, 1))  # All rows of a model share this part.
    low, high = ul.tpr_interval(scores, member, 0.01)
    drawn = []
    for _ in range(300):  # The reference resamples whole models.
        models = rng.integers(40, size=40)
        s, m = scores[models], member[models]
        drawn.append(tpr_at_fpr(s[m], s[~m], 0.01))
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=0.03)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=0.03)


def test_the_interval_draws_unlearned_and_retrained_models_apart() -> None:
    rng = np.random.default_rng(7)
    member = np.repeat([[True], [False]], [3, 12], axis=0) & np.ones((15, 50), bool)
    scores = rng.normal(size=(15, 50))
    low, high = ul.tpr_interval(scores, member, 0.1)
    assert low is not None and high is not None and 0 <= low <= high <= 1
    scores[:3] += 100
    assert ul.tpr_interval(scores, member, 0.1) == (1.0, 1.0)
    assert ul.tpr_interval(np.full((4, 5), np.nan), np.eye(4, 5, dtype=bool), 0.1) == (None, None)
