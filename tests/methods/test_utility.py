"""Tests of the collapse guard, which refuses methods that lose too much accuracy on held-out retained rows."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core import AffineMap, LinearHead, identity
from expunge.methods import fitting, utility
from expunge.methods.fitting import fit
from expunge.methods.unlearned import UnlearnedModel
from expunge.methods.utility import RetainedAccuracy, guard_rows, refuse_lost, retained_accuracy
from expunge.models.classifier import Classifier, ModelCard
from expunge.models.preprocess import Preprocess
from expunge.system.errors import CollapseError, ConfigError

N = 400
rng = np.random.default_rng(0)
Z = rng.standard_normal((N, 6)).astype(np.float32)
HEAD = LinearHead(torch.from_numpy(rng.standard_normal((3, 6))).float(), torch.zeros(3))
LABELS = HEAD.logits(torch.from_numpy(Z)).argmax(1).numpy().astype(np.int32)
LABELS[:40] = (LABELS[:40] + 1) % 3  # the original is wrong on these


def request(held: np.ndarray, forget: np.ndarray) -> Any:
    network = Classifier(
        nn.Flatten(), nn.Linear(6, 3), Preprocess(1, 6, 1, (0.5,), (0.5,)), ModelCard("x", 3, 6, "full", True)
    )
    return SimpleNamespace(
        retain_rows=np.setdiff1d(np.arange(N), forget), forget_rows=forget, validation_rows=held, labels=LABELS,
        head=HEAD,
        store=SimpleNamespace(z=lambda rows: Z[rows], dim=6), classifier=network, forget_classes=[],
        corrects=False,
    )  # fmt: skip


def test_the_rows_are_held_out_retained_ones() -> None:
    held_out, forget = np.arange(0, N, 4), np.arange(0, 100)
    assert np.array_equal(guard_rows(request(held_out, forget)), held_out[held_out >= 100])
    assert np.array_equal(guard_rows(request(np.empty(0, int), forget)), np.arange(100, N))


def test_accuracy_before_and_after_and_its_error_by_hand() -> None:
    broken = UnlearnedModel(identity(6), LinearHead(HEAD.weight * torch.tensor([[1.0], [1.0], [0.0]]), HEAD.bias))
    asked = request(np.empty(0, int), np.arange(390, N))
    accuracy = retained_accuracy(asked, broken)
    rows = np.arange(390)
    before = HEAD.logits(torch.from_numpy(Z[rows])).argmax(1).numpy() == LABELS[rows]
    after = broken.logits(torch.from_numpy(Z[rows])).argmax(1).numpy() == LABELS[rows]
    change = before.astype(float) - after
    assert accuracy.before == pytest.approx(before.mean()) and accuracy.after == pytest.approx(after.mean())
    assert accuracy.error == pytest.approx(change.std() / np.sqrt(390))
    assert accuracy.drop == pytest.approx(change.mean()) and accuracy.drop > 0.05


def test_a_network_is_asked_itself() -> None:
    images = (127.5 + 40 * Z).clip(0, 255).astype(np.uint8).reshape(N, 1, 6, 1)
    asked = request(np.empty(0, int), np.arange(390, N))
    asked.dataset = SimpleNamespace(inputs=lambda rows: images[rows])
    network = copy.deepcopy(asked.classifier).eval()
    with torch.no_grad():
        right = network(images[:390]).argmax(1).numpy() == LABELS[:390]
    assert retained_accuracy(asked, UnlearnedModel.of_classifier(network, {})).after == pytest.approx(right.mean())


@pytest.mark.parametrize(
    ("drop", "error", "refused"),
    [(0.02, 0.0, False), (0.04, 0.0, True), (0.04, 0.01, False), (float("nan"), 0.0, True)],
)
def test_only_a_drop_beyond_its_error_is_refused(drop: float, error: float, refused: bool) -> None:
    accuracy = RetainedAccuracy(0.9, 0.9 - drop, error, 500)
    if not refused:
        return refuse_lost("m", accuracy, 0.03)
    with pytest.raises(CollapseError, match=r"m: accuracy on 500 held-out retained rows fell .* fit\.m\.max_drop"):
        refuse_lost("m", accuracy, 0.03)


def test_a_result_that_collapsed_is_refused_and_the_user_may_accept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard also applies to entries of the table, and `max_drop` accepts a larger loss."""
    wrecked = UnlearnedModel(AffineMap(torch.zeros(6, 6), torch.zeros(6)), HEAD)
    whole = UnlearnedModel(identity(6), HEAD, {"a": 1})
    asked = request(np.empty(0, int), np.arange(390, N))
    for name in ("leace", "exact"):
        entry = dataclasses.replace(fitting.METHODS[name], fit=lambda *_: wrecked)
        monkeypatch.setitem(fitting.METHODS, name, entry)
    with pytest.raises(CollapseError, match="leace: accuracy on 390 held-out"):
        fit("leace", asked, {"leace": {}})
    with pytest.raises(CollapseError, match=r"fit\.other\.max_drop"):
        fit("other", asked, {"other": {"method": "leace"}})
    accepted = fit("leace", asked, {"leace": {"max_drop": 1.0}})
    assert accepted.info["held_out"]["after"] < 0.6 < accepted.info["held_out"]["before"]
    assert fit("exact", asked, {"exact": {}}) is wrecked  # exact methods are not judged by accuracy
    monkeypatch.setitem(fitting.METHODS, "leace", dataclasses.replace(fitting.METHODS["leace"], fit=lambda *_: whole))
    assert fit("leace", asked, {"leace": {}}).info == {"a": 1, "held_out": retained_accuracy(asked, whole).to_json()}
    for wrong in (-0.1, 2, "much", True):
        with pytest.raises(ConfigError, match=r"fit\.leace\.max_drop"):
            fit("leace", asked, {"leace": {"max_drop": wrong}})
    assert utility.MAX_DROP == 0.03
