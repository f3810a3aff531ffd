"""Tests of UNSIR: its noise against finite differences and a closed form, and the order of impairing and repairing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from expunge.finetune.loop import Run
from expunge.finetune.unsir import Unsir, error_maximising, noise_loss
from expunge.models.checkpoint import digest_of_tensors
from expunge.system.errors import ConfigError, DataError


def run_of(method: Unsir, digits: Any) -> Run:
    return Run(method, digits.model, digits.images, digits.labels, *digits.rows)


def test_the_first_step_goes_against_the_gradient_by_finite_differences(digits: Any) -> None:
    """Adam's first step has length `lr` in each entry, against the sign of the gradient."""
    model = digits.fresh().double()
    x, y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([5, 5])

    def objective(at: torch.Tensor) -> float:
        """Return the objective as the paper defines it, from probabilities instead of logits."""
        picked = model(at).double().softmax(1)[:, 5]
        return float((0.1 * (at**2).sum((1, 2, 3)) + picked.log()).sum().detach())

    slope = np.zeros(x.numel())
    for i in range(x.numel()):
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[i] += sign * 1e-5
            slope[i] += sign * objective(moved) / 2e-5
    at = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(noise_loss(model(at), at, y, 0.1), [at])
    np.testing.assert_allclose(gradient.numpy().ravel(), slope, rtol=1e-3, atol=1e-4)
    step = (error_maximising(model, x, y, lam=0.1, lr=1e-3, steps=1) - x).numpy().ravel()
    clear = np.abs(slope) > 1e-3
    assert clear.sum() > 100
    np.testing.assert_allclose(step[clear], -1e-3 * np.sign(slope[clear]), rtol=1e-3)


def test_of_a_linear_model_the_noise_is_the_closed_form() -> None:
    """With logits W x + b the minimum has 2 lam x = W'(p - e) where p are the probabilities at x."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, start = nn.Linear(6, 4).double(), torch.randn(3, 6).double()
    y, lam = torch.tensor([2, 2, 2]), 0.3
    x = start
    for lr in (0.05, 0.005, 0.0005):
        x = error_maximising(model, x, y, lam, lr, steps=600)
    with torch.no_grad():
        p = model(x).softmax(1) - nn.functional.one_hot(y, 4)
        torch.testing.assert_close(x, p @ model.weight / (2 * lam), rtol=0, atol=1e-4)


def test_the_original_finds_the_noise_far_from_the_class_and_a_penalty_keeps_it_small(digits: Any) -> None:
    sizes = []
    for lam in (0.01, 1.0):
        run = run_of(Unsir(lam=lam, noises=40), digits)
        noise, labels = Unsir(lam=lam, noises=40)._noise(run, np.array([3, 5]))
        assert labels.tolist() == [3] * 40 + [5] * 40 and noise.shape == (80, 1, 8, 8)
        sizes.append(float(noise.flatten(1).norm(dim=1).mean()))
    assert sizes[1] < 0.7 * sizes[0]
    run = run_of(Unsir(noises=40), digits)
    learned, labels = Unsir(noises=40)._noise(run, np.array([5]))
    drawn = torch.from_numpy(run.rng(3).standard_normal(tuple(learned.shape), dtype=np.float32))
    with torch.no_grad():
        before, after = (cross_entropy(digits.model(x), labels).item() for x in (drawn, learned))
    assert after > before + 5


def test_it_impairs_and_then_repairs(digits: Any) -> None:
    """Noise stands in the first passes only, in its share, under the forgotten label; no forgotten row is read."""
    method = Unsir(impair_epochs=2, epochs=3, noise_share=0.25, noises=20, batch_size=64, retain_share=0.5)
    run = run_of(method, digits)
    phases = method.phases(run)
    assert [p.name for p in phases] == ["impair"] * 2 + ["repair"] * 3 and [p.epoch for p in phases] == [0, 1, 2, 3, 4]
    for phase in phases:
        rows = np.concatenate([batch[0] for batch in phase.batches])
        assert set(rows) <= set(digits.retain) and len(set(rows)) == len(rows) == round(0.5 * len(digits.retain))
        if phase.name == "impair":
            at = np.concatenate([batch[1] for batch in phase.batches])
            assert len(at) / (len(at) + len(rows)) == pytest.approx(0.25, abs=0.001)
            assert np.ptp(np.bincount(at, minlength=20)) <= 1
            assert max(len(a) + len(b) for a, b in phase.batches) <= 64
    rows, at = phases[0].batches[0]
    terms = phases[0].loss(rows, at)
    noise, _ = method._noise(run, np.array([5]))
    x = torch.cat([digits.model.preprocess(digits.images[rows]), noise[at]])
    y = torch.from_numpy(np.concatenate([digits.labels[rows], np.full(len(at), 5)]).astype(np.int64))
    expected = cross_entropy(digits.fresh().train()(x), y)
    torch.testing.assert_close(terms["retain"] + terms["noise"], expected, rtol=1e-4, atol=1e-5)
    result = method.fit(digits.model, digits.images, digits.labels, *digits.rows)
    assert ["noise" in epoch for epoch in result.history_] == [True, True, False, False, False]


@pytest.mark.slow
def test_repair_brings_back_what_impairing_costs_and_not_the_class(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    settings: dict[str, Any] = {"lr": 0.02, "batch_size": 64, "retain_share": 1.0}
    short, long = (
        Unsir(epochs=e, **settings).fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_
        for e in (1, 4)
    )
    assert digits.accuracy(long, others) > digits.accuracy(short, others) + 0.01
    assert digits.accuracy(long, digits.forget) < 0.05


def test_the_seed_draws_the_noise_and_forgotten_pictures_are_not_looked_at(digits: Any) -> None:
    images = digits.images.copy()
    images[digits.forget] = 0

    def fitted(seed: int, pictures: np.ndarray) -> str:
        method = Unsir(seed=seed, batch_size=64, noises=30)
        model = method.fit(digits.model, pictures, digits.labels, *digits.rows).classifier_
        return digest_of_tensors(model.state_dict())

    assert fitted(1, digits.images) == fitted(1, images) != fitted(2, digits.images)


def test_the_rate_follows_the_recipe_of_the_model(digits: Any) -> None:
    model = digits.fresh()
    model.card = replace(model.card, recipe={"optimizer": "sgd", "mean_lr": 0.02, "precision": "fp32"})
    run = Run(Unsir(), model, digits.images, digits.labels, *digits.rows)
    assert run.steps.lr == pytest.approx(0.01) and run.steps.optimizer == "sgd"


def test_requests_and_settings_that_make_no_sense_are_refused(digits: Any) -> None:
    retain = np.concatenate([digits.retain, digits.forget[:3]])
    with pytest.raises(DataError, match="Unsir is for whole classes, but class 5 keeps retained rows"):
        Unsir().fit(digits.model, digits.images, digits.labels, retain, digits.forget[3:])
    texts = digits.fresh()
    texts.preprocess = object()
    with pytest.raises(ConfigError, match="Unsir changes pixels, but this classifier takes texts"):
        Unsir().fit(texts, digits.images, digits.labels, *digits.rows)
    for wrong in ({"lam": -1}, {"noise_lr": 0}, {"noise_share": 1.0}, {"noises": 0}, {"impair_epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Unsir(**wrong)
