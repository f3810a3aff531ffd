"""Test `check_model` with the families in `broken_families`: a good one passes, and errors name the broken promise."""

from __future__ import annotations

import pytest

from expunge.testing import check_model

MODULE = "tests.testing.broken_families"


def test_a_good_family_passes_for_grey_and_colour(declare):
    declare("models", "mine", f"{MODULE}:GOOD")
    assert check_model("mine").card.feature_dim == 10
    assert check_model("mine:any detail", (5, 7, 3)).card.num_classes == 3


def test_a_built_in_family_keeps_the_contract():
    assert check_model("resnet-small", (8, 8, 1)).card.name == "resnet-small"


BROKEN = {
    "DROPOUT": "two passes in evaluation mode gave different logits",
    "NOISE": "mine cannot be built: ConfigError: model.head: applying 'head' to its input does not reproduce",
    "IN_PLACE": "a pass changes its input in place",
    "COUNTS": "a pass in evaluation mode changes backbone.passes",
    "BATCH": "the logits of a row depend on the rows beside it",
    "NOT_FINITE": "features are not finite",
    "DOUBLE": "features are torch.float64, not float32",
    "FROZEN": "parameters that ask for no gradient: backbone.first.weight",
    "DETACHED": "parameters without a gradient in training: backbone.first.weight",
    "NO_GRAD": "parameters without a gradient in training: backbone.first.weight",
    "ALWAYS_GRAD": "features carry a gradient under torch.no_grad",
    "UNUSED": "parameters without a gradient in training: backbone.spare.weight",
    "INFINITE": "gradients that are not finite: backbone.first.weight",
    "RANDOM_NUMBER": "loaded from its files, the model gives other logits",
    "LOADS": "saved again after loading, the files differ in",
    "NO_HEAD": "mine cannot be built: ",
    "CHANCE": "the same seed gave other weights",
    "SAME": "another seed gave the same weights",
    "THREE": "mine cannot be built for 5 classes",
    "OPTIONS": "the model cannot be saved and loaded: TypeError",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_family_gets_the_promise_that_it_broke(declare, name):
    declare("models", "mine", f"{MODULE}:{name}")
    with pytest.raises(AssertionError) as caught:
        check_model("mine")
    assert BROKEN[name] in str(caught.value)


def test_a_family_that_is_not_installed_is_reported():
    with pytest.raises(AssertionError, match=r"mine cannot be built: ConfigError: model\.name: unknown model 'mine'"):
        check_model("mine")
