"""Tests that random features have the arc-cosine kernel, and that exact deletion works for a head on them."""

from __future__ import annotations

import math
from contextlib import chdir
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.features.store import FeatureStore
from expunge.methods.fitting import fit
from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.random_features import RandomFeatures
from expunge.models.zoo import build
from expunge.system.files import write_manifest
from expunge.training.recipe import make_classifier
from tests.exact_workspace import inputs, params, training_rows, write_features


def test_products_approach_the_arc_cosine_kernel() -> None:
    """The kernel of degree 1 of Cho and Saul (2009) is `(sin t + (pi - t) cos t) / pi` for an angle t.

    It does not depend on the lengths.
    """
    z = torch.tensor([[1.0, 0.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 7.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    result = RandomFeatures(nn.Identity(), 3, 200_000, seed=1)(z)
    unit, drawn = result[:, :3], result[:, 3:]
    for row, angle in ((0, 0.0), (1, math.pi / 4), (2, math.pi / 2), (3, math.pi)):
        expected = (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
        assert abs(float(drawn[0] @ drawn[row]) - expected) < 0.01
        assert abs(float(unit[0] @ unit[row]) - math.cos(angle)) < 1e-6
    assert not result[4].any()  # a feature vector of zeros gives no NaN


def test_random_features_do_not_depend_on_the_training_seed_and_are_saved(tmp_path: Path) -> None:
    network = build("resnet-small", 4, (8, 8, 1), seed=3)
    save_file({k: v.clone() for k, v in network.state_dict().items()}, tmp_path / "public.safetensors")
    given = {"training": "ridge", "saw_forget_data": False, "checkpoint": tmp_path / "public.safetensors"}
    one, two = (build("resnet-small", 4, (8, 8, 1), seed=seed, random_features=50, **given) for seed in (1, 2))
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 1), dtype=np.uint8)
    with torch.no_grad():
        assert torch.equal(one.features(images), two.features(images)) and one.card == two.card
        dim = network.card.feature_dim
        assert one.features(images).shape == (5, dim + 50) and one.card.feature_dim == dim + 50
        z = network.eval().features(images)
        torch.testing.assert_close(one.features(images)[:, :dim], z / z.norm(dim=1, keepdim=True))
        (tmp_path / "model").mkdir()
        save_classifier(tmp_path / "model", one)
        write_manifest(tmp_path / "model", "test")
        assert torch.equal(load_classifier(tmp_path / "model").features(images), one.features(images))


def test_a_head_on_them_is_deleted_from_to_the_bit(tmp_path: Path) -> None:
    with chdir(tmp_path):
        prepare("digits", Path("data/dataset"), path=None, test_fraction=0.2, seed=0, raw_dir=Path("data/raw"))
        dataset = Dataset("data/dataset")
        network = build("resnet-small", 10, dataset.image_shape, seed=3)
        save_file({k: v.clone() for k, v in network.state_dict().items()}, "public.safetensors")
        params("ridge-random")
        config, rows = load_config(), training_rows()
        make_classifier(config, dataset, rows, 1, Path("models/original"), Path(".expunge"))
        write_features()
        removed = rows[5:600:30]
        unlearned = fit("exact", inputs(removed), {"exact": {}})
        assert unlearned.info["exact"]["holds"]
        store = FeatureStore("data/features/original")
        make_classifier(config, dataset, np.setdiff1d(rows, removed), 1, Path("models/fresh"), Path(".expunge"), store)
        fresh = load_classifier("models/fresh").head
        assert torch.equal(unlearned.head.weight, fresh.weight) and torch.equal(unlearned.head.bias, fresh.bias)
        assert unlearned.head.weight.shape == (10, network.card.feature_dim + 200)
