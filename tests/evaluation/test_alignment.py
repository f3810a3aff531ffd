"""The alignment of forgotten with retained features equals its definition, computed from projected rows."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.evaluation.alignment import alignment_rows


def features(seed: int, n: int = 300, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.arange(1, d + 1), rng.normal(size=(n, d)) + 1.0


def area(retain: np.ndarray, forget: np.ndarray) -> float:
    """Return the mean share of the energy of `forget` in the k leading right singular vectors of `retain`, over k."""
    vectors = np.linalg.svd(retain, full_matrices=False)[2]
    projected = [forget @ vectors[:k].T for k in range(1, len(vectors) + 1)]
    return float(np.mean([(z**2).sum() for z in projected]) / (forget**2).sum())


def test_rows_average_to_the_area_of_projected_energy() -> None:
    z_r, z_f = features(3)
    assert alignment_rows(z_r, z_f).mean() == pytest.approx(area(z_r, z_f), rel=1e-10)


def test_rotation_and_scale_change_nothing() -> None:
    z_r, z_f = features(1)
    q = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))[0]
    np.testing.assert_allclose(alignment_rows(3 * z_r @ q, 3 * z_f @ q), alignment_rows(z_r, z_f), atol=1e-10)


def test_rows_in_the_first_direction_reach_one() -> None:
    """The measure is two-sided: the aim is the alignment of the retrained model, not full alignment."""
    z_r, z_f = features(3)
    first = np.linalg.svd(z_r)[2][:1]
    assert alignment_rows(z_r, z_f @ first.T @ first).mean() == pytest.approx(1, abs=1e-12)
    assert alignment_rows(z_r, z_f).mean() < 0.95


def test_more_dimensions_than_rows_use_the_directions_that_rows_have() -> None:
    rng = np.random.default_rng(4)
    z_r, z_f = rng.normal(size=(5, 12)), rng.normal(size=(40, 12))
    assert alignment_rows(z_r, z_f).mean() == pytest.approx(area(z_r, z_f), rel=1e-10)
    z_r[4] = z_r[3]  # The retained rows now span one direction fewer.
    assert np.isfinite(alignment_rows(z_r, z_f)).all()


def test_the_spread_of_rows_is_that_of_the_ratio() -> None:
    z_r, z_f = features(5, n=200)
    rows = alignment_rows(z_r, z_f)
    left_out = [area(z_r, np.delete(z_f, i, axis=0)) for i in range(200)]
    jackknife = np.sqrt(199 * np.var(left_out))
    assert np.std(rows, ddof=1) / np.sqrt(200) == pytest.approx(jackknife, rel=0.03)


def test_features_that_vanish_have_no_rows() -> None:
    z_r, _ = features(6)
    with pytest.raises(ValueError, match="all zero"):
        alignment_rows(z_r, np.zeros((4, 6)))
    with pytest.raises(ValueError, match="no leading directions"):
        alignment_rows(np.zeros((4, 6)), z_r)
