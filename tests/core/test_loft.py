"""LOFT's exact solver is compared with a dense grid, the published solver, and optima known in closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core import Loft, Moments
from expunge.core.loft import automatic_rank
from expunge.core.subspace import minimise_subspace_objective
from expunge.system.errors import ConfigError, DataError


def features(n: int, d: int, seed: int, decay: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    scales = torch.arange(1, d + 1, dtype=torch.float64) ** -decay
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scales @ turn + 1.0


def problem(d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.cov(features(3 * d, d, seed + i).numpy().T) for i in (0, 1))
    return a / np.trace(a), b / np.trace(b)


def objective(a: np.ndarray, b: np.ndarray, basis: np.ndarray) -> float:
    return float((1 - np.trace(basis.T @ a @ basis)) ** 2 + np.trace(basis.T @ b @ basis) ** 2)


def grid_minimum(a: np.ndarray, b: np.ndarray, rank: int) -> float:
    values = []
    for angle in np.linspace(0, np.pi / 2, 2001):
        _, vectors = np.linalg.eigh(np.cos(angle) * a - np.sin(angle) * b)
        values.append(objective(a, b, vectors[:, -rank:]))
    return min(values)


@pytest.mark.parametrize("rank", [1, 3, 10, 15, 19, 20])
def test_the_exact_solver_is_not_beaten_by_a_dense_grid(rank: int) -> None:
    a, b = problem(20, seed=rank)
    found = minimise_subspace_objective(a, b, rank)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(rank), atol=1e-12)
    assert found.objective == pytest.approx(objective(a, b, found.basis), rel=1e-10, abs=1e-14)
    assert found.gap <= 1e-7 * found.objective + 1e-13
    best = grid_minimum(a, b, rank)
    assert found.objective <= best * (1 + 1e-7) + 1e-13
    assert found.objective >= best * (1 - 1e-4) - 1e-12


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_the_reduced_basis_finds_the_same_optimum(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = problem(200, seed=rank)
    reduced = minimise_subspace_objective(a, b, rank)
    monkeypatch.setattr("expunge.core.subspace.KRYLOV_RANK", 0)
    direct = minimise_subspace_objective(a, b, rank)
    np.testing.assert_allclose(reduced.basis.T @ reduced.basis, np.eye(rank), atol=1e-12)
    assert max(reduced.gap, direct.gap) <= 1e-7 * direct.objective + 1e-13
    assert reduced.objective == pytest.approx(objective(a, b, reduced.basis), rel=1e-10)
    assert reduced.objective == pytest.approx(direct.objective, rel=1e-7)
    assert reduced.angle == pytest.approx(direct.angle, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_crossing_eigenvalues_are_mixed(seed: int) -> None:
    """For commuting matrices the optimum can lie between two top eigenspaces, so that no single one attains it."""
    rng = np.random.default_rng(seed)
    p, q = rng.random(6), rng.random(6)
    p, q = p / p.sum(), q / q.sum()
    rank = 2
    found = minimise_subspace_objective(np.diag(p), np.diag(q), rank)
    assert found.gap <= 1e-7 * found.objective + 1e-13
    # For diagonal matrices the pairs (r, f) fill the convex hull of the points of all index subsets, so the optimum is
    # the projection of (1, 0) onto that hull.
    points = np.array([[p[list(i)].sum(), q[list(i)].sum()] for i in itertools.combinations(range(6), rank)])
    best = min(
        np.sum((u + t * (v - u) - [1, 0]) ** 2)
        for u, v in itertools.product(points, points)
        for t in [np.clip(np.dot([1, 0] - u, v - u) / max(np.dot(v - u, v - u), 1e-300), 0, 1)]
    )
    assert found.objective == pytest.approx(best, rel=1e-7)


def test_disjoint_subspaces_reach_zero() -> None:
    a, b = np.diag([0.5, 0.3, 0.2, 0, 0, 0]), np.diag([0, 0, 0, 0.6, 0.3, 0.1])
    found = minimise_subspace_objective(a, b, 3)
    assert found.objective < 1e-14
    np.testing.assert_allclose(found.basis @ found.basis.T, np.diag([1, 1, 1, 0, 0, 0]), atol=1e-7)


def test_identical_moments_have_the_optimum_of_the_eigenvalue_sums() -> None:
    a, _ = problem(12, seed=0)
    found = minimise_subspace_objective(a, a, 4)
    values = np.sort(np.linalg.eigvalsh(a))
    # r can be any number between the sums of the smallest and of the largest eigenvalues. The point (r, r) nearest
    # to (1, 0) has r = 1/2.
    best = np.clip(0.5, values[:4].sum(), values[-4:].sum())
    assert found.objective == pytest.approx((1 - best) ** 2 + best**2, rel=1e-6)


@pytest.mark.parametrize("rank", [3, 12])
def test_the_published_solver_comes_close_and_never_below(rank: int) -> None:
    retain, forget = Moments.of(features(900, 24, 0)), Moments.of(features(300, 24, 1))
    exact = Loft(rank).fit(retain, forget)
    published = Loft(rank, solver="riemannian-adam", steps=100, lr=1.0).fit(retain, forget)
    assert exact.objective_ <= published.objective_ + 1e-9
    assert published.objective_ <= 1.2 * exact.objective_
    assert [point["step"] for point in published.history_] == [1, *range(2, 101, 2)]
    # The last loss of the history was measured before the last step.
    assert published.history_[-1]["loss"] == pytest.approx(published.objective_, rel=0.05)
    assert exact.history_ == []
    again = Loft(rank, solver="riemannian-adam", steps=100, lr=1.0).fit(retain, forget)
    assert torch.equal(again.basis_, published.basis_)


def test_the_objective_is_the_papers_on_raw_features() -> None:
    z_r, z_f = features(500, 10, 0), features(200, 10, 1)
    loft = Loft(4).fit(Moments.of(z_r), Moments.of(z_f))
    basis = loft.basis_.numpy()
    sr, sf = np.cov(z_r.numpy().T), np.cov(z_f.numpy().T)
    retained = np.trace(basis.T @ sr @ basis) / np.trace(sr)
    forgotten = np.trace(basis.T @ sf @ basis) / np.trace(sf)
    assert loft.objective_ == pytest.approx((1 - retained) ** 2 + forgotten**2)
    assert np.tan(loft.angle_) == pytest.approx(forgotten / (1 - retained), rel=1e-5)
    torch.testing.assert_close(loft.map_(z_r), z_r @ loft.basis_ @ loft.basis_.T)


def test_restore_mean_leaves_the_retained_mean_and_the_uncentred_form_sees_the_class_mean() -> None:
    z_r = features(500, 10, 0)
    z_f = features(200, 10, 1) * 0.05 + torch.tensor([5.0] + [0.0] * 9)
    retain, forget = Moments.of(z_r), Moments.of(z_f)
    restored = Loft(6, restore_mean=True).fit(retain, forget)
    torch.testing.assert_close(restored.map_(retain.mean[None])[0], retain.mean)
    moved = Loft(6, restore_mean=True, second_moment="uncentred").fit(retain, forget)
    centred = (z_f - retain.mean).numpy()
    second = centred.T @ centred / 200
    basis = moved.basis_.numpy()
    assert moved.forgotten_ == pytest.approx(np.trace(basis.T @ second @ basis) / np.trace(second))

    def left(loft: Loft) -> float:
        return float((loft.map_(z_f).mean(dim=0) - retain.mean).norm())

    assert left(moved) < 0.5 * left(restored)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-2, 1e2), shift=st.floats(-5, 5))
def test_the_subspace_turns_with_the_features_and_ignores_scale_and_shift(
    seed: int, scale: float, shift: float
) -> None:
    z_r, z_f = features(200, 8, 0), features(100, 8, 1)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    one = Loft(3).fit(Moments.of(z_r), Moments.of(z_f))
    other = Loft(3).fit(Moments.of(scale * z_r @ turn + shift), Moments.of(scale * z_f @ turn + shift))
    assert other.objective_ == pytest.approx(one.objective_, rel=1e-7)
    projector = other.basis_ @ other.basis_.T
    torch.testing.assert_close(turn @ projector @ turn.T, one.basis_ @ one.basis_.T, atol=1e-4, rtol=0)


def test_automatic_rank_holds_the_stated_energy() -> None:
    cov = np.diag([8.0, 4.0, 2.0, 1.0, 1.0])
    assert [automatic_rank(cov, e) for e in (0.5, 0.75, 0.76, 14 / 16, 1.0)] == [1, 2, 3, 3, 5]
    loft = Loft("auto", energy=0.9).fit(Moments.of(features(300, 12, 0)), Moments.of(features(100, 12, 1)))
    assert loft.basis_.shape == (12, loft.rank_)


def test_arguments_are_checked_and_shown() -> None:
    retain = Moments.of(features(50, 6, 0))
    for wrong in (Loft(0), Loft(7), Loft(2, solver="newton"), Loft(2, second_moment="third"), Loft("auto", energy=0.0)):
        with pytest.raises(ConfigError):
            wrong.fit(retain, retain)
    with pytest.raises(DataError, match="forgotten features have no variance"):
        Loft(2).fit(retain, Moments.of(torch.ones(5, 6)))
    assert "rank=2" in repr(Loft(2))
    assert Loft(2).get_params()["lr"] == 1.0
    with pytest.raises(AttributeError, match="call fit first"):
        _ = Loft(2).map_
