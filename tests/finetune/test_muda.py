"""Tests of MUDA: its loss against closed forms, and the alignment of forgotten features before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.evaluation.alignment import alignment_rows
from expunge.finetune.loop import Run
from expunge.finetune.muda import Muda, aligned
from expunge.system.errors import DataError


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def projection(d: int, rank: int) -> torch.Tensor:
    basis = torch.linalg.qr(some(d, rank, seed=3))[0]
    return basis @ basis.T


def test_the_gradient_of_a_linear_backbone_is_the_closed_form() -> None:
    """For z = A x, DA = tr(P A S A') / tr(A S A'), so dDA/dA = 2 (P - DA I) A S / tr(A S A')."""
    a, x, p = some(5, 7, seed=1).requires_grad_(), some(40, 7, seed=2), projection(5, 2)
    value = aligned(x @ a.T, p)
    value.backward()
    second, m = x.T @ x, a.detach()
    total = torch.trace(m @ second @ m.T)
    torch.testing.assert_close(value, torch.trace(p @ m @ second @ m.T) / total)
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 2 * (p - value.detach() * torch.eye(5).double()) @ m @ second / total)


def test_projected_features_are_aligned_and_scale_and_rotation_change_nothing() -> None:
    z, p = some(30, 6), projection(6, 3)
    value = float(aligned(z, p))
    assert 0 < value < 1 and float(aligned(z @ p, p)) == pytest.approx(1, abs=1e-12)
    turned = torch.linalg.qr(some(6, 6, seed=5))[0]
    assert float(aligned(3.7 * z @ turned, turned.T @ p @ turned)) == pytest.approx(value, abs=1e-12)


def test_it_is_the_metric_s_value_at_the_rank_that_holds_the_energy(digits: Any) -> None:
    method = Muda(energy=0.9, moment_rows=10_000, batch_size=10_000)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    terms = method.phases(run)[0].loss(digits.forget)
    retained, removed = (digits.z(digits.model, rows).double().numpy() for rows in digits.rows)
    [rank] = method.ranks_
    values, vectors = np.linalg.eigh(retained.T @ retained)
    values, leading = values[::-1], vectors[:, ::-1][:, :rank]
    assert values[:rank].sum() >= 0.9 * values.sum() > values[: rank - 1].sum()
    inside = np.square(removed @ leading).sum() / np.square(removed).sum()
    assert terms["unaligned"].item() == pytest.approx(1 - inside, abs=1e-4)
    # With the whole space as the subspace both terms vanish. This is checked on retained rows: some of the 128
    # ReLU features may be dead on them, so that forgotten rows may have a small part outside.
    whole = Muda(energy=1.0, moment_rows=10_000, batch_size=10_000)
    nothing = whole.phases(run)[0].loss(digits.retain)
    assert abs(nothing["unaligned"].item()) < 1e-5 and abs(nothing["forget"].item()) < 1e-5


def test_forgotten_features_are_turned_into_retained_directions(digits: Any) -> None:
    method = Muda(lr=0.05, epochs=3, batch_size=64, retain_share=1.0)
    result = method.fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_

    def area(model: Any) -> float:
        """Return the alignment over all ranks, because the rank that holds the energy falls during training."""
        retained, removed = (digits.z(model, rows).double().numpy() for rows in digits.rows)
        return float(alignment_rows(retained, removed).mean())

    assert area(result) > area(digits.model) + 0.005
    assert len(method.ranks_) == 3 and all(0 < rank < 128 for rank in method.ranks_)


def test_rows_of_classes_that_stay_and_wrong_settings_are_refused(digits: Any) -> None:
    retain = np.concatenate([digits.retain, digits.forget[:3]])
    with pytest.raises(DataError, match="Muda is for whole classes, but class 5 keeps retained rows"):
        Muda().fit(digits.model, digits.images, digits.labels, retain, digits.forget[3:])
    with pytest.raises(ValueError, match="energy must be in"):
        Muda(energy=0)
