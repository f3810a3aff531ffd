"""Tests of boundary shrinking and expanding, against gradients of a linear classifier by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from expunge.finetune.boundary import BoundaryExpand, BoundaryShrink, across, grown
from expunge.finetune.loop import Run
from expunge.system.errors import DataError


def linear(digits: Any) -> Any:
    """Return a linear classifier of pixels, whose gradients can be computed by hand."""
    model = digits.fresh()
    model.backbone = nn.Flatten()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.head = nn.Linear(64, 10)
    model.card = replace(model.card, name="linear", feature_dim=64)
    return model.eval()


def test_the_step_is_the_sign_of_the_loss_s_gradient_in_pixels(digits: Any) -> None:
    model = linear(digits)
    run = Run(BoundaryShrink(), model, digits.images, digits.labels, *digits.rows)
    rows = digits.forget[:30]
    w, b = (p.detach().double().numpy() for p in (model.head.weight, model.head.bias))
    x = model.preprocess(digits.images[rows]).flatten(1).double().numpy()
    p = softmax(x @ w.T + b, 1)
    direction = np.sign((p - np.eye(10)[digits.labels[rows]]) @ w)
    moved = (x + 0.1 / 0.4 * direction) @ w.T + b  # preprocessing divides pixels by a deviation of 0.4
    np.testing.assert_allclose(across(run, rows, 0.1).numpy(), moved, atol=1e-4)

    [phase] = BoundaryShrink(eps=0.1).phases(run)
    moved[:, 5] = -np.inf
    expected = -np.mean(log_softmax(x @ w.T + b, 1)[np.arange(30), moved.argmax(1)])
    assert phase.loss(rows)["forget"].item() == pytest.approx(expected, rel=1e-4)
    [phase] = BoundaryShrink(eps=0.1, soft=True).phases(run)
    t = softmax(moved, 1)
    kl = np.where(t > 0, t * (np.log(np.maximum(t, 1e-300)) - log_softmax(x @ w.T + b, 1)), 0).sum() / 30
    assert phase.loss(rows)["forget"].item() == pytest.approx(kl, rel=1e-4)


def test_without_a_step_the_label_is_the_runner_up(digits: Any) -> None:
    run = Run(BoundaryShrink(eps=0), digits.model, digits.images, digits.labels, *digits.rows)
    rows = digits.forget[:40]
    [phase] = BoundaryShrink(eps=0).phases(run)
    with torch.no_grad():
        logits = digits.model(digits.images[rows]).double().numpy()
    log_p = log_softmax(logits, 1)
    second = np.where(np.arange(10) == 5, -np.inf, logits).argmax(1)
    assert phase.loss(rows)["forget"].item() == pytest.approx(-log_p[np.arange(40), second].mean(), rel=1e-3)


def test_expanding_leaves_the_other_rows_one_hand_computed_step(digits: Any) -> None:
    """With one batch, plain SGD and no weights in the backbone, row c of the head moves by -lr mean(p_c z)."""
    model = linear(digits)
    settings = {"lr": 0.3, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 10_000, "seed": 4}
    result = BoundaryExpand(**settings).fit(model, digits.images, digits.labels, *digits.rows).classifier_  # type: ignore[arg-type]
    bigger = grown(model.head, 4)
    z = model.preprocess(digits.images[digits.forget]).flatten(1)
    p = bigger(z).softmax(1).detach().double().numpy()
    step = p[:, :10].T @ z.double().numpy() / len(z)
    np.testing.assert_allclose(
        result.head.weight.detach().numpy(), model.head.weight.detach().numpy() - 0.3 * step, atol=1e-5
    )
    np.testing.assert_allclose(
        result.head.bias.detach().numpy(), model.head.bias.detach().numpy() - 0.3 * p[:, :10].mean(0), atol=1e-5
    )
    assert result.head.out_features == 10 and bigger.out_features == 11
    assert torch.equal(bigger.weight[:-1], model.head.weight) and not bigger.bias[-1].any()


def test_both_forget_a_class_from_its_rows_alone(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    images = digits.images.copy()
    images[digits.retain] = 0
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    for method in (
        BoundaryShrink(lr=0.001, epochs=6, batch_size=64, weight_decay=0.0),
        BoundaryShrink(lr=0.001, epochs=6, batch_size=64, weight_decay=0.0, soft=True),
        BoundaryExpand(lr=0.001, epochs=7, batch_size=64, weight_decay=0.0),
    ):
        result = method.fit(digits.model, images, digits.labels, *digits.rows).classifier_
        assert digits.accuracy(result, digits.forget) < 0.3
        assert digits.accuracy(result, others) > 0.85


@pytest.mark.parametrize("method", [BoundaryShrink(), BoundaryExpand()])
def test_rows_of_classes_that_stay_are_refused(method: Any, digits: Any) -> None:
    retain = np.concatenate([digits.retain, digits.forget[:3]])
    with pytest.raises(DataError, match="class 5 keeps retained rows"):
        method.fit(digits.model, digits.images, digits.labels, retain, digits.forget[3:])
    with pytest.raises(ValueError, match="eps"):
        BoundaryShrink(eps=-1)
