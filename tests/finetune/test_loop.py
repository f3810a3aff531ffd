"""Tests of the training loop that methods share, against softmax regression by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from expunge.finetune import Delete, FineTune
from expunge.finetune.loop import Run, kl
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess


def run_of(digits: Any, **options: Any) -> Run:
    return Run(FineTune(**options), digits.model, digits.images, digits.labels, *digits.rows)


def test_a_fit_is_nesterov_sgd_with_a_cosine_rate(digits: Any) -> None:
    """The reference is softmax regression by hand, full batch, with the gradient (p - y)^T z / n + decay w."""
    torch.manual_seed(0)
    pre = Preprocess(8, 8, 1, (0.5,), (0.5,))
    model = Classifier(nn.Flatten(), nn.Linear(64, 10), pre, ModelCard("flat", 10, 64, "full", True))
    retain, forget = digits.rows
    y = digits.labels[retain]
    z = np.c_[digits.images[retain].reshape(len(y), 64) / 127.5 - 1.0, np.ones(len(y))]
    w = np.c_[model.head.weight.detach().numpy(), model.head.bias.detach().numpy()].astype(np.float64)
    v, losses = np.zeros_like(w), []
    lr, momentum, decay, epochs = 0.3, 0.8, 0.01, 4
    for step in range(epochs):
        p = np.exp(z @ w.T)
        p /= p.sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(y)), y]).mean())
        g = (p - np.eye(10)[y]).T @ z / len(y) + decay * w
        v = momentum * v + g
        w = w - lr * 0.5 * (1 + math.cos(math.pi * step / epochs)) * (g + momentum * v)
    fitted = FineTune(epochs=epochs, lr=lr, momentum=momentum, weight_decay=decay, batch_size=10_000).fit(
        model, digits.images, digits.labels, retain, forget
    )
    head = fitted.classifier_.head
    np.testing.assert_allclose(np.c_[head.weight.detach(), head.bias.detach()], w, atol=2e-5)
    np.testing.assert_allclose([epoch["retain"] for epoch in fitted.history_], losses, rtol=1e-5)
    assert [epoch["epoch"] for epoch in fitted.history_] == [1, 2, 3, 4]


def test_forgotten_batches_leave_running_statistics_and_retained_ones_move_them(digits: Any) -> None:
    def statistics(model: Classifier) -> torch.Tensor:
        return torch.cat([b.flatten().double() for name, b in model.named_buffers() if "running" in name])

    arguments = (digits.model, digits.images, digits.labels, *digits.rows)
    before = statistics(digits.model)
    assert torch.equal(statistics(Delete(batch_size=64).fit(*arguments).classifier_), before)
    assert not torch.equal(statistics(FineTune(batch_size=64).fit(*arguments).classifier_), before)


def test_frozen_norm_gives_the_logits_of_eval_mode(digits: Any) -> None:
    run, rows = run_of(digits), digits.forget[:20]
    run.student.train()
    frozen, z = run.logits(rows, frozen_norm=True), run.features(rows, frozen_norm=True)
    torch.testing.assert_close(frozen, run.ask(run.original, rows), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z, digits.z(digits.model, rows), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(run.logits(rows), frozen, atol=0.1)


def test_a_pass_sees_every_row_once_in_even_batches(digits: Any) -> None:
    run = run_of(digits, batch_size=100)
    for batches, rows in (
        (run.retained(0), digits.retain),
        (run.forgotten(0), digits.forget),
        (run.mixed(0), np.concatenate(digits.rows)),
    ):
        sizes = [len(b) for b in batches]
        assert len(sizes) == math.ceil(len(rows) / 100) and max(sizes) <= 100 and max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.sort(rows))
    assert not np.array_equal(run.retained(0)[0], run.retained(1)[0])
    np.testing.assert_array_equal(run.retained(1)[0], run_of(digits, batch_size=100).retained(1)[0])


def test_pairs_go_round_on_the_shorter_side(digits: Any) -> None:
    run = run_of(digits, batch_size=100)
    retained, forgotten = (list(side) for side in zip(*run.pairs(0), strict=True))
    assert len(retained) == math.ceil(len(digits.retain) / 100) > len(run.forgotten(0)) == 2
    np.testing.assert_array_equal(np.sort(np.concatenate(retained)), np.sort(digits.retain))
    np.testing.assert_array_equal(forgotten[0], forgotten[2])
    assert len(run_of(digits, batch_size=10, retain_share=0.01).pairs(0)) == math.ceil(len(digits.forget) / 10)


def test_a_share_of_the_retained_rows_is_drawn_anew_for_each_epoch(digits: Any) -> None:
    run = run_of(digits, retain_share=0.25, batch_size=10_000)
    first, second = (run.retained(epoch)[0] for epoch in (0, 1))
    assert len(first) == len(second) == round(0.25 * len(digits.retain))
    assert 0 < len(np.intersect1d(first, second)) < 0.5 * len(first)
    [mixed] = run.mixed(0)
    np.testing.assert_array_equal(np.sort(mixed), np.sort(np.r_[first, digits.forget]))


def test_kl_is_a_sum_over_classes_and_a_mean_over_rows() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7), 5), rng.dirichlet(np.ones(7), 5)
    p[:, 0] = 0
    p /= p.sum(1, keepdims=True)
    logits = torch.from_numpy(np.log(q) + 3.0).requires_grad_()
    value = kl(torch.from_numpy(p), logits)
    assert value.item() == pytest.approx(np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)]), rel=1e-12)
    value.backward()
    np.testing.assert_allclose(logits.grad, (q - p) / 5, atol=1e-12)  # d KL / d logits = softmax - target
