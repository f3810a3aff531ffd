"""Tests of projected gradients, against finite differences and the outputs of layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.finetune.loop import Run
from expunge.finetune.projected import ProjectedGradient, input_moments, outside, projected


def few(digits: Any, n: int = 12) -> np.ndarray:
    return np.random.default_rng(0).permutation(digits.retain)[:n]


def test_the_complement_is_a_projection_of_the_stated_energy() -> None:
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)).double() * torch.tensor([9, 4, 2, 1, 0.1, 0.0])
    moment = (z.T @ z)[None]
    values = np.linalg.eigvalsh(moment[0].numpy())[::-1]
    for energy in (0.5, 0.9, 0.99, 1.0):
        free = outside(moment, energy)[0]
        torch.testing.assert_close(free @ free, free)
        torch.testing.assert_close(free, free.T)
        rank = round(6 - float(free.trace()))
        if energy == 1.0:
            assert rank == 5
        else:
            assert values[:rank].sum() >= energy * values.sum() > values[: rank - 1].sum()


def test_a_projected_step_is_the_gradient_s_part_outside() -> None:
    """The reference is the gradient by finite differences of the loss as a function of a free V in W = V (I - P)."""
    generator = torch.Generator().manual_seed(2)
    z, x = (torch.randn(n, 5, generator=generator).double() for n in (3, 4))
    free = outside((z.T @ z)[None], 1.0)
    w0 = torch.randn(2, 5, generator=generator).double()

    def loss(v: torch.Tensor) -> torch.Tensor:
        return ((x @ (w0 + v @ free[0]).T) ** 3).sum()

    gradient = torch.autograd.functional.jacobian(lambda w: ((x @ w.T) ** 3).sum(), w0)
    found = projected(gradient, free)
    h = 1e-5
    for i in range(2):
        for j in range(5):
            e = torch.zeros(2, 5).double()
            e[i, j] = h
            assert found[i, j].item() == pytest.approx((loss(e) - loss(-e)).item() / (2 * h), rel=1e-5, abs=1e-6)


def fit(digits: Any, retain: np.ndarray, model: Any = None, **settings: Any) -> ProjectedGradient:
    method = ProjectedGradient(batch_size=64, **settings)
    return method.fit(digits.model if model is None else model, digits.images, digits.labels, retain, digits.forget)


def test_retained_rows_whose_span_is_held_keep_their_outputs(digits: Any) -> None:
    """Twelve rows leave free directions in a flat network, so twelve steps do not change their logits."""
    model = digits.fresh()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 128), nn.ReLU())
    model.card = replace(model.card, name="flat")
    retain = few(digits)
    fitted = fit(digits, retain, model.eval(), energy=1.0, epochs=4, lr=0.05)
    assert all(rank == 12 < full for rank, full in fitted.ranks_.values()) and len(fitted.ranks_) == 3
    with torch.no_grad():
        change = (fitted.classifier_(digits.images[retain]) - model(digits.images[retain])).abs().max()
        moved = (fitted.classifier_(digits.images[digits.forget]) - model(digits.images[digits.forget])).abs().max()
    assert change < 1e-4 < 0.2 < moved


def test_full_rank_inputs_leave_nothing_to_move(digits: Any) -> None:
    model = digits.fresh()
    fitted = fit(digits, digits.retain, energy=1.0, epochs=1)
    for name, (rank, full) in fitted.ranks_.items():
        if rank == full:
            before, after = dict(model.named_parameters())[name], dict(fitted.classifier_.named_parameters())[name]
            assert (before - after).abs().max() < 1e-6
    assert any(rank == full for rank, full in fitted.ranks_.values())


def test_a_class_is_suppressed_and_biases_and_norms_stay(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    result = fit(digits, digits.retain, energy=0.95, epochs=20, lr=1.0).classifier_
    assert digits.accuracy(result, digits.forget) < 0.15
    assert digits.accuracy(result, others) > 0.95
    before = digits.model.state_dict()
    for name, value in result.state_dict().items():
        if name not in ("backbone.0.weight", "backbone.3.weight", "head.weight"):
            assert torch.equal(value, before[name]), name


def test_it_stops_where_forgotten_rows_are_read_no_better_than_unseen_ones(digits: Any) -> None:
    rows = np.random.default_rng(3).permutation(np.concatenate(digits.rows))
    forget, retain = rows[:140], rows[140:]
    method = ProjectedGradient(batch_size=64, energy=0.9, epochs=30, lr=1.0)
    method.fit(digits.model, digits.images, digits.labels, retain, forget, digits.test)
    assert 1 < len(method.history_) < 30
    assert digits.accuracy(method.classifier_, forget) <= digits.accuracy(method.classifier_, digits.test) + 0.03


def test_the_loss_equals_numpy(digits: Any) -> None:
    method = ProjectedGradient(offset=0.05, entropy_weight=0.2, epochs=1)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    rows = digits.forget[:15]
    with torch.no_grad():
        p = digits.model(digits.images[rows]).double().softmax(1).numpy()
    terms = method.phases(run)[0].loss(rows)
    assert terms["forget"].item() == pytest.approx(-np.log(1 - p[:, 5] + 0.05).mean(), rel=1e-4)
    assert terms["entropy"].item() == pytest.approx(0.2 * (p * np.log(p)).sum(1).mean(), rel=1e-3)
    moments = input_moments(run, digits.retain[:50])
    with torch.no_grad():
        z = digits.model.features(digits.images[digits.retain[:50]]).double()
    torch.testing.assert_close(moments["head.weight"][0], z.T @ z, rtol=1e-5, atol=1e-5)


def test_impossible_arguments_are_refused() -> None:
    for wrong in ({"energy": 0.0}, {"moment_rows": 0}, {"offset": 0.0}, {"weight_decay": 1e-4}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ProjectedGradient(**wrong)  # type: ignore[arg-type]
