"""Tests of SCRUB and NegGrad+, whose losses are computed again with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from expunge.finetune import NegGradPlus, Scrub
from expunge.finetune.loop import Run


def perturbed(run: Run) -> None:
    with torch.no_grad():
        run.student.head.bias.add_(torch.linspace(-1, 1, 10))


def test_passes_alternate_and_end_on_retained_rows(digits: Any) -> None:
    method = Scrub(epochs=4, max_epochs=2, batch_size=100)
    phases = method.phases(Run(method, digits.model, digits.images, digits.labels, *digits.rows))
    assert [(p.epoch, p.name) for p in phases] == [
        (0, "forgotten"), (0, "retained"), (1, "forgotten"), (1, "retained"), (2, "retained"), (3, "retained"),
    ]  # fmt: skip
    for phase in phases:
        rows = np.concatenate([batch[0] for batch in phase.batches])
        assert np.isin(rows, digits.forget if phase.name == "forgotten" else digits.retain).all()


def test_the_losses_equal_numpy(digits: Any) -> None:
    method = Scrub(alpha=0.7, gamma=0.3, temperature=4.0)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    perturbed(run)
    forgotten, retained = method.phases(run)[:2]
    run.student.backbone = run.original.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128))  # no batch norm

    def kl(teacher: np.ndarray, t: float) -> float:
        p, q = log_softmax(teacher / t, 1), log_softmax((teacher + np.linspace(-1, 1, 10)) / t, 1)
        return float(np.mean((np.exp(p) * (p - q)).sum(1)))

    rows = digits.forget[:30]
    teacher = run.ask(run.original, rows).double().numpy()
    assert forgotten.loss(rows)["forget"].item() == pytest.approx(-16 * kl(teacher, 4.0), rel=1e-4)
    rows = digits.retain[:30]
    teacher = run.ask(run.original, rows).double().numpy()
    terms = retained.loss(rows)
    nll = -log_softmax(teacher + np.linspace(-1, 1, 10), 1)[np.arange(30), digits.labels[rows]].mean()
    assert terms["retain_kl"].item() == pytest.approx(0.7 * 16 * kl(teacher, 4.0), rel=1e-4)
    assert terms["retain_ce"].item() == pytest.approx(0.3 * nll, rel=1e-4)


def test_scrub_without_its_ascent_does_not_forget_the_class(digits: Any) -> None:
    settings = {"lr": 0.05, "epochs": 4, "retain_share": 1.0, "batch_size": 64}
    fitted = Scrub(max_epochs=0, **settings).fit(digits.model, digits.images, digits.labels, *digits.rows)  # type: ignore[arg-type]
    assert digits.accuracy(fitted.classifier_, digits.forget) > 0.9
    assert all(set(epoch) == {"epoch", "retain_kl", "retain_ce"} for epoch in fitted.history_)


def test_the_loss_of_neggrad_plus_is_the_weighted_difference_of_two_means(digits: Any) -> None:
    method = NegGradPlus(alpha=0.9, cap=None)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    run.student.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128))
    retain, forget = digits.retain[:40], digits.forget[:7]

    def nll(rows: np.ndarray) -> float:
        logits = run.student(digits.images[rows]).detach().double().numpy()
        return float(-log_softmax(logits, 1)[np.arange(len(rows)), digits.labels[rows]].mean())

    terms = method.phases(run)[0].loss(retain, forget)
    assert terms["retain"].item() == pytest.approx(0.9 * nll(retain), rel=1e-5)
    assert terms["forget"].item() == pytest.approx(-0.1 * nll(forget), rel=1e-4)


def test_neggrad_plus_does_not_push_rows_beyond_its_cap(digits: Any) -> None:
    method = NegGradPlus(alpha=0.0)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    run.student.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128))
    with torch.no_grad():
        logits = run.student(digits.images[digits.forget])
        nll = torch.nn.functional.cross_entropy(logits, run.y(digits.forget), reduction="none")
    method.cap = float(nll.median())
    lost = (nll > method.cap).numpy()
    assert 0 < lost.sum() < len(lost)
    loss = method.phases(run)[0].loss
    value = loss(digits.retain[:10], digits.forget)["forget"]
    assert value.item() == pytest.approx(-nll.clamp(max=method.cap).mean().item(), rel=1e-5)
    loss(digits.retain[:10], digits.forget[lost])["forget"].backward()
    assert all(p.grad is None or not p.grad.any() for p in run.student.parameters())
    loss(digits.retain[:10], digits.forget[~lost])["forget"].backward()
    assert run.student.head.weight.grad.any()
