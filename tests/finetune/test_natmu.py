"""Tests of NatMU: its masks, blended pictures and labels, and how much it forgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from expunge.finetune.loop import Run
from expunge.finetune.natmu import NatMU, guessed, hybrids, masks
from expunge.system.errors import DataError


def test_masks_rise_to_the_middle_and_two_of_them_add_up() -> None:
    down, across, rest_down, rest_across = masks(8, 8, 0.0)
    np.testing.assert_allclose(down[:, 3], [0, 0.25, 0.5, 0.75, 0.75, 0.5, 0.25, 0])
    np.testing.assert_array_equal(across, down.T)
    for a, b in ((down, rest_down), (across, rest_across)):
        np.testing.assert_allclose(a + b, (4 - 1) / 4)
    shifted = masks(8, 8, -0.3)[0]
    np.testing.assert_allclose(shifted, np.clip(down - 0.3, 0, 1))
    assert masks(5, 7, 0.0)[0].shape == (5, 7) and masks(5, 7, 0.0)[1].max() == pytest.approx(3 / 3.5)


def loss(digits: Any, model: Any, rows: np.ndarray) -> float:
    with torch.no_grad():
        return cross_entropy(model(digits.images[rows]), torch.from_numpy(digits.labels[rows]).long()).item()


def run_of(digits: Any, retain: np.ndarray, forget: np.ndarray) -> Run:
    return Run(NatMU(), digits.model, digits.images, digits.labels, retain, forget)


def test_extreme_deltas_give_either_picture(digits: Any) -> None:
    run = run_of(digits, *digits.rows)
    images, labels = hybrids(run, 1.0)
    np.testing.assert_array_equal(images, np.concatenate([digits.images[digits.forget]] * 4))
    images, labels = hybrids(run, -1.0)
    retained = {(digits.images[r].tobytes(), digits.labels[r]) for r in digits.retain}
    assert {(x.tobytes(), y) for x, y in zip(images, labels, strict=True)} <= retained


def test_a_blend_is_the_masked_sum(digits: Any) -> None:
    run = run_of(digits, *digits.rows)
    images, _ = hybrids(run, -0.1)
    partners, _ = hybrids(run, -1.0)  # the same partners, not blended
    n = len(digits.forget)
    for k, mask in enumerate(masks(8, 8, -0.1)):
        m = mask[None, :, :, None]
        expected = m * digits.images[digits.forget] + (1 - m) * partners[k * n : (k + 1) * n]
        assert np.abs(images[k * n : (k + 1) * n] - expected).max() <= 0.5


def test_labels_are_the_best_other_guesses_that_keep_rows(digits: Any) -> None:
    """Class 7 is forgotten as a whole, and some rows of class 2, which keeps others."""
    rows = np.concatenate(digits.rows)
    twos = rows[digits.labels[rows] == 2]
    forget = np.concatenate([rows[digits.labels[rows] == 7], twos[:30]])
    run = run_of(digits, np.setdiff1d(rows, forget), forget)
    found = guessed(run)
    with torch.no_grad():
        logits = digits.model(digits.images[forget]).numpy()
    for row, own, guesses in zip(logits, digits.labels[forget], found, strict=True):
        row[[own, 7]] = -np.inf
        np.testing.assert_array_equal(guesses, np.argsort(-row, kind="stable")[:4])
    assert not (found == digits.labels[forget][:, None]).any() and not (found == 7).any()


def test_too_few_classes_are_refused(digits: Any) -> None:
    rows = np.concatenate(digits.rows)
    retain = rows[np.isin(digits.labels[rows], (0, 1, 2))]
    with pytest.raises(DataError, match="retained rows of 4 classes"):
        NatMU().fit(digits.model, digits.images, digits.labels, retain, digits.forget)


def test_a_class_is_forgotten_and_rows_lose_their_edge(digits: Any) -> None:
    others = digits.test[digits.labels[digits.test] != 5]
    assert digits.accuracy(digits.model, digits.forget) > 0.99
    settings = {"lr": 0.1, "epochs": 4, "batch_size": 64, "retain_share": 1.0}
    result = NatMU(**settings).fit(digits.model, digits.images, digits.labels, *digits.rows).classifier_  # type: ignore[arg-type]
    assert digits.accuracy(result, digits.forget) < 0.4
    assert digits.accuracy(result, others) > 0.9

    rows = np.random.default_rng(0).permutation(np.concatenate(digits.rows))
    forget, retain = rows[:140], rows[140:]
    result = NatMU(**settings).fit(digits.model, digits.images, digits.labels, retain, forget).classifier_  # type: ignore[arg-type]
    # The classes stay, so the rows are still recognised, but their loss no longer lies below that of other rows.
    before, after, on_retained = (
        loss(digits, m, r) for m, r in ((digits.model, forget), (result, forget), (result, retain))
    )
    assert after > 2 * before and after > 2 * on_retained
