"""The exposure of canaries equals ranks counted by hand, and its p-values equal those over all permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from expunge.evaluation.exposure import CanaryRows, canary_block, canary_placements, exposures


def rows_of(planted: int, others: int) -> CanaryRows:
    """Return rows with the planted canaries first and then the others, all with label 0."""
    at = np.arange(planted + others)
    return CanaryRows(at[:planted], np.zeros(planted, int), at[planted:], np.zeros(others, int))


def logits_of(losses: list[float]) -> np.ndarray:
    """Return logits of two classes that give the first class these losses."""
    p = np.exp(-np.array(losses))
    return np.stack([np.log(p), np.log1p(-p)], axis=1)


def test_exposure_is_what_ranks_counted_by_hand_give() -> None:
    others = [0.3, 0.5, 0.5, 2.0, 4.0, 5.0, 6.0]
    planted = [0.1, 0.5, 3.0, 9.0]
    # Ranks go up to 8. One other is better than the second canary and two equal it, so it gets the middle rank 3.
    ranks = [1, 3, 5, 8]
    assert exposures(np.array(planted), np.array(others)) == pytest.approx(np.log2(8) - np.log2(ranks))
    block = canary_block(logits_of(planted + others), rows_of(4, 7))
    assert block is not None and block["planted"] == 4 and block["others"] == 7 and block["exposure_max"] == 3.0
    assert block["exposure"] == pytest.approx(float(np.mean(np.log2(8) - np.log2(ranks))))


def test_placements_average_to_the_share_of_pairs_in_order() -> None:
    planted, others = [0.1, 0.5, 3.0], [0.3, 0.5, 2.0, 4.0]
    pairs = [1.0 if p < o else 0.5 if p == o else 0.0 for p in planted for o in others]
    placed = canary_placements(logits_of(planted + others), rows_of(3, 4))
    assert placed.mean() == pytest.approx(np.mean(pairs))


def test_the_chances_are_those_of_all_ways_the_coin_could_have_fallen() -> None:
    losses = [0.11, 0.35, 0.62, 0.9, 1.4, 2.2, 3.1]
    block = canary_block(logits_of(losses), rows_of(3, 4))
    scores = -np.array(losses)

    def wins(order: tuple[int, ...]) -> int:
        return sum(scores[a] > scores[b] for a in order[:3] for b in order[3:])

    every = np.array([wins(order) for order in permutations(range(7))])
    seen = wins(tuple(range(7)))
    assert block is not None
    assert block["p_remembered"] == pytest.approx((every >= seen).mean())
    assert block["p_overshot"] == pytest.approx((every <= seen).mean())


def test_a_model_that_never_saw_them_is_called_one_that_did_as_often_as_chance_says() -> None:
    rng = np.random.default_rng(0)
    blocks = [canary_block(rng.normal(size=(160, 3)), rows_of(80, 80)) for _ in range(400)]
    p = np.array([b["p_remembered"] for b in blocks if b is not None])
    assert abs((p < 0.05).mean() - 0.05) < 0.033  # This is three standard errors of 400 draws.
    exposure = np.mean([b["exposure"] for b in blocks if b is not None])
    expected = np.log2(81) - np.log2(np.arange(1, 82)).mean()
    assert exposure == pytest.approx(expected, abs=0.03)


def test_canaries_on_rows_that_do_not_count_are_left_out() -> None:
    rows = CanaryRows(np.array([1, 4]), np.array([0, 1]), np.array([2, 5]), np.array([1, 0]))
    counts = np.array([True, False, True, False, True, True])
    retained = rows.among(counts)
    assert retained.planted.tolist() == [2] and retained.planted_labels.tolist() == [1]
    assert retained.others.tolist() == [1, 3] and retained.other_labels.tolist() == [1, 0]


def test_without_canaries_there_is_no_exposure() -> None:
    assert canary_block(np.zeros((3, 2)), None) is None
    assert canary_block(np.zeros((3, 2)), rows_of(0, 3)) is None
