"""Probe, nearest neighbours, CKA, prototypes and relearning equal their definitions or scikit-learn."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.neighbors import KNeighborsClassifier

from expunge.evaluation import representation as rep


def two_clouds(rng: np.random.Generator, n: int, d: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(n) % 2 == 1
    z = rng.normal(size=(n, d))
    z[:, 0] += gap * y
    return z, y


def probe_accuracy(*sets: np.ndarray) -> float:
    return float(rep.linear_probe_rows(*sets).mean())


def knn_accuracy(*sets: np.ndarray, k: int = 11) -> float:
    return float(rep.knn_rows(*sets, k=k).mean())


def test_probe_reaches_the_best_possible_accuracy_on_gaussian_clouds() -> None:
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    train, test = two_clouds(rng, 4000, 10, 2.0), two_clouds(rng, 4000, 10, 2.0)
    assert probe_accuracy(*train, *test) == pytest.approx(norm.cdf(1.0), abs=0.02)


def test_probe_guesses_on_noise_and_on_constant_features() -> None:
    rng = np.random.default_rng(1)
    train, test = two_clouds(rng, 2000, 5, 0.0), two_clouds(rng, 2000, 5, 0.0)
    assert probe_accuracy(*train, *test) == pytest.approx(0.5, abs=0.04)
    flat = np.full((40, 3), 0.1, dtype=np.float32)
    assert probe_accuracy(flat, np.arange(40) % 2 == 0, flat, np.arange(40) % 2 == 0) == 0.5


def test_probe_does_not_depend_on_the_scale_of_a_feature() -> None:
    rng = np.random.default_rng(2)
    (z, y), (t, truth) = two_clouds(rng, 500, 4, 1.0), two_clouds(rng, 500, 4, 1.0)
    scale = np.array([1e3, 1e-3, 1.0, 5.0])
    assert probe_accuracy(z, y, t, truth) == probe_accuracy(z * scale, y, t * scale, truth)


def test_probe_needs_both_sides_and_finite_features() -> None:
    z = np.zeros((4, 2))
    with pytest.raises(ValueError, match="positive and negative"):
        probe_accuracy(z, np.ones(4, bool), z, np.ones(4, bool))
    z[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2"):
        probe_accuracy(z, np.arange(4) % 2 == 0, z, np.arange(4) % 2 == 0)


@pytest.mark.slow
def test_probe_on_ten_thousand_rows_takes_seconds() -> None:
    rng = np.random.default_rng(3)
    train, test = two_clouds(rng, 10_000, 128, 1.0), two_clouds(rng, 2000, 128, 1.0)
    start = time.process_time()
    probe_accuracy(*train, *test)
    assert time.process_time() - start < 15  # one or two on an idle machine


@pytest.mark.parametrize("k", [1, 11])
def test_knn_matches_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(4)
    train, test = two_clouds(rng, 600, 6, 1.5), two_clouds(rng, 700, 6, 1.5)
    expected = KNeighborsClassifier(k).fit(*train).score(*test)
    assert knn_accuracy(*train, *test, k=k) == pytest.approx(expected)


def test_knn_on_constant_features_is_a_guess() -> None:
    flat, y = np.ones((20, 3)), np.arange(20) % 2 == 0
    assert knn_accuracy(flat, y, flat, y) == 0.5


def test_cka_is_exactly_one_for_identical_input_and_one_up_to_rotation_scale_and_shift() -> None:
    z = np.random.default_rng(5).normal(size=(300, 8)).astype(np.float32)
    assert rep.linear_cka(z, z) == 1.0
    assert rep.linear_cka(z, z.copy()) == 1.0
    turned = 3.0 * z.astype(np.float64) @ ortho_group.rvs(8, random_state=0) + 7.0
    assert rep.linear_cka(z, turned) == pytest.approx(1.0, abs=1e-9)


def test_cka_matches_the_kernel_form() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(60, 5))
    y = np.c_[x[:, :2], rng.normal(size=(60, 7))]
    centre = np.eye(60) - 1 / 60
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert rep.linear_cka(x, y) == pytest.approx(np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)))


def test_cka_of_constant_or_missing_features_is_none() -> None:
    z = np.random.default_rng(7).normal(size=(10, 3))
    assert rep.linear_cka(z, np.full((10, 3), 0.1)) is None
    assert rep.linear_cka(z[:0], z[:0]) is None
    with pytest.raises(ValueError, match="same rows"):
        rep.linear_cka(z, z[:5])


def clusters(rng: np.random.Generator, n: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(n) % 3
    return np.eye(3)[y] * 10 + rng.normal(size=(n, 3)) * noise, y


def test_prototypes_need_one_sample_where_classes_are_far_apart_and_more_in_noise() -> None:
    rng = np.random.default_rng(8)
    needed = []
    for noise in (0.1, 5.0):
        z, y = clusters(rng, 900, noise)
        t, u = clusters(rng, 900, noise)
        sets = [(z[y < 2], y[y < 2]), (z[y == 2], y[y == 2]), (t[u == 2], u[u == 2])]
        needed.append(rep.prototype_samples(sets[0], sets[1], sets[2], 0.85, np.random.default_rng(0)))
    assert needed[0] == 1
    assert needed[1] is not None and needed[1] > 1


def test_prototypes_that_cannot_reach_the_target_give_none() -> None:
    flat, y = np.zeros((30, 2)), np.arange(30) % 3
    sets = [(flat[y < 2], y[y < 2]), (flat[y == 2], y[y == 2])]
    assert rep.prototype_samples(sets[0], sets[1], sets[1], 0.9, np.random.default_rng(0)) is None
    empty = (flat[:0], y[:0])
    assert rep.prototype_samples(sets[0], empty, empty, 0.9, np.random.default_rng(0)) is None


def test_relearning_follows_gradient_descent_on_the_head() -> None:
    import torch

    rng = np.random.default_rng(9)
    z, y = rng.normal(size=(80, 5)) + 1.0, rng.integers(0, 3, 80)
    head = torch.nn.Linear(5, 3).double()
    x = torch.from_numpy(z)
    logits = head(x).detach().numpy()
    rows = rep.relearned_rows(logits, z, y, steps=30)
    assert rows is not None and rows.shape == (31, 80)
    got = rows.mean(axis=1)
    rate = 1.0 / float((z * z).sum(axis=1).mean() + 1.0)
    expected, optimiser = [], torch.optim.SGD(head.parameters(), lr=rate)
    for _ in range(31):
        out = head(x)
        expected.append(float((out.argmax(dim=1).numpy() == y).mean()))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(out, torch.from_numpy(y)).backward()
        optimiser.step()
    assert got == pytest.approx(expected)


def test_a_masked_class_is_learned_again_and_the_scale_of_features_does_not_matter() -> None:
    rng = np.random.default_rng(10)
    z, y = rng.normal(size=(100, 4)), np.full(100, 2)
    logits = rng.normal(size=(100, 3))
    logits[:, 2] = -np.inf
    rows = rep.relearned_rows(logits, z, y)
    assert rows is not None and not rows[0].any() and rows[-1].mean() > 0.95
    huge = np.where(np.isinf(logits), -1e6, logits)
    np.testing.assert_array_equal(rep.relearned_rows(huge, z, y), rows)
    large, larger = (rep.relearned_rows(logits, (z + 2) * scale, y) for scale in (1e5, 1e6))
    assert large is not None and larger is not None and large[-1].mean() > 0.9
    np.testing.assert_array_equal(large, larger)
    assert rep.relearned_rows(logits[:0], z[:0], y[:0]) is None


def test_steps_to_finds_the_first_step() -> None:
    assert rep.steps_to([0.0, 0.4, 0.9, 0.7], 0.7) == 2
    assert rep.steps_to([0.0, 0.4], 0.7) is None
    assert rep.steps_to([], 0.7) is None
