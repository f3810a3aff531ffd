"""Passes and batch sizes that follow the model's own recipe, in `relearn` and in the baseline at the same cost."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from expunge.finetune.budget import LARGEST_BATCH, STEPS, batch_size_of, passes_over
from expunge.finetune.cut import fetch_activations
from expunge.finetune.relearn import Relearn
from expunge.finetune.short_retrain import ShortRetrain
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.cut_costs import share_above
from expunge.models.zoo import build
from expunge.reproduce import costs

CARD = ModelCard("flat", 3, 9, "full", True)
ROWS = np.arange(200)
IMAGES = np.random.default_rng(0).integers(0, 255, (200, 8, 8, 1), dtype=np.uint8)
LABELS = (ROWS % 4).astype(np.int32)


def card(**recipe: Any) -> ModelCard:
    return dataclasses.replace(CARD, recipe={"optimizer": "sgd", "mean_lr": 0.02, **recipe})


@pytest.fixture(scope="module")
def original() -> Classifier:
    model = build("resnet-small", 4, (8, 8, 1), seed=0)
    recipe = {"optimizer": "sgd", "mean_lr": 0.02, "passes": 3, "batch_size": 40}
    model.card = dataclasses.replace(model.card, recipe=recipe)
    return model.eval()


def test_the_batch_is_the_recipes_unless_that_is_large() -> None:
    assert [batch_size_of(card(batch_size=b)) for b in (32, 128, 256)] == [32, 128, 128]
    assert batch_size_of(CARD) == 128


def test_one_pass_is_enough_where_it_makes_enough_steps() -> None:
    assert passes_over(card(passes=3), 54_000, 128) == 1.0
    assert passes_over(card(passes=3), 128 * STEPS, 128) == 1.0


def test_few_rows_get_more_passes_but_not_more_than_the_model_had() -> None:
    assert passes_over(card(passes=30), 5_056, 64) == pytest.approx(STEPS / 79)
    assert passes_over(card(passes=3), 5_056, 64) == 3.0
    assert passes_over(CARD, 100, 128) == 10.0  # no training is recorded


def test_the_estimate_of_costs_counts_with_the_same_numbers() -> None:
    assert (costs.RELEARN_STEPS, costs.RELEARN_BATCH) == (STEPS, LARGEST_BATCH)


def test_training_above_a_cut_is_a_recipe_too() -> None:
    above = {"recipe": {"optimizer": "adamw", "lr": 1e-3, "epochs": 2.0, "batch_size": 16}}
    trained = dataclasses.replace(CARD, above=above)
    assert (batch_size_of(trained), passes_over(trained, 200, 16)) == (16, 2.0)


def test_relearning_without_a_number_of_passes_takes_those(original: Classifier) -> None:
    activations = fetch_activations(original, IMAGES, "stage1")

    def weights(**settings: Any) -> str:
        return digest_of_tensors(Relearn(**settings).fit(original, activations, LABELS).classifier_.state_dict())

    own, given = Relearn().fit(original, activations, LABELS), weights(epochs=3.0, batch_size=40)
    assert len(own.history_) == 3 and digest_of_tensors(own.classifier_.state_dict()) == given
    assert weights(budget=0.2) == weights(epochs=0.6, batch_size=40) != given


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="budget must be above 0, got 0"):
        Relearn(budget=0.0)


def test_the_baseline_has_the_same_cost(original: Classifier) -> None:
    own = ShortRetrain(cut="stage1").fit(original, IMAGES, LABELS, ROWS, None)
    assert own.passes_ == pytest.approx(3.0 * share_above(original, "stage1"))
    given = ShortRetrain(cut="stage1", epochs=3.0, batch_size=40).fit(original, IMAGES, LABELS, ROWS, None)
    assert digest_of_tensors(own.classifier_.state_dict()) == digest_of_tensors(given.classifier_.state_dict())
