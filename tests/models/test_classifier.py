"""Tests of the classifier, which is preprocessing, a backbone and a linear head with a description."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess

CARD = ModelCard("flat", 3, 16, "none", False)
PREPROCESS = Preprocess(4, 4, 1, (0.5,), (0.25,))
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)


def flat() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Flatten(), nn.Linear(16, 3), PREPROCESS, CARD)


def test_logits_are_the_head_of_the_backbone_of_preprocessed_images() -> None:
    model = flat()
    z = (IMAGES.reshape(5, 16) / 255 - 0.5) / 0.25
    with torch.no_grad():
        np.testing.assert_allclose(model.features(IMAGES).numpy(), z, rtol=1e-5, atol=1e-6)
        logits = z @ model.head.weight.numpy().T + model.head.bias.numpy()
        np.testing.assert_allclose(model(IMAGES).numpy(), logits, rtol=1e-5, atol=1e-5)


def test_pixels_that_are_preprocessed_already_pass_as_they_are() -> None:
    model = flat()
    assert torch.equal(model(PREPROCESS(IMAGES)), model(IMAGES))


def test_set_head_copies_and_refuses_other_shapes() -> None:
    model = flat()
    weight, bias = torch.randn(3, 16), torch.randn(3)
    model.set_head(weight, bias)
    assert torch.equal(model.head.weight, weight) and torch.equal(model.head.bias, bias)
    assert model.head.weight.requires_grad and model.head.weight.data_ptr() != weight.data_ptr()
    with pytest.raises(ValueError, match=r"\(3, 16\)"):
        model.set_head(torch.randn(4, 16), torch.randn(4))


def test_a_card_survives_a_round_trip_and_bad_cards_are_refused() -> None:
    card = replace(CARD, options={"config": {"depth": 2}})
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    with pytest.raises(ValueError, match=r"training must be one of .*, got 'some'"):
        replace(CARD, training="some")
    with pytest.raises(ValueError, match="the shape of its card, 3 x 17"):
        Classifier(nn.Flatten(), nn.Linear(16, 3), PREPROCESS, replace(CARD, feature_dim=17))
