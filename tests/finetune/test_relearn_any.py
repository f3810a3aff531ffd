"""Tests of relearning above a cut in models of other packages.

It starts from the recorded public weights, or else from weights as the package draws them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.finetune.cut import fetch_activations
from expunge.finetune.initial_weights import fresh_above
from expunge.finetune.relearn import Relearn, logits_above
from expunge.models.cuts import split_at_cut
from expunge.models.zoo import build
from expunge.system.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from texts import write_encoder

RNG = np.random.default_rng(0)
LABELS = np.arange(24, dtype=np.int32) % 3
IMAGES = (RNG.integers(0, 90, (24, 64, 64, 3)) + 80 * LABELS[:, None, None, None]).astype(np.uint8)
TEXTS = ["the cat sat on the mat", "stock rose", "the bank rate fell to the moon !"] * 8


@pytest.mark.slow
def test_relearning_starts_from_the_public_weights_and_learns() -> None:
    model = build("efficientnet-lite0", 3, (64, 64, 3), public=True)
    assert model.card.weights is not None and model.card.weights["source"] == "efficientnet-lite0"
    public = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.mul_(1.01)  # stands in for training on the rows
    above = set(split_at_cut(model, "_blocks.12").lying_above.parameters)
    start = fresh_above(model, "_blocks.12", seed=0)
    for k, p in start.backbone.named_parameters():
        assert torch.equal(p, public[k] if k in above else dict(model.backbone.named_parameters())[k]), k
    a = fetch_activations(model, IMAGES, "_blocks.12", batch_size=10)
    new = Relearn(cut="_blocks.12", epochs=6, batch_size=8, lr=0.05, targets="labels", precision="fp32")
    new.fit(model, a, LABELS)
    assert new.history_[-1]["loss"] < 0.5 * new.history_[0]["loss"]
    fresh = fresh_above(model, "_blocks.12", seed=0, start="fresh").backbone.state_dict()
    again = fresh_above(model, "_blocks.12", seed=0, start="fresh").backbone.state_dict()
    weights = [k for k in above if fresh[k].ndim > 1]
    assert weights and all(torch.equal(fresh[k], again[k]) and not torch.equal(fresh[k], public[k]) for k in weights)


def test_texts_are_relearned_above_an_encoder_layer(tmp_path: Path) -> None:
    model = build(f"sentence:{write_encoder(tmp_path)}", 3, None, training="head", public=True)
    a = fetch_activations(model, TEXTS, "encoder.layer.0", dtype="float32", batch_size=7)
    with torch.no_grad():
        expected = model(TEXTS)
    got = logits_above(model, a, "encoder.layer.0", torch.arange(len(TEXTS)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    new = Relearn(
        cut="encoder.layer.0", epochs=10, batch_size=8, lr=0.01, targets="labels", precision="fp32", optimizer="adamw"
    ).fit(model, a, LABELS)
    assert new.history_[-1]["accuracy"] == 1.0


def test_public_needs_weights() -> None:
    with pytest.raises(ConfigError, match=r"model\.weights is public, but timm:resnet18 has no weights of its own"):
        build("timm:resnet18", 3, (32, 32, 3), public=True)
    with pytest.raises(ConfigError, match="records no public weights"):
        fresh_above(build("resnet-small", 3, (16, 16, 3)), "stage1", 0, start="public")
