"""Tests of Seal, which trains a backbone until its features are those that a given map would make of the old ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from expunge.core import Moments, RepresentationLinear, identity
from expunge.core.maps import AffineMap
from expunge.evaluation.representation import knn_rows, linear_cka
from expunge.finetune import Seal
from expunge.models.checkpoint import digest_of_tensors


@pytest.fixture(scope="module")
def collapsing_map(digits: Any) -> AffineMap:
    """Return the map that takes forgotten features to the overall mean and leaves retained ones alone."""
    retain, forget = (Moments.of(digits.z(digits.model, rows)) for rows in digits.rows)
    return RepresentationLinear(beta=1.0).fit(retain, forget).map_


def probe(digits: Any, z_of: Any) -> float:
    """Return the accuracy of kNN that tells the forgotten class from the others.

    The training rows are balanced. It is tested on all test rows of the class and as many others.
    """
    rng = np.random.default_rng(0)
    test_forget = digits.test[digits.labels[digits.test] == 5]
    others = rng.choice(digits.test[digits.labels[digits.test] != 5], len(test_forget), replace=False)
    retain = rng.choice(digits.retain, len(digits.forget), replace=False)
    train, test = np.r_[digits.forget, retain], np.r_[test_forget, others]
    positive, truth = np.arange(len(train)) < len(retain), np.arange(len(test)) < len(others)
    return float(knn_rows(z_of(train).numpy(), positive, z_of(test).numpy(), truth).mean())


@pytest.mark.slow
def test_the_sealed_backbone_behaves_like_the_map(digits: Any, collapsing_map: AffineMap) -> None:
    model, before = digits.fresh(), digest_of_tensors(digits.model.state_dict())
    fits = [
        Seal(collapsing_map, epochs=12, lr=0.2, retain_share=1.0, batch_size=64, weight_decay=0.0).fit(
            model, digits.images, digits.labels, *digits.rows
        )
        for _ in range(2)
    ]
    sealed = fits[0].classifier_
    assert digest_of_tensors(model.state_dict()) == before
    assert digest_of_tensors(sealed.state_dict()) == digest_of_tensors(fits[1].classifier_.state_dict()) != before
    assert torch.equal(sealed.head.weight, model.head.weight) and torch.equal(sealed.head.bias, model.head.bias)

    def z(rows: np.ndarray) -> torch.Tensor:
        return digits.z(model, rows)

    def mapped(rows: np.ndarray) -> torch.Tensor:
        return collapsing_map(z(rows))

    def new(rows: np.ndarray) -> torch.Tensor:
        return digits.z(sealed, rows)

    before_probe, target, after = (probe(digits, f) for f in (z, mapped, new))
    assert before_probe > 0.97 and target < 0.85 and abs(after - target) < 0.5 * (before_probe - target)
    near, far = (linear_cka(f(digits.test).numpy(), mapped(digits.test).numpy()) for f in (new, z))
    assert near is not None and far is not None and near > 0.92 > 0.87 > far
    others = digits.test[digits.labels[digits.test] != 5]
    assert digits.accuracy(sealed, digits.forget) < 0.2 and digits.accuracy(sealed, others) > 0.95


def test_forgotten_inputs_alone_can_seal_and_retained_ones_are_not_read(digits: Any, collapsing_map: AffineMap) -> None:
    seal = Seal(collapsing_map, inputs="forget", epochs=20, lr=0.01, batch_size=64)
    blank = digits.images.copy()
    blank[digits.retain] = 0
    fits = [
        seal.fit(digits.model, images, digits.labels, *digits.rows).classifier_ for images in (digits.images, blank)
    ]
    assert digest_of_tensors(fits[0].state_dict()) == digest_of_tensors(fits[1].state_dict())
    assert [set(epoch) for epoch in seal.history_] == [{"epoch", "forget", "forget_kl"}] * 20
    assert seal.history_[-1]["forget"] < 0.5 * seal.history_[0]["forget"]
    assert digits.accuracy(fits[0], digits.forget) < 0.4
    assert digits.accuracy(fits[0], digits.retain) > 0.8


def test_logits_in_the_loss_bring_behaviour_nearer(digits: Any, collapsing_map: AffineMap) -> None:
    settings = {"epochs": 6, "lr": 0.2, "batch_size": 64, "retain_share": 1.0}
    accuracy = [
        digits.accuracy(
            Seal(collapsing_map, logit_weight=w, **settings)
            .fit(digits.model, digits.images, digits.labels, *digits.rows)
            .classifier_,
            digits.forget,
        )
        for w in (0.0, 0.1)
    ]
    assert accuracy[1] < 0.6 * accuracy[0]


def test_the_loss_is_the_share_of_the_features_variance(digits: Any) -> None:
    """At a rate of zero and without batch norm, features and map determine the loss. The batches are mixed unevenly."""
    flat = digits.fresh()
    flat.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU())
    z = digits.z(flat, np.concatenate(digits.rows)).double()
    constant = AffineMap(torch.zeros(128, 128), z.mean(0))
    seal = Seal(constant, batch_size=100, lr=0.0, retain_share=1.0, logit_weight=0.5).fit(
        flat, digits.images, digits.labels, *digits.rows
    )
    variance = z.var(0, correction=0).sum()
    for part, rows in (("retain", digits.retain), ("forget", digits.forget)):
        miss = (digits.z(flat, rows).double() - z.mean(0)).square().sum(1).mean()
        assert seal.history_[0][part] == pytest.approx(float(miss / variance), rel=1e-4)
        p, q = (
            log_softmax(flat.head(v).detach().double().numpy(), 1)
            for v in (z.mean(0).float()[None], digits.z(flat, rows))
        )
        kl = (np.exp(p) * (p - q)).sum(1).mean()
        assert seal.history_[0][f"{part}_kl"] == pytest.approx(0.5 * kl, rel=1e-3)


def test_sealing_the_identity_changes_next_to_nothing(digits: Any) -> None:
    arguments = (digits.model, digits.images, digits.labels, *digits.rows)
    by_running = Seal(identity(128), inputs="forget", weight_decay=0.0).fit(*arguments)
    assert by_running.history_[0]["forget"] < 1e-9
    old, new = (m(digits.images[digits.test]) for m in (digits.model, by_running.classifier_))
    torch.testing.assert_close(new, old, atol=1e-3, rtol=0)
    by_batch = Seal(identity(128), weight_decay=0.0, lr=0.01).fit(*arguments)  # batch and running statistics differ
    assert 1e-9 < max(by_batch.history_[0]["retain"], by_batch.history_[0]["forget"]) < 0.01
    assert digits.accuracy(by_batch.classifier_, digits.forget) > 0.99


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs must be both or forget"):
        Seal(identity(3), inputs="retain")  # type: ignore[arg-type]
