"""Tests of model families from other packages: params name them, and descriptions and served models their package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.families import family_of, package_of
from expunge.models.zoo import build
from expunge.system.errors import ConfigError
from expunge.system.files import write_manifest

FAMILY = """
from torch import nn
from expunge.models.families import Expects, Family

def make(detail, num_classes, size, channels, options):
    width = int(detail or 8)
    first = nn.Linear(size[0] * size[1] * channels, width)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(width, num_classes))

FAMILY = Family(lambda detail, shape, size: Expects(size or shape[:2]), make)
"""


@pytest.fixture
def mlp(declare) -> Path:
    folder = declare("models", "flat-mlp", "flat_mlp:FAMILY")
    (folder / "flat_mlp.py").write_text(FAMILY)
    return folder


@pytest.mark.parametrize(("name", "width"), [("flat-mlp", 8), ("flat-mlp:5", 5)])
def test_params_may_name_it_with_and_without_a_detail(mlp, name, width, tmp_path):
    result = build(name, 3, (6, 5, 1), seed=4)
    assert (result.card.name, result.card.feature_dim, result.card.num_classes) == (name, width, 3)
    save_classifier(tmp_path, result)
    write_manifest(tmp_path, "test")
    assert json.loads((tmp_path / "model.json").read_text())["package"] == "plugin_0 0.1.0"
    x = torch.randint(0, 256, (4, 6, 5, 1), dtype=torch.uint8)
    assert torch.equal(load_classifier(tmp_path)(x), result(x))


def test_served_models_require_its_package(mlp):
    from expunge.tracking.registry import requirements

    assert "plugin_0==0.1.0" in requirements("flat-mlp:5") and "plugin_0==0.1.0" in requirements("flat-mlp")
    assert not any("plugin_0" in line for line in requirements("resnet-small"))


def test_our_own_names_stay_ours(declare):
    declare("models", "resnet-small", "no_such_module:FAMILY")
    declare("models", "sentence", "no_such_module:FAMILY")
    assert package_of("resnet-small") is None and package_of("sentence:x") is None
    assert build("resnet-small", 3, (8, 8, 1)).card.feature_dim == 128


def test_what_cannot_be_used_is_named_with_its_package(declare):
    declare("models", "flat-mlp", "json:dumps")
    with pytest.raises(
        ConfigError, match=r"'flat-mlp' of plugin_0 0\.1\.0: json:dumps is no expunge\.models\.families"
    ):
        build("flat-mlp:5", 3, (6, 5, 1))


def test_an_unknown_model_is_answered_with_the_families_of_packages(mlp):
    with pytest.raises(ConfigError, match=r"unknown model 'flat-mpl'; use resnet-small.*; flat-mlp of plugin_0"):
        family_of("flat-mpl")
