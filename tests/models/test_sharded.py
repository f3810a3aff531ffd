"""Tests of classifiers with shards: they answer with the mean of log-probabilities, and are saved and exported."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.classifier import Classifier
from expunge.models.cuts import split_at_cut
from expunge.models.lower import lower_digest
from expunge.models.sharded import average, core_with_shards, shard_shares, sharded, unsharded
from expunge.models.zoo import build
from expunge.serving.export import TOLERANCE, export_onnx, export_torch
from expunge.serving.servable import Contract, Servable
from expunge.system.errors import ConfigError
from expunge.system.files import write_manifest

sys.path.insert(0, str(Path(__file__).parent))
from texts import write_encoder

CUT, SHARDS = "stage1", 3
ABOVE = {"recipe": {"cut": CUT}, "lower_digest": "sha256:0", "shards": {"count": SHARDS}}


def differently(classifier: Classifier) -> Classifier:
    """Change the weights of each shard differently, as training would, and return the classifier."""
    core = core_with_shards(classifier)
    assert core is not None
    generator = torch.Generator().manual_seed(2)
    for parameter in core.uppers.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return classifier


def pictures() -> tuple[Classifier, Classifier, np.ndarray]:
    """Return the base classifier, a classifier with shards, and pictures."""
    base = build("resnet-small", 4, (8, 8, 1), training="full", seed=3)
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 1), dtype=np.uint8)
    return base, differently(sharded(base, CUT, SHARDS, replace(base.card, above=ABOVE))), images


@torch.no_grad()
def one_by_one(base: Classifier, made: Classifier, cut: str, inputs: object) -> list[torch.Tensor]:
    """Return the logits of each shard, computed by a whole network with the shard's weights."""
    core, found = core_with_shards(made), []
    assert core is not None
    for upper in core.uppers:
        alone = copy.deepcopy(base)
        split_at_cut(alone, cut).tail.load_state_dict(upper.tail.state_dict())
        alone.head.load_state_dict(upper.head.state_dict())
        found.append(alone(inputs))
    return found


@torch.no_grad()
def test_the_answer_is_the_mean_of_the_log_probabilities_of_networks_alone() -> None:
    base, classifier, images = pictures()
    alone = one_by_one(base, classifier, CUT, images)
    assert not torch.allclose(alone[0], alone[1])
    z = classifier.features(images)
    assert torch.equal(z, torch.cat([torch.log_softmax(logits, 1) for logits in alone], 1))
    mean = torch.stack([torch.log_softmax(logits.double(), 1) for logits in alone]).mean(0)
    torch.testing.assert_close(classifier(images).double(), mean, rtol=1e-5, atol=1e-5)
    assert classifier.card.feature_dim == 12 and unsharded(base) is base
    with pytest.raises(ConfigError, match="has 3 shards"):
        split_at_cut(classifier, CUT)
    # The shared layers are those of the base, and exist only once.
    lower = {lower_digest(split_at_cut(m, CUT)) for m in (base, unsharded(classifier))}
    assert len(lower) == 1
    assert not any("stem" in name for name, _ in core_with_shards(classifier).uppers.named_parameters())


@torch.no_grad()
def test_texts_of_different_lengths_get_the_mean_of_networks_alone(tmp_path: Path) -> None:
    encoder, cut = write_encoder(tmp_path / "encoder"), "encoder.layer.0"
    base = build(f"sentence:{encoder}", 2, None, training="head", saw_forget_data=False)
    above = {**ABOVE, "recipe": {"cut": cut}}
    classifier = differently(sharded(base, cut, SHARDS, replace(base.card, above=above)))
    texts = ["cat", "the dog sat on the moon", "rose bank rate"]
    alone = torch.stack([torch.log_softmax(logits, 1) for logits in one_by_one(base, classifier, cut, texts)])
    torch.testing.assert_close(classifier(texts), alone.mean(0))
    save_classifier(tmp_path, classifier)
    for inner in (tmp_path / "encoder").iterdir():
        inner.unlink()
    (tmp_path / "encoder").rmdir()
    write_manifest(tmp_path, "test")
    assert torch.equal(load_classifier(tmp_path)(texts), classifier(texts))


@pytest.mark.slow
@torch.no_grad()
def test_a_sharded_model_is_saved_copied_and_exported(tmp_path: Path) -> None:
    _, classifier, images = pictures()
    (tmp_path / "model").mkdir()
    save_classifier(tmp_path / "model", classifier)
    write_manifest(tmp_path / "model", "test")
    loaded, copied = load_classifier(tmp_path / "model"), copy.deepcopy(classifier)
    assert torch.equal(loaded(images), classifier(images)) and torch.equal(copied(images), classifier(images))
    assert loaded.card == classifier.card
    core_with_shards(copied).uppers[0].head.bias.data += 1.0
    assert torch.equal(loaded(images), classifier(images)) and not torch.equal(copied(images), classifier(images))
    served = Servable(loaded, None, Contract((8, 8, 1), tuple("abcd")))
    assert export_torch(served, tmp_path / "model.pt2", {}) <= TOLERANCE
    # The exported program lacks the upper part of the public network, because no answer depends on it.
    graph = torch.export.load(tmp_path / "model.pt2").graph
    nodes = [n for n in graph.nodes if n.op == "call_function" and "conv" in str(n.target)]
    base_convolutions = sum(isinstance(m, nn.Conv2d) for m in core_with_shards(loaded).base.modules())
    above = sum(isinstance(m, nn.Conv2d) for m in core_with_shards(loaded).uppers[0].modules())
    assert len(nodes) == base_convolutions - above + SHARDS * above


@pytest.mark.slow
def test_a_sharded_model_is_exported_as_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, classifier, _ = pictures()
    served = Servable(classifier, None, Contract((8, 8, 1), tuple("abcd")))
    assert export_onnx(served, tmp_path / "model.onnx", {}) <= TOLERANCE


def test_the_mean_for_a_class_is_over_shards_that_have_it() -> None:
    counts = np.array([[5, 0, 3, 0], [2, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])  # the third has too few rows to train
    shares = shard_shares(counts)
    assert shares[:, 0].tolist() == [0.5, 0.5, 0, 0] and shares[:, 1].tolist() == [0, 1, 0, 0]
    assert shares[:, 2].tolist() == [1, 0, 0, 0] and shares[:, 3].tolist() == [0.5, 0.5, 0, 0]  # no shard has class 3
    weight, bias = average(counts)
    z = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("nsc,sc->nc", z.reshape(7, 4, 4), torch.from_numpy(shares))
    torch.testing.assert_close(z @ weight.T + bias, expected)
