"""Tests of TREW, whose loss is computed again with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from expunge.finetune.loop import Run
from expunge.finetune.trew import Trew
from expunge.system.errors import DataError


def test_the_loss_is_kl_to_the_tilted_target_and_ce_on_retained_rows(digits: Any) -> None:
    method = Trew(beta=3.0, tau=0.5)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    [phase] = method.phases(run)
    rows, retained = digits.forget[:20], digits.retain[:20]
    with torch.no_grad():
        logits = digits.model(digits.images[rows]).double().numpy()
    w = digits.model.head.weight.detach().double().numpy()
    w = w - w.mean(0)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    others = [c for c in range(10) if c != 5]
    s = softmax(w[others] @ w[5] / 0.5)
    t = softmax(logits[:, others] + 3.0 * s, 1)
    expected = (t * (np.log(t) - log_softmax(logits, 1)[:, others])).sum() / 20
    terms = phase.loss(retained, rows)
    assert terms["forget"].item() == pytest.approx(expected, rel=1e-3)
    assert terms["retain"].item() >= 0


@pytest.mark.slow
def test_the_class_goes_where_the_tilt_says(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    seen = digits.test[digits.labels[digits.test] == 5]
    assert digits.accuracy(digits.model, seen) > 0.9
    results = [
        Trew(beta=beta, tau=0.2, lr=0.02, epochs=8, batch_size=64, retain_share=1.0)
        .fit(digits.model, digits.images, digits.labels, *digits.rows)
        .classifier_
        for beta in (0.0, 30.0)
    ]
    for result in results:
        assert digits.accuracy(result, digits.forget) < 0.05
        assert digits.accuracy(result, others) > 0.9
    w = digits.model.head.weight.detach()
    w = torch.nn.functional.normalize(w - w.mean(0), dim=1)
    nearest = int((w @ w[5]).masked_fill(torch.arange(10) == 5, -2).argmax())
    with torch.no_grad():
        plain, tilted = (r(digits.images[seen]).softmax(1)[:, nearest].mean().item() for r in results)
    assert tilted > plain + 0.1


def test_rows_of_classes_that_stay_and_lone_classes_are_refused(digits: Any) -> None:
    retain = np.concatenate([digits.retain, digits.forget[:3]])
    with pytest.raises(DataError, match="class 5 keeps retained rows"):
        Trew().fit(digits.model, digits.images, digits.labels, retain, digits.forget[3:])
    one = digits.retain[digits.labels[digits.retain] == 1]
    with pytest.raises(DataError, match="at least two classes"):
        Trew().fit(digits.model, digits.images, digits.labels, one, digits.forget)
    with pytest.raises(ValueError, match="beta"):
        Trew(beta=-1)
