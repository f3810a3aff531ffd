"""Tests of relearning above a cut on 8 x 8 digits.

The references are autograd and a softmax by hand, and some tensors must not move.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from expunge.finetune.cut import fetch_activations, rows_of
from expunge.finetune.initial_weights import fresh_above
from expunge.finetune.relearn import Relearn, logits_above, rate, teacher_probabilities
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.cuts import cut_names
from expunge.models.preprocess import Preprocess
from expunge.models.zoo import build
from expunge.system.errors import CollapseError, ConfigError, DataError
from expunge.training.trainer import train

DIGITS = load_digits()
IMAGES = (DIGITS.images * 15.9).astype(np.uint8)
LABELS = DIGITS.target.astype(np.int32)
TRAIN, TEST = np.arange(1400), np.arange(1400, len(LABELS))
FORGOTTEN = 5
RETAINED = TRAIN[LABELS[TRAIN] != FORGOTTEN]
QUICK: dict[str, Any] = {"epochs": 1.0, "batch_size": 64, "precision": "fp32"}


@pytest.fixture(scope="module")
def original() -> Classifier:
    model = build("resnet-small", 10, (8, 8, 1), seed=3)
    recipe: dict[str, Any] = {"epochs": 4, "batch_size": 64, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    train(model, IMAGES[TRAIN], LABELS[TRAIN], **recipe, precision="fp32", seed=3)
    return model


@pytest.fixture(scope="module")
def activations(original: Classifier) -> np.ndarray:
    return fetch_activations(original, IMAGES, "stage1")


def digest(model: Classifier) -> str:
    return digest_of_tensors(model.state_dict())


def predictions(model: Classifier, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(IMAGES[rows]).argmax(1).numpy()


@pytest.mark.parametrize("cut", ["stem", "stage1", "stage2"])
def test_stored_activations_give_the_logits_of_the_original(original: Classifier, cut: str) -> None:
    rows = torch.from_numpy(TEST)
    with torch.no_grad():
        expected = original(IMAGES[TEST])
    full = fetch_activations(original, IMAGES, cut, dtype="float32", batch_size=177)
    torch.testing.assert_close(logits_above(original, full, cut, rows), expected, rtol=1e-5, atol=1e-5)
    half = logits_above(original, fetch_activations(original, IMAGES, cut), cut, rows)
    torch.testing.assert_close(half, expected, rtol=0, atol=0.02)
    assert (half - expected).abs().max() > 0


def test_activations_on_disk_equal_those_in_memory(
    original: Classifier, activations: np.ndarray, tmp_path: Path
) -> None:
    written = fetch_activations(original, IMAGES, "stage1", tmp_path / "a.npy", batch_size=500)
    assert isinstance(written, np.memmap) and written.dtype == np.float16 and written.shape == (len(IMAGES), 8, 8, 32)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), activations)
    memory = Relearn(**QUICK).fit(original, activations, LABELS, RETAINED).classifier_
    disk = Relearn(**QUICK).fit(original, np.load(tmp_path / "a.npy", mmap_mode="r"), LABELS, RETAINED).classifier_
    assert digest(memory) == digest(disk)


@pytest.mark.parametrize("cut", ["stem", "stage1", "stage2"])
def test_all_weights_above_the_cut_change_and_none_below_it(original: Classifier, cut: str) -> None:
    before = {k: v.clone() for k, v in original.state_dict().items()}
    new = Relearn(cut=cut, **QUICK).fit(original, fetch_activations(original, IMAGES, cut), LABELS, RETAINED)
    retained = original.backbone.stages[: original.backbone.stages.index(cut) + 1]
    for name, tensor in new.classifier_.state_dict().items():
        assert torch.equal(original.state_dict()[name], before[name]), name
        below = name.startswith(tuple(f"backbone.{stage}." for stage in retained))
        assert torch.equal(tensor, before[name]) == below, name
    assert not new.classifier_.training


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["labels", "original"])
def test_a_relearned_model_forgets_the_class_and_keeps_the_others(
    original: Classifier, activations: np.ndarray, targets: str
) -> None:
    assert (predictions(original, TRAIN) == LABELS[TRAIN]).mean() > 0.97
    new = Relearn(epochs=6.0, batch_size=64, targets=targets, precision="bf16").fit(
        original, activations, LABELS, RETAINED
    )
    assert (predictions(new.classifier_, np.flatnonzero(LABELS == FORGOTTEN)) != FORGOTTEN).all()
    others = TEST[LABELS[TEST] != FORGOTTEN]
    assert (predictions(new.classifier_, others) == LABELS[others]).mean() > 0.9
    assert [h["pass"] for h in new.history_] == [1, 2, 3, 4, 5, 6]
    assert new.history_[-1]["loss"] < 0.5 * new.history_[0]["loss"]


def test_forgotten_rows_do_not_influence_the_result(original: Classifier, activations: np.ndarray) -> None:
    poisoned, labels = activations.copy(), LABELS.copy()
    others = np.setdiff1d(np.arange(len(LABELS)), RETAINED)
    poisoned[others], labels[others] = np.nan, -7
    for targets in ("labels", "original"):
        clean = Relearn(targets=targets, **QUICK).fit(original, activations, LABELS, RETAINED)
        blind = Relearn(targets=targets, **QUICK).fit(original, poisoned, labels, RETAINED)
        alone = Relearn(targets=targets, **QUICK).fit(original, activations[RETAINED], LABELS[RETAINED])
        assert digest(clean.classifier_) == digest(blind.classifier_) == digest(alone.classifier_)


def test_the_result_depends_on_the_seed_and_not_on_the_global_generator(
    original: Classifier, activations: np.ndarray
) -> None:
    torch.manual_seed(1)
    one = Relearn(seed=4, **QUICK).fit(original, activations, LABELS, RETAINED)
    drawn = torch.rand(3)
    two = Relearn(**one.get_params()).fit(original, activations, LABELS, RETAINED)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn), "the global generator is left where it was"
    assert digest(one.classifier_) == digest(two.classifier_)
    other = Relearn(seed=5, **QUICK).fit(original, activations, LABELS, RETAINED)
    assert digest(one.classifier_) != digest(other.classifier_)


def test_logits_that_are_given_are_used_as_computed_ones_would_be(
    original: Classifier, activations: np.ndarray
) -> None:
    logits = logits_above(original, activations, "stage1", torch.from_numpy(RETAINED))
    given = Relearn(**QUICK).fit(original, activations, LABELS, RETAINED, logits=logits)
    computed = Relearn(**QUICK).fit(original, activations, LABELS, RETAINED)
    assert digest(given.classifier_) == digest(computed.classifier_)
    others = Relearn(**QUICK).fit(original, activations, LABELS, RETAINED, logits=logits.roll(1, dims=1))
    assert digest(others.classifier_) != digest(given.classifier_)


def test_one_step_is_nesterov_sgd_from_the_fresh_start(original: Classifier, activations: np.ndarray) -> None:
    """The first update of a parameter p is -lr (1 + momentum) (gradient + decay p). Only weights are decayed."""
    n = len(RETAINED)
    lr, momentum, decay = 0.03, 0.8, 0.01
    new = Relearn(
        epochs=1.0, batch_size=n, lr=lr, momentum=momentum, weight_decay=decay, targets="labels", precision="fp32"
    ).fit(original, activations, LABELS, RETAINED)
    start = fresh_above(original, "stage1", seed=0)
    start.backbone.stage2.train(), start.backbone.stage3.train()
    a = rows_of(activations, torch.from_numpy(RETAINED)).float()
    loss = F.cross_entropy(start.head(start.backbone.above(a, "stage1")), torch.from_numpy(LABELS[RETAINED]).long())
    loss.backward()
    moved = dict(new.classifier_.named_parameters())
    for name, p in start.named_parameters():
        if name.startswith(("backbone.stem", "backbone.stage1")):
            continue
        gradient = p.grad + (decay * p if p.ndim > 1 else 0)
        torch.testing.assert_close(moved[name], p - lr * (1 + momentum) * gradient, rtol=1e-4, atol=1e-5)


def test_teacher_probabilities_are_the_softmax_over_retained_classes() -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0, 0.5], [0.0, -3.0, 4.0, 8.0]])
    p = teacher_probabilities(logits, torch.tensor([0, 2]))
    e = np.exp(logits.numpy()[:, [0, 2]].astype(np.float64))
    np.testing.assert_allclose(p[:, [0, 2]], e / e.sum(1, keepdims=True), rtol=1e-6)
    assert (p[:, [1, 3]] == 0).all()


def test_the_learning_rate_rises_and_falls_linearly() -> None:
    rates = [rate(step, 100, 2.0) for step in range(100)]
    np.testing.assert_allclose(rates[:15], 2.0 * np.arange(1, 16) / 15)
    np.testing.assert_allclose(rates[15:], 2.0 * (1 - np.arange(85) / 85))
    assert rate(0, 1, 2.0) == 2.0


def test_a_fraction_of_a_pass_is_that_many_steps(original: Classifier, activations: np.ndarray) -> None:
    new = Relearn(epochs=1.5, batch_size=100, precision="fp32").fit(original, activations, LABELS, RETAINED[:800])
    assert len(new.history_) == 2
    tracked = new.classifier_.backbone.stage3.norm1.num_batches_tracked
    assert tracked == 12  # floor(1.5 * 8)


def test_unusable_input_is_refused_in_words(original: Classifier, activations: np.ndarray) -> None:
    assert cut_names(original) == ("stem.0", "stem.1", "stem", "stage1", "stage2")
    with pytest.raises(
        ConfigError,
        match=r"no cut 'stage3': no weights lie above it but the head's; known: stem.0, stem.1, stem, stage1, stage2",
    ):
        Relearn(cut="stage3", **QUICK).fit(original, activations, LABELS, RETAINED)
    flat = Classifier(
        nn.Flatten(), nn.Linear(64, 10), Preprocess(8, 8, 1, (0.5,), (0.5,)), ModelCard("flat", 10, 64, "full", True)
    ).eval()
    with pytest.raises(
        ConfigError, match="flat: no cut 'stage1': the backbone has no such module; this backbone has no usable cut"
    ):
        fetch_activations(flat, IMAGES, "stage1")
    with pytest.raises(DataError, match=r"labels must be in 0\.\.4, the classes of the model, got 0\.\.9"):
        Relearn(**QUICK).fit(build("resnet-small", 5, (8, 8, 1)), activations, LABELS, RETAINED)
    with pytest.raises(DataError, match=r"at least 2 retained rows, got .* and 1 retained rows"):
        Relearn(**QUICK).fit(original, activations, LABELS, RETAINED[:1])
    with pytest.raises(CollapseError, match=r"the loss is not finite in pass 1; lower lr \(now 1e\+30\)"):
        Relearn(lr=1e30, **QUICK).fit(original, activations, LABELS, RETAINED)
    with pytest.raises(ValueError, match=r"targets must be one of .*, got 'soft'"):
        Relearn(targets="soft")
    with pytest.raises(ValueError, match="train mode"):
        fetch_activations(build("resnet-small", 10, (8, 8, 1)).train(), IMAGES, "stage1")


def test_activations_too_large_for_half_precision_are_refused(original: Classifier) -> None:
    loud = build("resnet-small", 10, (8, 8, 1), seed=3).eval()
    loud.backbone.stem[1].weight.data.fill_(1e6)
    with pytest.raises(
        DataError, match=r"rows 0\.\.499: the activations at stem exceed the range of float16; use float32"
    ):
        fetch_activations(loud, IMAGES, "stem")
    assert np.isfinite(fetch_activations(loud, IMAGES[:10], "stem", dtype="float32")).all()
