"""Tests of OracleMatch and its oracles, against ridge solutions in closed form and a retrained network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.group_removal import group_effect, ridge
from expunge.core.head import LinearHead
from expunge.core.head_refit import HeadRefit
from expunge.finetune.loop import Run
from expunge.finetune.oracle import GroupOracle, HeadOracle, OracleMatch, RidgeOracle, TeacherOracle, distance
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess
from expunge.system.errors import DataError
from expunge.training.trainer import train
from tests.finetune.conftest import small_network


def data(n: int = 60, m: int = 12, p: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, p, generator=generator).double(), torch.randn(n, 3, generator=generator).double()


def test_the_group_effect_is_the_difference_to_the_refit() -> None:
    z, y = data()
    w, h = ridge(z, y, 0.5)
    refit, _ = ridge(z[:-12], y[:-12], 0.5)
    effect = group_effect(h, z[-12:], y[-12:] - z[-12:] @ w)
    torch.testing.assert_close(w - effect, refit, atol=1e-12, rtol=1e-10)
    np.testing.assert_allclose(w.numpy(), np.linalg.solve(z.T @ z + 0.5 * np.eye(7), z.T @ y), atol=1e-12)


def test_effects_of_single_rows_do_not_add_up_to_the_group_s() -> None:
    z, y = data(n=20, m=12)
    w, h = ridge(z, y, 0.5)
    residuals = y - z @ w
    single = sum(group_effect(h, z[i : i + 1], residuals[i : i + 1]) for i in range(8, 20))
    assert isinstance(single, torch.Tensor)
    group = group_effect(h, z[8:], residuals[8:])
    assert (single - group).abs().max() > 0.1 * group.abs().max()
    hat = float(z[8] @ torch.linalg.solve(h, z[8]))
    leave_one_out = torch.outer(torch.linalg.solve(h, z[8]), residuals[8]) / (1 - hat)
    torch.testing.assert_close(group_effect(h, z[8:9], residuals[8:9]), leave_one_out)


def ridge_classifier(n: int = 240) -> tuple[Classifier, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a classifier of nine pixels and three classes, its images and labels, and retained and forgotten rows.

    Its head is the ridge solution on all rows.
    """
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, n)
    images = np.clip(rng.normal(size=(n, 3, 3, 1)) * 60 + 128 + 20 * labels[:, None, None, None], 0, 255)
    images = images.astype(np.uint8)
    model = Classifier(
        nn.Flatten(), nn.Linear(9, 3), Preprocess(3, 3, 1, (0.5,), (0.25,)), ModelCard("ridge", 3, 9, "full", True)
    )
    z = model.features(images).double()
    w, _ = ridge(torch.cat([z, z.new_ones(n, 1)], 1), torch.eye(3).double()[labels], 1.0)
    model.set_head(w[:-1].T.float(), w[-1].float())
    rows = rng.permutation(n)
    return model.eval(), images, labels, rows[60:], rows[:60]


def test_a_ridge_oracle_gives_the_refit_and_distilling_a_linear_student_reaches_it() -> None:
    model, images, labels, retain, forget = ridge_classifier()
    z = model.features(images).detach().double()
    z = torch.cat([z, z.new_ones(len(z), 1)], 1)
    refit, _ = ridge(z[retain], torch.eye(3).double()[labels[retain]], 1.0)
    oracle = RidgeOracle(1.0)
    method = OracleMatch(oracle=oracle, epochs=150, lr=0.05, batch_size=80, retain_multiplier=3.0, forget_multiplier=2)
    run = Run(method, model, images, labels, retain, forget)
    oracle.prepare(run)
    torch.testing.assert_close(oracle.logits(run, forget).double(), z[forget] @ refit, atol=1e-5, rtol=1e-4)

    head = method.fit(model, images, labels, retain, forget).classifier_.head
    found = torch.cat([head.weight.T, head.bias[None]]).detach().double()
    centred = refit - refit.mean(1, keepdim=True)
    start = torch.cat([model.head.weight.T, model.head.bias[None]]).detach().double()
    assert (start - start.mean(1, keepdim=True) - centred).abs().max() > 0.01
    torch.testing.assert_close(found - found.mean(1, keepdim=True), centred, atol=1e-3, rtol=0)


def test_an_epoch_repeats_forgotten_rows_as_asked(digits: Any) -> None:
    method = OracleMatch(oracle=TeacherOracle(digits.model), forget_multiplier=3, retain_multiplier=2.0)
    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    rows, counts = np.unique(np.concatenate(method.batches(run, 0)), return_counts=True)
    assert set(counts[np.isin(rows, digits.forget)]) == {3} and set(counts[np.isin(rows, digits.retain)]) == {1}
    assert np.isin(rows, digits.retain).sum() == 2 * len(digits.forget)


def test_a_common_shift_of_logits_is_no_distance() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert distance(logits, logits + torch.arange(5.0)[:, None]).item() < 1e-10
    other = logits.clone()
    other[:, 0] += 2.0
    assert distance(logits, other).item() == pytest.approx(4 * (0.75**2 + 3 * 0.25**2), rel=1e-5)


def test_the_student_comes_near_a_retrained_network_and_a_group_of_one_is_the_difference(digits: Any) -> None:
    """The oracle is a retrained network. It shows what the best distillation reaches, and does not answer a request."""
    retrained = small_network(seed=2)
    train(
        retrained, digits.images[digits.retain], digits.labels[digits.retain],
        epochs=6, batch_size=64, lr=0.2, momentum=0.9, weight_decay=5e-4, precision="fp32", seed=2,
    )  # fmt: skip
    retrained.eval()
    method = OracleMatch(oracle=TeacherOracle(retrained), lr=0.003, epochs=12, batch_size=64)
    result = method.fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    assert digits.accuracy(result, digits.forget) < 0.05
    with torch.no_grad():
        seen = digits.test
        p, q = (m(digits.images[seen]).log_softmax(1) for m in (retrained, result))
        start = digits.model(digits.images[seen]).log_softmax(1)
    after, before = (float((p.exp() * (p - x)).sum(1).mean()) for x in (q, start))
    assert after < 0.2 * before
    assert digits.accuracy(result, digits.test[digits.labels[digits.test] != 5]) > 0.9

    run = Run(method, digits.model, digits.images, digits.labels, *digits.rows)
    group = GroupOracle([retrained], [digits.model])
    rows = digits.forget[:5]
    torch.testing.assert_close(group.logits(run, rows), run.ask(retrained, rows), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        GroupOracle([], [digits.model])
    with pytest.raises(ValueError, match="forget_multiplier"):
        OracleMatch(oracle=group, forget_multiplier=0)


def test_a_head_oracle_gives_the_refitted_head_s_logits_and_masked_classes_the_least(digits: Any) -> None:
    z, labels = digits.z(digits.model, digits.retain), torch.from_numpy(digits.labels[digits.retain])
    head = HeadRefit(l2=1e-3).fit(LinearHead.of(digits.model.head), z, labels).head_
    oracle = HeadOracle(head)
    run = Run(OracleMatch(oracle=oracle), digits.model, digits.images, digits.labels, *digits.rows)
    oracle.prepare(run)
    found = oracle.logits(run, digits.forget)
    expected = head.logits(digits.z(digits.model, digits.forget)).float()
    others = [c for c in range(10) if c != 5]
    torch.testing.assert_close(found[:, others], expected[:, others], atol=1e-4, rtol=1e-4)
    assert expected[:, 5].max() < -9000
    torch.testing.assert_close(found[:, 5], found[:, others].amin(1))
    with pytest.raises(DataError, match=r"the oracle's head has the shape \[10, 4\]"):
        HeadOracle(LinearHead(torch.zeros(10, 4), torch.zeros(10))).prepare(run)
    # A network that is distilled from this oracle no longer assigns forgotten rows to their class.
    method = OracleMatch(oracle=oracle, epochs=8, lr=1e-4, batch_size=64)
    result = method.fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    assert digits.accuracy(result, digits.forget) < 0.1
