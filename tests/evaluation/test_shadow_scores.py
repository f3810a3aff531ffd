"""Attacks compare unlearned with retrained models and find no difference between models that are equal.

A row that only some of the models had is scored on those models alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from expunge.evaluation.shadow_heads import HeadRecipe, complementary_halves, train_heads
from expunge.evaluation.shadow_scores import ShadowMargins, against, floor
from expunge.evaluation.ulira import klom_rows, lira_scores, rmia


def side(
    rng: np.random.Generator, models: int, shift: float = 0.0, rows: int = 300, population: int = 200
) -> ShadowMargins:
    level = np.random.default_rng(7).normal(size=rows + population)
    margins = level + rng.normal(size=(models, rows + population))
    return ShadowMargins((margins[:, :rows] + shift).astype(np.float32), margins[:, rows:].astype(np.float32))


def test_equal_models_cannot_be_told_apart_and_score_like_the_floor() -> None:
    rng = np.random.default_rng(0)
    retrained = side(rng, 32)
    result, base = against(side(rng, 32), retrained, 16, 0), floor(retrained, 0)
    for attack in ("ulira", "rmia"):
        assert result[attack]["auc"] == pytest.approx(0.5, abs=0.03)
        assert base[attack]["auc"] == pytest.approx(0.5, abs=0.03)
    assert result["klom"]["p50"] == pytest.approx(base["klom"]["p50"], rel=0.15)
    assert result["forgetting_score"] == pytest.approx(base["forgetting_score"], rel=0.25)


def test_models_that_kept_the_rows_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    retrained = side(rng, 32)
    result, base = against(side(rng, 32, shift=4.0), retrained, 16, 0), floor(retrained, 0)
    assert result["ulira"]["auc"] > 0.99 and result["rmia"]["auc"] > 0.95
    assert result["klom"]["p50"] > base["klom"]["p50"] + 3
    assert result["forgetting_score"] < base["forgetting_score"] / 10


def test_attacks_are_those_of_their_own_functions_on_stacked_models() -> None:
    rng = np.random.default_rng(1)
    unlearned, retrained = side(rng, 12, shift=1.0), side(rng, 12)
    result = against(unlearned, retrained, 6, 0)
    stacked = np.concatenate([unlearned.forget, retrained.forget])
    member = np.arange(24)[:, None] < 12
    scores = lira_scores(stacked, np.broadcast_to(member, stacked.shape))
    truth = np.broadcast_to(member, scores.shape).ravel()
    assert result["ulira"]["auc"] == pytest.approx(roc_auc_score(truth, scores.ravel()), abs=1e-9)
    pairs = [(unlearned.forget[g], retrained.forget[g]) for g in (slice(0, 6), slice(6, 12))]
    both = np.concatenate([klom_rows(a, b) for a, b in pairs])
    assert result["klom"]["p95"] == pytest.approx(np.percentile(both, 95))


def test_only_models_that_had_a_row_count_for_it() -> None:
    """Nonsense in the scores of the other models must not change the result."""
    rng = np.random.default_rng(2)
    base, retrained = side(rng, 16, shift=2.0), side(rng, 16)
    had = complementary_halves(300, 16, seed=0)
    spoiled = ShadowMargins(np.where(had, base.forget, 50.0).astype(np.float32), base.population, had)
    dense = ShadowMargins(base.forget, base.population, had).dense()
    assert dense.shape == (8, 300)
    np.testing.assert_array_equal(dense[:, 5], base.forget[had[:, 5], 5])
    made_by = ShadowMargins(base.forget, base.population, had).made_by()
    np.testing.assert_array_equal(np.take_along_axis(base.forget, made_by, axis=0), dense)
    clean, dirty = (against(s, retrained, 8, 0) for s in (ShadowMargins(base.forget, base.population, had), spoiled))
    assert clean["ulira"] == dirty["ulira"] and clean["klom"] == dirty["klom"]
    # The nonsense still enters the mean over reference models, but is not scored itself.
    assert dirty["rmia"]["auc"] == pytest.approx(clean["rmia"]["auc"], abs=0.05)
    with pytest.raises(ValueError, match="the same number of models"):
        ShadowMargins(base.forget, base.population, np.triu(np.ones((16, 300), dtype=bool))).dense()


def test_rmia_counts_only_the_scored_pairs() -> None:
    rng = np.random.default_rng(3)
    p, q = rng.random((6, 40)), rng.random((6, 30))
    member = rng.random((6, 40)) < 0.5
    everything = rmia(p, member, q)
    assert rmia(p, member, q, scored=np.ones_like(member)) == everything
    assert rmia(p, member, q, scored=~member)["auc"] is None
    first = np.broadcast_to(np.arange(40) < 20, member.shape)
    assert rmia(p, member, q, scored=first) == rmia(p[:, :20], member[:, :20], q)


def test_complementary_halves_give_every_row_to_half_of_the_heads() -> None:
    member = complementary_halves(101, 6, seed=4)
    assert (member.sum(axis=0) == 3).all()
    assert set(member.sum(axis=1)) == {50, 51}
    assert not np.array_equal(member[0], member[2])
    with pytest.raises(ValueError, match="pairs"):
        complementary_halves(10, 3, seed=0)


def test_heads_learn_from_the_rows_that_they_are_given() -> None:
    """A head is right on the rows that it was given, and never answers with a class that it was not given."""
    rng = np.random.default_rng(5)
    y = np.repeat([0, 1, 2], 60)
    z = (np.eye(3)[y] * 4 + rng.normal(size=(180, 3))).astype(np.float32)
    member = np.stack([y != 2, y != 1])
    recipe = HeadRecipe(epochs=20, batch=30)
    found = train_heads(z, y, 2, saw_forget_data=False, seed=0, member=member, recipe=recipe)
    for head, absent in ((0, 2), (1, 1)):
        mine = member[head]
        answers = (z[mine] @ found.weight[head].T + found.bias[head]).argmax(axis=1)
        assert absent not in answers and (answers == y[mine]).mean() > 0.95
    with pytest.raises(ValueError, match="member must be"):
        train_heads(z, y, 2, saw_forget_data=False, seed=0, member=member[:, :-1])


def test_groups_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(6)
    with pytest.raises(ValueError, match="at least 9 models to form a group"):
        against(side(rng, 8), side(rng, 16), 9, 0)
