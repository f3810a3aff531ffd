"""Tests of L2UL: adversarial copies stay in their ball, and a penalty holds weights that forgotten rows do not use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from expunge.finetune.instance_wise import InstanceWise, attack, nothing_read, other_labels, scaled
from expunge.finetune.loop import Run
from expunge.system.errors import DataError


def run_of(method: InstanceWise, digits: Any, *unseen: np.ndarray) -> Run:
    return Run(method, digits.model, digits.images, digits.labels, *digits.rows, *unseen)


def test_copies_lie_within_the_ball_and_the_pixels_and_are_taken_for_their_class(digits: Any) -> None:
    rows, pre = digits.forget[:60], digits.model.preprocess
    x = pre(digits.images[rows])
    target = torch.full((60,), 3)
    found = attack(digits.model, x, target, pre, eps=1.5, step=0.1, iterations=40)
    pixels, start = (v * pre.std[0] + pre.mean[0] for v in (found, x))
    radius = (pixels - start).flatten(1).norm(dim=1)
    assert radius.max() <= 1.5 + 1e-5 and radius.max() > 0.5
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    with torch.no_grad():
        before, after = (cross_entropy(digits.model(v), target, reduction="none") for v in (x, found))
    assert (after < before).float().mean() > 0.95
    assert (digits.model(found).argmax(1) == 3).float().mean() > 0.8 > (digits.model(x).argmax(1) == 3).float().mean()


def test_the_first_step_is_the_normalised_gradient(digits: Any) -> None:
    """The reference is the gradient by finite differences of the loss in pixels."""
    pre, rows = digits.model.preprocess, digits.forget[:1]
    x, target = pre(digits.images[rows]), torch.tensor([2])
    model = digits.fresh().double()
    moved = attack(model, x.double(), target, pre, eps=10.0, step=1e-3, iterations=1)
    change = ((moved - x.double()) * pre.std[0]).flatten()
    inner = ((digits.images[rows] > 0) & (digits.images[rows] < 255)).reshape(-1)
    slope = np.zeros(64)
    for i in range(64):
        for sign in (1, -1):
            y = x.double().clone()
            y.view(-1)[i] += sign * 1e-4 / pre.std[0]
            slope[i] += sign * cross_entropy(model(y), target).item() / 2e-4
    expected = -1e-3 * slope / np.linalg.norm(slope)
    assert inner.sum() > 10
    np.testing.assert_allclose(change.detach().numpy()[inner], expected[inner], atol=2e-5)


def test_labels_of_copies_are_never_the_row_s_own_or_a_forgotten_class(digits: Any) -> None:
    run = run_of(InstanceWise(), digits)
    found = other_labels(run, np.repeat(digits.forget, 3), np.random.default_rng(0))
    assert set(found) == set(range(10)) - {5}
    mixed = np.concatenate([digits.retain[:400], digits.forget[:20]])
    rest = np.setdiff1d(np.concatenate(digits.rows), mixed)
    single = Run(InstanceWise(), digits.model, digits.images, digits.labels, rest, mixed)
    found = other_labels(single, mixed, np.random.default_rng(0))
    assert (found != digits.labels[mixed]).all() and set(found) == set(range(10))
    one = digits.retain[digits.labels[digits.retain] == 1]
    alone = Run(InstanceWise(), digits.model, digits.images, digits.labels, one[5:], one[:5])
    with pytest.raises(DataError, match="a class other than 1"):
        other_labels(alone, one[:5], np.random.default_rng(0))


def test_a_large_penalty_holds_the_weights(digits: Any) -> None:
    def moved(lam: float) -> float:
        method = InstanceWise(lr=1e-4, lam=lam, epochs=2, batch_size=64, momentum=0.0, attacked=20, iterations=2)
        result = method.fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_
        pairs = zip(result.parameters(), digits.model.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5

    # A held entry stops where the penalty balances the gradient of the loss, at about 1 / lam of its free move.
    assert moved(1.5e4) < 0.6 * moved(0.0)


def test_importance_is_scaled_to_0_and_1_tensor_by_tensor() -> None:
    values = torch.tensor([3.0, 5.0, 4.0])
    torch.testing.assert_close(scaled(values), torch.tensor([0.0, 1.0, 0.5]))
    assert not scaled(torch.full((4,), 2.0)).any()


def test_it_stops_once_nothing_is_read_or_none_better_than_unseen_rows(digits: Any) -> None:
    method = InstanceWise(lr=0.1, epochs=40, batch_size=64)
    result = method.fit(digits.model, digits.images, digits.labels, *digits.rows)
    assert len(result.history_) < 40 and digits.accuracy(result.classifier_, digits.forget) == 0
    assert not nothing_read(run_of(method, digits))
    # For single rows, with unseen rows of each class, it stops long before all forgotten rows are misclassified.
    rows = np.random.default_rng(0).permutation(np.concatenate(digits.rows))
    single = InstanceWise(lr=0.1, epochs=40, batch_size=64)
    single.fit(digits.model, digits.images, digits.labels, rows[150:], rows[:150], digits.test)
    assert 0.3 < digits.accuracy(single.classifier_, rows[:150]) <= digits.accuracy(single.classifier_, digits.test)


def test_retained_pictures_are_not_looked_at(digits: Any) -> None:
    images = digits.images.copy()
    images[digits.retain] = 0
    method = InstanceWise(lr=0.1, epochs=2, batch_size=64, attacked=30)
    a, b = (method.fit(digits.model, x, digits.labels, *digits.rows).classifier_ for x in (digits.images, images))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(ValueError, match="eps and step must be above 0"):
        InstanceWise(eps=0)
