"""Tests of the architectures from papers: number of parameters, width of features, and resolution before pooling."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from expunge.models import published
from expunge.models.zoo import build

HAS_VISION = importlib.util.find_spec("torchvision") is not None


@pytest.mark.parametrize(
    ("name", "parameters", "width"),
    [("resnet18", 11_173_962, 512), ("resnet34", 21_282_122, 512), ("wrn_28_10", 36_479_194, 640)],
)
def test_published_networks_have_their_number_of_parameters_and_features(
    name: str, parameters: int, width: int
) -> None:
    if name.startswith("resnet") and not HAS_VISION:
        pytest.skip("torchvision is not installed")
    model = getattr(published, name)(num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    classifier = build(f"expunge.models.published:{name}", 10, (32, 32, 3))
    assert classifier.card.feature_dim == width


@pytest.mark.parametrize(("name", "last"), [("resnet18", "layer4"), ("wrn_28_10", "stage3")])
def test_the_stem_for_small_pictures_keeps_the_resolution(name: str, last: str) -> None:
    """Of 32 pixels the last stage leaves 4 (ResNet halves them three times) or 8 (WRN halves them twice)."""
    if name.startswith("resnet") and not HAS_VISION:
        pytest.skip("torchvision is not installed")
    model = getattr(published, name)(num_classes=10).eval()
    seen: list[torch.Size] = []
    getattr(model, last).register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert seen[0][2:] == {"layer4": (4, 4), "stage3": (8, 8)}[last]
