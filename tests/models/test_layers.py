"""Tests of features from several layers of a backbone, against the layers' own outputs averaged over positions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from expunge.models.checkpoint import backbone_digest, load_classifier, save_classifier
from expunge.models.layers import Layers, masked_mean
from expunge.models.zoo import build
from expunge.system.errors import CheckpointError, ConfigError
from expunge.system.files import staged_dir, write_json, write_manifest
from expunge.system.vision_imports import import_vision

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
BLOCKS = ("_blocks.4", "_blocks.10", "_blocks.15")


@pytest.fixture(scope="module")
def lite0():
    return build("efficientnet-lite0", 10, (64, 64, 3), training="head", saw_forget_data=False, layers=BLOCKS)


def test_three_blocks_of_efficientnet_are_472_features_averaged_over_space(lite0):
    assert (lite0.card.feature_dim, lite0.head.in_features, lite0.card.layers) == (472, 472, BLOCKS)
    plain = build("efficientnet-lite0", 10, (64, 64, 3), training="head", saw_forget_data=False)
    with torch.no_grad():
        x = plain.preprocess(IMAGES)
        # The reference runs the package's own stages one after the other.
        net = plain.backbone
        y = net._swish(net._bn0(net._conv_stem(x)))
        parts = []
        for i, block in enumerate(net._blocks):
            y = block(y)
            if f"_blocks.{i}" in BLOCKS:
                parts.append(y.mean((2, 3)))
        torch.testing.assert_close(lite0.features(IMAGES), torch.cat(parts, 1), rtol=1e-4, atol=1e-5)
        assert [p.shape[1] for p in parts] == [40, 112, 320]


def test_layers_survive_a_round_trip_and_a_copy(lite0, tmp_path):
    with torch.no_grad():
        expected = lite0(IMAGES)
    with staged_dir(tmp_path / "m") as d:
        save_classifier(d, lite0)
        write_manifest(d, "test")
    back = load_classifier(tmp_path / "m")
    twin = copy.deepcopy(lite0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        assert torch.equal(back(IMAGES), expected)
        assert not torch.allclose(twin(IMAGES), expected)  # the copy's hooks are on its own modules
        assert torch.equal(lite0(IMAGES), expected)


def test_other_layers_are_another_backbone(lite0):
    digests = {
        backbone_digest(
            build("efficientnet-lite0", 10, (64, 64, 3), training="head", saw_forget_data=False, layers=layers)
        )
        for layers in (BLOCKS, BLOCKS[:2], BLOCKS[::-1], ("penultimate",))
    }
    assert len(digests) == 4 and backbone_digest(lite0) in digests


def test_penultimate_features_may_stand_beside_those_of_a_stage(tmp_path):
    torch.manual_seed(0)
    plain = build("resnet-small", 4, (8, 8, 1), seed=3)
    save_file(
        {f"backbone.{k}": v for k, v in plain.backbone.state_dict().items()}
        | {f"head.{k}": v for k, v in plain.head.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    both = build(
        "resnet-small",
        4,
        (8, 8, 1),
        training="head",
        checkpoint=tmp_path / "w.safetensors",
        layers=["stage1", "penultimate"],
    )
    images = IMAGES[:, :8, :8, :1]
    with torch.no_grad():
        x = plain.preprocess(images)
        expected = torch.cat([plain.backbone.below(x, "stage1").mean((2, 3)), plain.backbone(x)], 1)
        torch.testing.assert_close(both.features(images), expected)


class Swinlike(nn.Module):
    """Computes maps with channels last, then tokens, then a vector, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Linear(3, 5)
        self.tokens = nn.Flatten(1, 2)
        self.pair = Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pair(self.tokens(self.maps(x.permute(0, 2, 3, 1))))[0].mean(1)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return 2 * x, None


def test_maps_with_channels_last_tokens_and_tuples_are_averaged_over_positions():
    model, x = Swinlike(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = Layers(model, ["maps", "tokens", "pair", "penultimate"], x)(x)
        mean = model.maps(x.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(z, torch.cat([mean, mean, 2 * mean, 2 * mean], 1))


def test_the_masked_mean_leaves_padding_out():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    inside = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(masked_mean(hidden, inside), torch.tensor([[1.0, 2.0], [6.0, 7.0]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "dim"),
    [("timm:swin_tiny_patch4_window7_224", "layers.1", 192), ("timm:vit_tiny_patch16_224", "blocks.3", 192)],
)
def test_layers_of_transformers_have_their_width(name: str, layer: str, dim: int, tmp_path: Path) -> None:
    theirs = import_vision("timm").create_model(name.partition(":")[2])
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "w.safetensors")
    model = build(name, 4, (64, 64, 3), training="head", checkpoint=tmp_path / "w.safetensors", layers=[layer])
    assert model.card.feature_dim == dim
    with torch.no_grad():
        z = model.features(IMAGES[:2])
        assert z.shape == (2, dim) and z.std(0).min() > 0


def test_a_layer_that_is_not_there_is_named_with_those_alike():
    with pytest.raises(ConfigError, match=r"no module '_blocks\.16'; similar modules: .*_blocks\.1"):
        build("efficientnet-lite0", 10, (64, 64, 3), training="head", saw_forget_data=False, layers=["_blocks.16"])
    with pytest.raises(ConfigError, match="returns shape"):
        Layers(nn.Sequential(nn.Flatten(0)), ["0"], torch.zeros(2, 3, 4, 4))


def test_weights_that_do_not_fit_the_layers_are_refused(lite0, tmp_path):
    with staged_dir(tmp_path / "m") as d:
        description = save_classifier(d, lite0)
        description["card"]["layers"] = list(BLOCKS[:2])
        write_json(d / "model.json", description)
        write_manifest(d, "test")
    with pytest.raises((CheckpointError, ValueError), match=r"its tensors do not fit this|the head must have"):
        load_classifier(tmp_path / "m")
