"""Tests of rates relative to the recipe that trained the classifier, and of AdamW in the loop that methods share."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.finetune import METHODS, FineTune
from expunge.finetune.loop import Phase, Run, Updater
from expunge.finetune.relearn import FACTORS, Relearn
from expunge.finetune.steps import UNKNOWN, Factors, Steps
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess

CARD = ModelCard("flat", 3, 9, "full", True)
FACTOR = Factors(sgd=2.0, adamw=0.5)


def card(**recipe: Any) -> ModelCard:
    return dataclasses.replace(CARD, recipe=recipe)


def test_a_rate_is_a_factor_of_the_recipes_mean_rate() -> None:
    assert Steps.of(card(optimizer="sgd", mean_lr=0.03), FACTOR, None, None, "auto") == Steps(0.06, "sgd")
    assert Steps.of(card(optimizer="adamw", mean_lr=4e-4), FACTOR, None, None, "auto") == Steps(2e-4, "adamw")
    assert Steps.of(card(optimizer="lamb", mean_lr=4e-4), FACTOR, None, 3.0, "auto").lr == pytest.approx(1.2e-3)
    assert Steps.of(card(optimizer="adamw", mean_lr=4e-4), FACTOR, 0.7, 3.0, "auto") == Steps(0.7, "adamw")


def test_another_kind_of_optimizer_than_the_recipes_has_the_reference_rate() -> None:
    """A mean rate of AdamW says nothing about a good rate of SGD."""
    assert Steps.of(card(optimizer="adamw", mean_lr=4e-4), FACTOR, None, None, "sgd").lr == 2.0 * UNKNOWN
    assert Steps.of(CARD, FACTOR, None, None, "auto") == Steps(2.0 * UNKNOWN, "sgd")


def test_the_recipe_of_training_above_a_cut_counts_too() -> None:
    above = dataclasses.replace(
        CARD, above={"recipe": {"optimizer": "adamw", "lr": 1e-3, "epochs": 1.0, "batch_size": 64}}
    )
    assert Steps.of(above, FACTORS, None, None, "auto") == Steps(1e-3, "adamw")


def test_no_method_has_a_rate_of_its_own() -> None:
    """A default rate would suit a single network only, so the defaults and `for_rows` are factors of a rate."""
    updaters = {name: kind for name, kind in METHODS.items() if issubclass(kind, Updater)}
    assert len(updaters) > 15
    for name, kind in updaters.items():
        result = kind()
        assert result.lr is None and result.factor is None and result.optimizer == "auto", name
        assert result.factors.sgd > 0 and result.factors.adamw > 0 and "lr" not in kind.for_rows
    assert Relearn().lr is None


@pytest.mark.parametrize("settings", [{"optimizer": "lion"}, {"factor": -1.0}, {"lr": -0.1}])
def test_impossible_settings_of_the_descent_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        FineTune(**settings)


def flat() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Flatten(), nn.Linear(9, 3), Preprocess(3, 3, 1, (0.5,), (0.25,)), CARD)


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 3, 1), np.uint8)
LABELS = np.arange(12) % 3


def run(**settings: Any) -> Run:
    options = FineTune(optimizer="adamw", lr=0.01, weight_decay=0.1, **settings)
    return Run(options, flat(), IMAGES, LABELS, np.arange(9), np.arange(9, 12))


def phase(r: Run) -> list[Phase]:
    return [Phase(0, "all", [(np.arange(9),)], lambda rows: {"loss": r.logits(rows).square().mean()})]


def test_a_step_of_adamw_equals_a_computation_by_hand() -> None:
    """The first step is lr times the gradient's sign, and the decay lr * decay * w is subtracted separately."""
    r = run()
    before = r.student.head.weight.detach().clone()
    r.train(phase(r))
    other = run()
    (gradient,) = torch.autograd.grad(other.logits(np.arange(9)).square().mean(), [other.student.head.weight])
    wanted = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(r.student.head.weight.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_a_weight_outside_the_mask_keeps_its_bits_under_adamw() -> None:
    r = run()
    before = {name: p.detach().clone() for name, p in r.student.named_parameters()}
    movable = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in before.items()}
    movable["head.weight"][0] = True
    r.train(phase(r), movable=movable)
    after = dict(r.student.named_parameters())
    assert torch.equal(after["head.weight"][1:], before["head.weight"][1:])
    assert torch.equal(after["head.bias"], before["head.bias"])
    assert not torch.equal(after["head.weight"][0], before["head.weight"][0])


@pytest.mark.parametrize(
    ("settings", "recipe", "kept"),
    [({}, {}, False), ({"frozen_norm": True}, {}, True), ({}, {"frozen_norm": True}, True)],
)
def test_frozen_norms_stay_in_every_batch(settings: dict[str, Any], recipe: dict[str, Any], kept: bool) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten())
    about = dataclasses.replace(card(optimizer="sgd", mean_lr=0.1, **recipe), feature_dim=36)
    network = Classifier(backbone, nn.Linear(36, 3), Preprocess(3, 3, 1, (0.5,), (0.25,)), about).eval()
    fitted = FineTune(**settings).fit(network, IMAGES, LABELS, np.arange(9), np.arange(9, 12)).classifier_
    assert torch.equal(fitted.backbone[1].running_mean, network.backbone[1].running_mean) == kept
    assert not torch.equal(fitted.head.weight, network.head.weight)
