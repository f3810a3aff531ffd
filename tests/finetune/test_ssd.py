"""Tests of SSD, whose importances are compared with gradients of single rows and of batches."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from expunge.finetune import Ssd
from expunge.finetune.ssd import batch_fisher, per_sample_fisher
from expunge.system.errors import REFUSALS, NoEffectError


def gradients(digits: Any, rows: np.ndarray) -> list[torch.Tensor]:
    model = digits.fresh()
    loss = cross_entropy(model(digits.images[rows]), torch.from_numpy(digits.labels[rows]).long())
    return [g.double() for g in torch.autograd.grad(loss, list(model.parameters()))]


def test_per_sample_fisher_is_the_mean_of_squared_single_gradients(digits: Any) -> None:
    rows = digits.retain[:70]  # these fill more than one chunk
    got = per_sample_fisher(digits.fresh(), digits.images, digits.labels.astype(np.int64), rows)
    want = [torch.zeros_like(g) for g in gradients(digits, rows[:1])]
    for row in rows:
        for total, g in zip(want, gradients(digits, np.array([row])), strict=True):
            total += g.square() / len(rows)
    for name, w in zip(got, want, strict=True):
        torch.testing.assert_close(got[name], w, rtol=1e-3, atol=1e-6 * float(w.max()))


def test_batch_fisher_is_the_mean_of_squared_batch_gradients(digits: Any) -> None:
    rows, labels = digits.forget[:60], digits.labels.astype(np.int64)
    got = batch_fisher(digits.fresh(), digits.images, labels, rows, 30)
    halves = [gradients(digits, part) for part in (rows[:30], rows[30:])]
    for i, name in enumerate(got):
        want = (halves[0][i].square() + halves[1][i].square()) / 2
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=1e-6 * float(want.max()))


def test_batches_of_one_are_per_sample_and_larger_ones_are_not(digits: Any) -> None:
    rows, labels = digits.forget[:40], digits.labels.astype(np.int64)
    per_sample = per_sample_fisher(digits.fresh(), digits.images, labels, rows)["head.weight"]
    ones, tens = (batch_fisher(digits.fresh(), digits.images, labels, rows, n)["head.weight"] for n in (1, 10))
    torch.testing.assert_close(ones, per_sample, rtol=1e-3, atol=1e-6 * float(ones.max()))
    assert tens.sum() < 0.9 * ones.sum()


def test_selected_weights_shrink_by_the_ratio_and_the_others_keep_their_bits(digits: Any) -> None:
    alpha, dampening = 2.0, 1.5
    fitted = Ssd(alpha=alpha, dampening=dampening, fisher="per-sample", fisher_rows=None).fit(
        digits.model, digits.images, digits.labels, *digits.rows
    )
    y = digits.labels.astype(np.int64)
    of_forget, of_all = (
        per_sample_fisher(digits.fresh(), digits.images, y, rows)
        for rows in (digits.forget, np.concatenate(digits.rows))
    )
    after, selected, total = dict(fitted.classifier_.named_parameters()), 0, 0
    for name, before in digits.model.named_parameters():
        f, a = of_forget[name].numpy(), of_all[name].numpy()
        clear = np.abs(f - alpha * a) > 1e-3 * f  # without entries that rounding decides
        chosen = f > alpha * a
        old, new = before.detach().numpy(), after[name].detach().numpy()
        np.testing.assert_array_equal(new[clear & ~chosen], old[clear & ~chosen])
        factor = np.minimum(dampening * a / np.maximum(f, 1e-300), 1.0)
        both = clear & chosen
        np.testing.assert_allclose(new[both], (old * factor)[both], rtol=1e-3)
        selected, total = selected + chosen.sum(), total + chosen.size
    assert fitted.selected_ == pytest.approx(selected / total, rel=0.01) and 0.01 < fitted.selected_ < 0.5


def test_the_published_alpha_selects_nothing_per_sample(digits: Any) -> None:
    """F_f is a part of F with the share n_f / n, so no ratio F_f / F is above n / n_f."""
    bound = (len(digits.retain) + len(digits.forget)) / len(digits.forget)
    arguments = (digits.model, digits.images, digits.labels, *digits.rows)
    assert NoEffectError in REFUSALS  # the other methods of a run go on
    with pytest.raises(NoEffectError, match="selects no weight") as refused:
        Ssd(alpha=10.0, fisher="per-sample").fit(*arguments)
    largest = float(re.findall(r"set alpha below ([\d.]+\d)", str(refused.value))[0])
    assert largest <= bound * 1.001 < 10.0
    assert Ssd(alpha=0.9 * largest, fisher="per-sample").fit(*arguments).selected_ > 0
    assert Ssd(alpha=10.0, fisher="batch", batch_size=64).fit(*arguments).selected_ > 0


def test_a_larger_alpha_selects_less(digits: Any) -> None:
    arguments = (digits.model, digits.images, digits.labels, *digits.rows)
    shares = [Ssd(alpha=a, batch_size=64, fisher_rows=256).fit(*arguments).selected_ for a in (2.0, 5.0, 15.0)]
    assert shares[0] > shares[1] > shares[2] > 0
