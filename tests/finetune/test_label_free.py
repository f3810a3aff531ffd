"""Tests of loss-free SSD and JIT, two methods that use no labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.finetune.jit import Jit, slope
from expunge.finetune.loop import Run
from expunge.finetune.loss_free import LossFreeSsd, output_sensitivity
from expunge.system.errors import NoEffectError


def linear(digits: Any) -> Any:
    model = digits.fresh()
    model.backbone = nn.Flatten()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.head = nn.Linear(64, 10)
    model.card = replace(model.card, name="linear", feature_dim=64)
    return model.eval()


def test_the_sensitivity_of_a_linear_model_is_the_closed_form(digits: Any) -> None:
    model = linear(digits)
    rows = digits.forget[:70]
    x = model.preprocess(digits.images[rows]).flatten(1).double().numpy()
    f = x @ model.head.weight.detach().double().numpy().T + model.head.bias.detach().double().numpy()
    found = output_sensitivity(model, digits.images, rows)
    expected = np.abs(2 * f[:, :, None] * x[:, None, :]).mean(0)
    np.testing.assert_allclose(found["head.weight"].numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["head.bias"].numpy(), np.abs(2 * f).mean(0), rtol=1e-4)
    # The order of rows does not matter. The importance of n_f of n rows is at most n / n_f times that of all rows.
    again = output_sensitivity(model, digits.images, rows[::-1].copy())
    whole = output_sensitivity(model, digits.images, np.concatenate([rows, digits.retain[:210]]))
    for name, value in found.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-9)
        assert (value <= 280 / 70 * whole[name] * (1 + 1e-9)).all()


def test_labels_are_not_looked_at_and_a_class_is_forgotten(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    shuffled = np.random.default_rng(0).permutation(digits.labels)
    results = [
        LossFreeSsd().fit(digits.model, digits.images, labels, *digits.rows).classifier_
        for labels in (digits.labels, shuffled)
    ]
    for a, b in zip(*(r.parameters() for r in results), strict=True):
        assert torch.equal(a, b)
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    assert digits.accuracy(results[0], digits.forget) < 0.1
    assert digits.accuracy(results[0], others) > 0.95
    with pytest.raises(NoEffectError, match="selects no weight"):
        LossFreeSsd(alpha=1e6).fit(digits.model, digits.images, digits.labels, *digits.rows)


def test_the_slope_of_a_linear_model_has_the_closed_gradient() -> None:
    """d/dW ||W x - sg W (x + xi)|| / ||xi|| = -(W xi / ||W xi||) x' / ||xi||."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, generator=generator).double().requires_grad_()
    x, xi = (torch.randn(1, 4, generator=generator).double() for _ in range(2))
    slope(x @ w.T, (x + xi) @ w.detach().T, xi).backward()
    direction = (w.detach() @ xi[0]) / (w.detach() @ xi[0]).norm()
    torch.testing.assert_close(w.grad, -torch.outer(direction, x[0]) / xi.norm())
    constant = torch.ones(2, 3, requires_grad=True)
    value = slope(constant, torch.ones(2, 3), torch.ones(2, 4))
    value.backward()
    assert value == 0 and not constant.grad.isnan().any()  # type: ignore[union-attr]


def test_the_loss_does_not_grow_with_the_batch(digits: Any) -> None:
    method = Jit(sigma=0.5, draws=40)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    [phase] = method.phases(run)
    doubled = np.concatenate([digits.forget[:40]] * 2)
    one, two = (phase.loss(rows)["slope"].item() for rows in (digits.forget[:40], doubled))
    assert two == pytest.approx(one, rel=0.05)


def test_jit_flattens_the_model_around_forgotten_rows_without_the_others(digits: Any) -> None:
    images, labels = digits.images.copy(), np.zeros_like(digits.labels)
    images[digits.retain] = 0
    results = [
        Jit(lr=0.006, epochs=6, batch_size=64).fit(digits.model, *data, *digits.rows).classifier_
        for data in ((digits.images, digits.labels), (images, labels))
    ]
    for a, b in zip(*(r.parameters() for r in results), strict=True):
        assert torch.equal(a, b)

    def steepness(model: Any) -> float:
        x = model.preprocess(digits.images[digits.forget])
        xi = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            return slope(model(x), model(x + xi), xi).item()

    assert steepness(results[0]) < 0.9 * steepness(digits.model)
    others = digits.test[digits.labels[digits.test] != 5]
    assert digits.accuracy(results[0], others) > 0.8
    with torch.no_grad():
        sure = [m(digits.images[digits.forget]).softmax(1)[:, 5].mean().item() for m in (digits.model, results[0])]
    assert sure[1] < sure[0] - 0.02
    for wrong in ({"sigma": 0.0}, {"draws": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Jit(**wrong)  # type: ignore[arg-type]
