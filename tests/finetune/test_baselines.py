"""Tests of MinNorm-OG, partially blinded unlearning, the one-step method and DAMP.

The references are closed forms and gradients by hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from expunge.finetune.blinded import PartiallyBlinded, penalty
from expunge.finetune.damp import Damp, residual_basis
from expunge.finetune.loop import Run
from expunge.finetune.min_norm import MinNorm, evenly, outside, shrink, shrinkable
from expunge.finetune.one_step import OneStep
from expunge.finetune.retained import FineTune
from expunge.system.errors import DataError


def fit(method: Any, digits: Any, model: Any = None) -> Any:
    model = digits.model if model is None else model
    return method.fit(model, digits.images, digits.labels, *digits.rows).classifier_


def mean_loss(digits: Any, model: Any, rows: np.ndarray) -> float:
    with torch.no_grad():
        return cross_entropy(model(digits.images[rows]), torch.from_numpy(digits.labels[rows]).long()).item()


def test_one_full_projection_takes_min_norm_on_all_rows_to_min_norm_on_retained_rows() -> None:
    """The theorem is about linear regression with more weights than rows."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 40, generator=generator).double(), torch.randn(12, generator=generator).double()
    w = torch.linalg.pinv(x) @ y
    moved = w - 1.0 * outside(w, x[:8])
    torch.testing.assert_close(moved, torch.linalg.pinv(x[:8]) @ y[:8])
    assert (moved - w).norm() > 0.1
    # The projection is idempotent, and gives zero once the gradients span all weights.
    torch.testing.assert_close(outside(outside(w, x[:8]), x[:8]), outside(w, x[:8]))
    few = torch.randn(50, 6, generator=generator).double()
    assert outside(w[:6], few).abs().max() < 1e-12


def test_shrinking_keeps_retained_logits_to_first_order_and_leaves_batch_norm(digits: Any) -> None:
    run = Run(MinNorm(), digits.model, digits.images, digits.labels, *digits.rows)
    rows = evenly(run.labels, digits.retain[:300], 45)
    assert set(np.unique(run.labels[rows], return_counts=True)[1]) == {5}
    before = {name: p.detach().clone() for name, p in run.student.named_parameters()}
    shrink(run, rows, 1e-3)
    moved = {n for n, p in run.student.named_parameters() if not torch.equal(p, before[n])}
    assert (
        moved <= set(shrinkable(run.student)) and len(moved) >= 3 and not any(n.startswith("backbone.1") for n in moved)
    )
    change = sum(float((p - before[n]).norm()) ** 2 for n, p in run.student.named_parameters()) ** 0.5
    with torch.no_grad():
        run.student.eval()
        logits, old = (m(digits.images[rows]).amax(1) for m in (run.student, digits.model))
    scaled = digits.fresh()
    with torch.no_grad():
        for p in shrinkable(scaled).values():
            p.mul_(1 - 1e-3)
        naive = (scaled(digits.images[rows]).amax(1) - old).abs().max()
    assert (logits - old).abs().max() < 0.05 * naive and change > 0


def test_without_shrinking_it_is_fine_tuning_and_with_it_forgets_more(digits: Any) -> None:
    settings: dict[str, Any] = {"lr": 0.05, "epochs": 3, "batch_size": 64, "seed": 2}
    plain = fit(FineTune(**settings), digits)
    for a, b in zip(fit(MinNorm(shrink=0.0, **settings), digits).parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    shrunk = fit(MinNorm(shrink=0.1, **settings), digits)
    others = digits.test[digits.labels[digits.test] != 5]
    assert mean_loss(digits, shrunk, digits.forget) > mean_loss(digits, plain, digits.forget) + 0.5
    assert digits.accuracy(shrunk, others) > 0.9


def test_the_penalty_pulls_back_to_the_original_as_the_closed_form_says() -> None:
    """Quadratic -a l with l = h (w - t)^2 / 2: w - w0 = a h (w0 - t) / (2 (b F + c) - a h)."""
    h, t, start, f, b, c = 0.8, 2.0, 0.5, 1.3, 0.14, 5.5
    w = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    origin, strength = {"w": torch.tensor([start]).double()}, {"w": torch.tensor([b * f + c]).double()}
    [at_start] = torch.autograd.grad(penalty({"w": w}, origin, strength), [w])
    assert at_start.item() == 0
    for _ in range(200):
        loss = -(h * (w - t).square() / 2).sum() + penalty({"w": w}, origin, strength)
        [g] = torch.autograd.grad(loss, [w])
        with torch.no_grad():
            w -= 0.05 * g
    assert w.item() - start == pytest.approx(h * (start - t) / (2 * (b * f + c) - h), rel=1e-6)


def test_partial_blinding_loses_the_class_from_its_rows_alone(digits: Any) -> None:
    images = digits.images.copy()
    images[digits.retain] = 0
    # With long steps the result of the ascent depends on the machine, and with short ones it does not.
    method = PartiallyBlinded(lr=0.003, epochs=100, batch_size=64, cap=1.2)
    result = method.fit(digits.model, images, digits.labels, *digits.rows).classifier_
    others = digits.test[digits.labels[digits.test] != 5]
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    assert digits.accuracy(result, digits.forget) < 0.15
    assert digits.accuracy(result, others) > 0.7
    with pytest.raises(ValueError, match="fisher"):
        PartiallyBlinded(fisher=-1)


def test_one_step_adds_the_summed_gradient_over_the_retained_number(digits: Any) -> None:
    method = OneStep(strength=3.0, batch_size=50)
    result = fit(method, digits)
    model = digits.fresh()
    y = torch.from_numpy(digits.labels[digits.forget]).long()
    cross_entropy(model(digits.images[digits.forget]), y, reduction="sum").backward()
    for p, after in zip(model.parameters(), result.parameters(), strict=True):
        torch.testing.assert_close(after, p + 3.0 / len(digits.retain) * p.grad, atol=1e-6, rtol=1e-5)
    assert mean_loss(digits, result, digits.forget) > mean_loss(digits, digits.model, digits.forget)
    # With the loss ||w - x||^2 / 2 the same formula gives exactly the mean of the retained rows.
    x = np.random.default_rng(0).normal(size=(20, 3))
    theta = x.mean(0)
    np.testing.assert_allclose(theta + (theta - x[15:]).sum(0) / 15, x[:15].mean(0), atol=1e-12)


def test_the_residual_is_what_retained_prototypes_do_not_span() -> None:
    generator = torch.Generator().manual_seed(0)
    retained, removed = (torch.randn(n, 9, generator=generator).double() for n in (4, 2))
    basis, share = residual_basis(retained, removed)
    assert basis.shape == (9, 2) and 0 < share < 1
    torch.testing.assert_close(basis.T @ basis, torch.eye(2).double())
    assert (retained @ basis).abs().max() < 1e-12
    inside, none = residual_basis(retained, retained[:1] * 2 + retained[1:2])
    assert inside.shape[1] == 0 and none < 1e-12


def test_damp_answers_retained_prototypes_as_before_and_loses_the_class(digits: Any) -> None:
    method = Damp(strength=1.0, rows=None)
    result = fit(method, digits)
    before, after = digits.model.state_dict(), result.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} <= set(method.residuals_)
    change = (after["head.weight"] - before["head.weight"]).double()
    means = torch.stack([digits.z(digits.model, digits.retain[digits.labels[digits.retain] == c]).mean(0)
                         for c in range(10) if c != 5]).double()  # fmt: skip
    own = digits.z(digits.model, digits.forget).mean(0).double()
    assert (change @ means.T).abs().max() < 1e-4 < 0.1 < (change @ own).abs().max()
    # At full strength the head sees of the forgotten prototype only its part in the span of retained prototypes.
    span = torch.linalg.svd(means, full_matrices=False).Vh
    torch.testing.assert_close(
        after["head.weight"].double() @ own,
        before["head.weight"].double() @ (own @ span.T @ span),
        atol=1e-3,
        rtol=1e-3,
    )
    others = digits.test[digits.labels[digits.test] != 5]
    assert digits.accuracy(result, digits.forget) < 0.5
    assert digits.accuracy(result, others) > 0.85
    flat = digits.fresh()
    assert all(
        torch.equal(a, b)
        for a, b in zip(fit(Damp(strength=0.0), digits, flat).parameters(), flat.parameters(), strict=True)
    )
    retain = np.concatenate([digits.retain, digits.forget[:3]])
    with pytest.raises(DataError, match="class 5 keeps retained rows"):
        Damp().fit(digits.model, digits.images, digits.labels, retain, digits.forget[3:])


def test_all_run_on_a_network_without_batch_norm(digits: Any) -> None:
    model = digits.fresh()
    model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
    model.card = replace(model.card, name="flat")
    for method in (MinNorm(batch_size=64), PartiallyBlinded(epochs=1), OneStep(), Damp()):
        assert all(torch.isfinite(p).all() for p in fit(method, digits, model.eval()).parameters())
