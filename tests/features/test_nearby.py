"""Near-duplicates by features and memorisation scores equal plain references, computed over pairs and row by row."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from expunge.core.ridge_head import RidgeHead
from expunge.features import nearby
from expunge.features.nearby import Nearby, memorisation_scores

N, DIM = 500, 16


class InMemory:
    """A store in memory with the part that `Nearby` reads, in row groups of 64."""

    def __init__(self, z: np.ndarray) -> None:
        self.values = z

    def z(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]

    def iter_z(self):
        for start in range(0, len(self.values), 64):
            yield start, self.values[start : start + 64]


@pytest.fixture
def z() -> np.ndarray:
    """Return rows around four distant centres, where row 300 + i nearly equals row i for i < 10."""
    rng = np.random.default_rng(0)
    values = (50 * rng.normal(size=(4, DIM))[np.arange(N) % 4] + rng.normal(size=(N, DIM))).astype(np.float32)
    values[300:310] = values[:10] + rng.normal(0, 0.01, (10, DIM)).astype(np.float32)
    return values


@pytest.fixture
def train() -> np.ndarray:
    return np.arange(N) < 400


def test_planted_copies_are_found_and_nothing_else(z, train, monkeypatch):
    monkeypatch.setattr(nearby, "QUERIES", 7)  # The rows are asked for in several parts.
    found = Nearby(InMemory(z), train)
    asked = np.arange(N) < 40
    near, has = found.near(asked, train & ~asked, found.distance())
    assert np.flatnonzero(near).tolist() == list(range(300, 310))
    assert np.flatnonzero(has).tolist() == list(range(10))


def test_the_distance_is_a_quarter_of_the_median_to_the_nearest_training_row(z, train):
    distances = cdist(z[train].astype(float), z[train].astype(float))
    np.fill_diagonal(distances, np.inf)
    expected = 0.25 * np.median(distances.min(axis=1))
    assert Nearby(InMemory(z), train).distance() == pytest.approx(expected, rel=1e-6)


def test_near_is_what_all_pairs_say(z, train):
    asked, others = np.arange(N) % 5 == 0, train & (np.arange(N) % 5 != 0)
    limit = 4.0
    close = cdist(z.astype(float), z.astype(float)) <= limit
    near, has = Nearby(InMemory(z), train).near(asked, others, limit)
    np.testing.assert_array_equal(near, others & close[asked].any(axis=0))
    np.testing.assert_array_equal(has, asked & close[:, others].any(axis=1))
    assert 10 < near.sum() < others.sum()


def test_rows_of_one_subject_do_not_measure_the_distance(z, train):
    values = z.copy()
    values[1:400:2] = values[0:400:2] + np.float32(1e-3)  # Every subject has two similar rows.
    subjects = [f"s{i // 2}" for i in range(N)]
    alone = Nearby(InMemory(values), train).distance()
    together = Nearby(InMemory(values), train, subjects).distance()
    assert alone < 0.01 < together
    nobody = Nearby(InMemory(values), train, [None] * N).distance()
    assert nobody == alone
    assert Nearby(InMemory(values), train, ["one"] * N).distance() is None


def test_a_sample_of_rows_is_drawn_with_the_seed(z, train, monkeypatch):
    monkeypatch.setattr(nearby, "SAMPLE", 50)
    first, again, other = (Nearby(InMemory(z), train, seed=s).distance() for s in (1, 1, 2))
    assert first == again != other


def test_memorisation_scores_are_those_of_heads_that_never_had_the_row(z, train):
    rng = np.random.default_rng(1)
    labels = np.arange(N) % 4
    wrong = rng.choice(400, 20, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 4
    scores = memorisation_scores(InMemory(z), labels, train, 4)
    assert np.isnan(scores[~train]).all() and np.isfinite(scores[train]).all()
    rows = np.flatnonzero(train)
    ridge = RidgeHead(ridge="gcv").fit(z[rows], labels[rows], 4).ridge_

    def fitted(kept: np.ndarray, asked: int) -> np.ndarray:
        h = np.concatenate([z[kept].astype(float), np.ones((len(kept), 1))], axis=1)
        weights = np.linalg.solve(h.T @ h + ridge * np.eye(DIM + 1), h.T @ np.eye(4)[labels[kept]])
        return np.append(z[asked].astype(float), 1.0) @ weights

    for row in (*wrong[:3], 5, 399):
        change = np.linalg.norm(fitted(rows, row) - fitted(rows[rows != row], row))
        assert scores[row] == pytest.approx(change, rel=1e-6)
    assert scores[wrong].mean() > 2 * scores[np.setdiff1d(rows, wrong)].mean()
