"""Tests that the linear head of a model is found, and that the model is split there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.models.heads import find_head, split_at
from expunge.system.errors import ConfigError
from tests.models.user_models import Deep, PerPatch, Scaled

PIXELS = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_the_last_of_several_linear_layers_is_found() -> None:
    assert find_head(Deep(4), PIXELS) == "classifier.3"


@pytest.mark.parametrize("bias", [True, False])
def test_both_halves_give_the_whole_again(bias: bool) -> None:
    model = Deep(4, bias=bias).eval()
    with torch.no_grad():
        expected = model(PIXELS)
        backbone, head = split_at(model, find_head(model, PIXELS), PIXELS)
        z = backbone(PIXELS)
        assert z.shape == (4, 5) and z.min() == 0  # features are taken after the head's first layer and ReLU
        assert head.bias is not None and head.bias.any() == bias
        torch.testing.assert_close(head(z), expected)


def test_naming_the_head_checks_it() -> None:
    assert find_head(Deep(4), PIXELS, "classifier.3") == "classifier.3"
    with pytest.raises(ConfigError, match=r"the output of 'gate' is not the output of the model"):
        find_head(Deep(4), PIXELS, "gate")
    with pytest.raises(ConfigError, match=r"'conv' is not a linear layer.*classifier\.3"):
        find_head(Deep(4), PIXELS, "conv")


def test_a_model_without_a_linear_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"none of its linear layers gives the model's output.*classifier\.3"):
        find_head(Scaled(4), PIXELS)
    with pytest.raises(ConfigError, match=r"no linear head.*its linear layers are none"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 12), nn.Flatten()), PIXELS)


def test_a_layer_that_runs_per_position_is_no_head() -> None:
    with pytest.raises(ConfigError, match="no linear head"):
        find_head(PerPatch(4), PIXELS)
    with pytest.raises(ConfigError, match=r"does not reproduce the model's output|one vector per image"):
        split_at(nn.Sequential(nn.Flatten(2), nn.Linear(144, 2)), "1", PIXELS)


def test_finding_leaves_no_hooks_behind() -> None:
    model = Deep(4)
    find_head(model, PIXELS)
    assert not any(m._forward_hooks for m in model.modules())
