"""Tests of the targets that Bad Teacher and DELETE teach the student."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from expunge.finetune import BadTeacher, Delete
from expunge.finetune.bad_teacher import untrained
from expunge.finetune.delete import masked_target
from expunge.finetune.loop import Run


def test_bad_teacher_mixes_two_teachers_and_divides_by_rows_only(digits: Any) -> None:
    method = BadTeacher(seed=4)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    [phase] = method.phases(run)
    run.student.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128))  # without batch norm the mode is irrelevant
    rows = np.r_[digits.retain[:20], digits.forget[:12]]
    images = digits.images[rows]
    with torch.no_grad():
        good, bad = digits.model(images).numpy(), untrained(digits.model, 4)(images).numpy()
        log_q = log_softmax(run.student(images).double().numpy(), 1)
    p = softmax(np.r_[good[:20], bad[20:]].astype(np.float64), 1)
    expected = (p * (np.log(np.maximum(p, 1e-300)) - log_q)).sum() / len(rows)
    assert phase.loss(rows)["kl"].item() == pytest.approx(expected, rel=1e-4)


def test_the_bad_teacher_knows_nothing_and_is_the_same_each_time(digits: Any) -> None:
    rows = np.concatenate(digits.rows)
    first, again, other = (untrained(digits.model, seed) for seed in (0, 0, 1))
    assert digits.accuracy(first, rows) < 0.3 < 0.99 < digits.accuracy(digits.model, rows)
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_parameters_without_a_start_of_their_own_are_shuffled(digits: Any) -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.arange(128.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).repeat(1, 2) + self.token

    model = digits.fresh()
    model.backbone = Token()
    token = untrained(model, 0).backbone.token.detach()
    assert not torch.equal(token, torch.arange(128.0))
    assert torch.equal(token.sort().values, torch.arange(128.0))


def test_the_target_of_delete_is_renormalised_over_the_other_classes() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    keep = torch.tensor([True, True, False, True, True])  # class 2 keeps no row
    target = masked_target(logits, labels, keep).numpy()
    p = softmax(logits.numpy(), 1)
    for row, label in enumerate(labels.tolist()):
        others = [c for c in range(5) if c not in (2, label)]
        np.testing.assert_allclose(target[row, others], p[row, others] / p[row, others].sum(), rtol=1e-12)
        assert target[row, label] == target[row, 2] == 0


def test_delete_distils_the_struck_out_opinion(digits: Any) -> None:
    method = Delete()
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    rows = digits.forget[:25]
    with torch.no_grad():
        logits = digits.model(digits.images[rows]).double().numpy()
    # Student and original agree at the start, so KL is -log of the probability left after striking class 5 out.
    value = method.phases(run)[0].loss(rows)["forget"].item()
    rest = np.delete(log_softmax(logits, 1), 5, axis=1)
    expected = float(-np.mean(np.log(np.exp(rest).sum(1))))
    assert value == pytest.approx(expected, rel=1e-3)


def test_delete_looks_at_no_retained_row(digits: Any) -> None:
    images = digits.images.copy()
    settings = {"lr": 0.001, "batch_size": 64}
    with_them = Delete(**settings).fit(digits.model, images, digits.labels, *digits.rows)  # type: ignore[arg-type]
    images[digits.retain] = 0
    without = Delete(**settings).fit(digits.model, images, digits.labels, *digits.rows)  # type: ignore[arg-type]
    for a, b in zip(with_them.classifier_.parameters(), without.classifier_.parameters(), strict=True):
        assert torch.equal(a, b)
