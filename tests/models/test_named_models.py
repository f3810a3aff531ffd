"""Tests that named models with random weights are split at their head, and that both halves give the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expunge.models.zoo import build
from expunge.system.vision_imports import import_vision

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)


def theirs(name: str) -> torch.nn.Module:
    """Return the whole model as its own package makes it, with random weights."""
    source, _, detail = name.partition(":")
    torch.manual_seed(1)
    if source == "timm":
        return import_vision("timm").create_model(detail, num_classes=4).eval()
    return import_vision("torchvision.models").get_model(detail, weights=None, num_classes=4).eval()


CASES = [
    ("timm:resnet18", 512, "fc"),
    ("torchvision:resnet18", 512, "fc"),
    pytest.param("timm:vit_tiny_patch16_224", 192, "head", marks=pytest.mark.slow),
    pytest.param("timm:swin_tiny_patch4_window7_224", 768, "head.fc", marks=pytest.mark.slow),
    pytest.param("torchvision:swin_t", 768, "head", marks=pytest.mark.slow),
    # Heads of several layers are split at their last linear layer, so the hidden layer belongs to the backbone.
    ("torchvision:mobilenet_v3_small", 1024, "classifier.3"),
    pytest.param("torchvision:vgg11", 4096, "classifier.6", marks=pytest.mark.slow),
    pytest.param("timm:deit_tiny_patch16_224", 192, "head", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "dim", "head"), CASES)
def test_the_halves_answer_as_the_models_own_package(name: str, dim: int, head: str, tmp_path: Path) -> None:
    whole = theirs(name)
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "w.safetensors")
    model = build(name, 4, (40, 40, 3), training="none", checkpoint=tmp_path / "w.safetensors")
    assert (model.card.feature_dim, model.card.head) == (dim, head)
    with torch.no_grad():
        x = model.preprocess(IMAGES)
        z = model.backbone(x)
        expected = whole(x)
        torch.testing.assert_close(model.head(z), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(z @ model.head.weight.T + model.head.bias, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0


def small_transformer(kind: str) -> tuple[torch.nn.Module, int, str]:
    """Return a small classifier of transformers with random weights, its width and the name of its head."""
    t = import_vision("transformers")
    torch.manual_seed(2)
    if kind == "resnet":
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
        return t.ResNetForImageClassification(config), 16, "classifier.1"
    if kind == "swin":
        config = t.SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=4
        )
        return t.SwinForImageClassification(config), 16, "classifier"
    config = t.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
    )
    return t.ViTForImageClassification(config), 16, "classifier"


@pytest.mark.parametrize("kind", ["resnet", "swin", "vit"])
def test_transformers_directories_are_split_at_their_head(kind: str, tmp_path: Path) -> None:
    whole, dim, head = small_transformer(kind)
    whole.eval().save_pretrained(tmp_path)
    model = build(f"transformers:{tmp_path}", 4, (40, 40, 3), training="none", image_size=32)
    assert (model.card.feature_dim, model.card.head) == (dim, f"model.{head}")
    with torch.no_grad():
        x = model.preprocess(IMAGES)
        torch.testing.assert_close(model(x), whole(pixel_values=x).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "layer", "dim"),
    [("resnet", "resnet.encoder.stages.0", 8), ("swin", "swin.layernorm", 16), ("vit", "vit.layernorm", 16)],
)
def test_layers_of_transformers_models_go_by_their_own_names(kind: str, layer: str, dim: int, tmp_path: Path) -> None:
    whole, _, _ = small_transformer(kind)
    whole.eval().save_pretrained(tmp_path)
    model = build(f"transformers:{tmp_path}", 4, (40, 40, 3), training="head", image_size=32, layers=[layer])
    named = {}
    whole.get_submodule(layer).register_forward_hook(lambda _m, _x, out: named.update(out=out))
    with torch.no_grad():
        x = model.preprocess(IMAGES)
        whole(pixel_values=x)
        out = named["out"]
        expected = out.mean((2, 3)) if out.ndim == 4 else out.mean(1)
        assert expected.shape == (2, dim)
        torch.testing.assert_close(model.features(IMAGES), expected, rtol=1e-4, atol=1e-5)
