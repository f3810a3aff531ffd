"""The alignment of forgotten with retained features equals its definition, computed from projected rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.evaluation.alignment import Alignment, alignment, alignment_curve, alignment_rows, energy_rank


def moments(seed: int, n: int = 300, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.arange(1, d + 1), rng.normal(size=(n, d)) + 1.0


def second(z: np.ndarray) -> np.ndarray:
    return z.T @ z / len(z)


def seconds(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(second(z) for z in moments(seed))  # type: ignore[return-value]


def test_the_curve_rises_to_one_and_is_the_projected_energy() -> None:
    z_r, z_f = moments(0)
    curve = alignment_curve(*seconds(0))
    assert np.all(np.diff(curve) >= 0) and curve[0] >= 0 and curve[-1] == pytest.approx(1, abs=1e-12)
    # The reference projects rows onto the right singular vectors of the retained rows.
    vectors = np.linalg.svd(z_r)[2]
    for k in range(1, 7):
        projected = z_f @ vectors[:k].T
        assert curve[k - 1] == pytest.approx((projected**2).sum() / (z_f**2).sum(), rel=1e-10)


def test_rotation_and_scale_change_nothing() -> None:
    s_r, s_f = seconds(1)
    q = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    np.testing.assert_allclose(
        alignment_curve(3 * q @ s_r @ q.T, 3 * q @ s_f @ q.T), alignment_curve(s_r, s_f), atol=1e-12
    )


def test_equal_moments_give_the_energy_curve() -> None:
    s_r, _ = seconds(2)
    values = np.linalg.eigvalsh(s_r)[::-1]
    np.testing.assert_allclose(alignment_curve(s_r, s_r), np.cumsum(values) / values.sum(), atol=1e-12)
    assert energy_rank(np.diag([8.0, 1.0, 0.5, 0.5]), 0.9) == 2
    assert energy_rank(np.diag([8.0, 1.0, 0.5, 0.5]), 0.91) == 3
    assert energy_rank(np.eye(4), 1.0) == 4


def test_a_projection_reaches_one_and_lies_above_the_reference() -> None:
    """The measure is two-sided: the aim is the alignment of the retrained model, not full alignment."""
    z_r, z_f = moments(3)
    retain, forget = second(z_r), second(z_f)
    plain = alignment(retain, forget)
    basis = np.linalg.svd(z_r)[2][: plain.rank].T
    projected = alignment(retain, second(z_f @ basis @ basis.T))
    assert projected.at_rank == pytest.approx(1, abs=1e-12) and plain.at_rank < 0.95
    assert projected.from_reference(plain)["at_rank"] == pytest.approx(1 - plain.at_rank)
    assert plain.from_reference(projected)["area"] < 0 == plain.from_reference(plain)["area"]


def test_the_derivative_behind_a_linear_backbone_is_the_closed_form() -> None:
    """For z = A x and a fixed P the derivative is dDA/dA = 2 (P P' - DA I) A C / tr(A C A')."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    c = x.T @ x / 50
    p = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=torch.float64)).Q
    s = a @ c @ a.T
    da = torch.trace(p.T @ s @ p) / torch.trace(s)
    da.backward()
    expected = 2 * (p @ p.T - da.detach() * torch.eye(4)) @ a.detach() @ c / torch.trace(s.detach())
    torch.testing.assert_close(a.grad, expected)
    curve = alignment_curve((p @ torch.diag(torch.tensor([2.0, 1.0]).double()) @ p.T).numpy(), s.detach().numpy())
    assert curve[1] == pytest.approx(float(da.detach()), rel=1e-10)


def test_what_cannot_be_measured_is_refused() -> None:
    z_r, z_f = moments(4)
    with pytest.raises(ValueError, match=r"energy must be in .*, got 0"):
        alignment(second(z_r), second(z_f), energy=0)
    with pytest.raises(ValueError, match="of the same shape"):
        alignment(second(z_r), second(z_f[:, :3]))
    with pytest.raises(ValueError, match="all zero"):
        alignment(second(z_r), second(np.zeros_like(z_f)))
    with pytest.raises(ValueError, match="no leading directions"):
        alignment(second(np.zeros_like(z_r)), second(z_f))
    assert Alignment(1, 0.5, 0.5).from_reference(Alignment(2, 0.75, 0.5)) == {"at_rank": -0.25, "area": 0.0}


def test_rows_average_to_the_area() -> None:
    z_r, z_f = moments(3)
    assert alignment_rows(z_r, z_f).mean() == pytest.approx(alignment(second(z_r), second(z_f)).area, rel=1e-12)


def test_more_dimensions_than_rows_use_the_directions_that_rows_have() -> None:
    rng = np.random.default_rng(4)
    z_r, z_f = rng.normal(size=(5, 12)), rng.normal(size=(40, 12))
    vectors = np.linalg.svd(z_r, full_matrices=False)[2]
    curve = [((z_f @ vectors[:k].T) ** 2).sum() / (z_f**2).sum() for k in range(1, 6)]
    assert alignment_rows(z_r, z_f).mean() == pytest.approx(np.mean(curve), rel=1e-10)
    z_r[4] = z_r[3]  # The retained rows now span one direction fewer.
    assert np.isfinite(alignment_rows(z_r, z_f)).all()


def test_the_spread_of_rows_is_that_of_the_ratio() -> None:
    z_r, z_f = moments(5, n=200)
    rows = alignment_rows(z_r, z_f)
    left_out = [alignment(second(z_r), second(np.delete(z_f, i, axis=0))).area for i in range(200)]
    jackknife = np.sqrt(199 * np.var(left_out))
    assert np.std(rows, ddof=1) / np.sqrt(200) == pytest.approx(jackknife, rel=0.03)


def test_features_that_vanish_have_no_rows() -> None:
    z_r, _ = moments(6)
    with pytest.raises(ValueError, match="all zero"):
        alignment_rows(z_r, np.zeros((4, 6)))
    with pytest.raises(ValueError, match="no leading directions"):
        alignment_rows(np.zeros((4, 6)), z_r)
