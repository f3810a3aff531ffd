"""Accuracy, mean gap, ToW, damage and calibration error equal their definitions, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.evaluation import accuracy as acc


def one_hot(classes: list[int], width: int = 3) -> np.ndarray:
    return np.eye(width)[classes]


def test_accuracy_is_the_share_of_right_rows_and_none_without_rows() -> None:
    logits, labels = one_hot([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    assert acc.accuracy(logits, labels) == 0.75
    assert acc.accuracy(logits[:0], labels[:0]) is None


def test_equal_logits_count_as_the_first_class() -> None:
    assert acc.accuracy(np.zeros((4, 3)), np.array([0, 0, 1, 2])) == 0.5


def test_mean_gap_and_tow_equal_a_computation_by_hand() -> None:
    a, b = {"forget": 0.9, "retain": 1.0, "test": 0.8}, {"forget": 0.5, "retain": 0.9, "test": 1.0}
    assert acc.mean_gap(a, b) == pytest.approx((0.4 + 0.1 + 0.2) / 3)
    assert acc.tow(a, b) == pytest.approx(0.6 * 0.9 * 0.8)
    assert acc.tow(a, a) == 1.0
    assert acc.mean_gap({"forget": None}, {"forget": 0.1}) is None
    assert acc.tow({"forget": None}, {"forget": 0.1}) is None


def test_damage_names_the_class_that_lost_most() -> None:
    labels = np.array([0, 0, 1, 1])
    before, after = one_hot([0, 0, 1, 1]), one_hot([0, 0, 1, 2])
    lost, worst = acc.class_damage(after, before, labels)
    assert lost == [0.0, 0.5, None]
    assert worst == 1
    assert acc.class_damage(after[:0], before[:0], labels[:0]) == ([None] * 3, None)


def test_ece_against_the_definition_over_bins() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 4)) * 2, rng.integers(0, 4, 500)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        here = (confidence > low) & (confidence <= low + 1 / 15)
        if here.any():
            total += here.mean() * abs(right[here].mean() - confidence[here].mean())
    assert acc.ece(logits, labels) == pytest.approx(total)


def test_ece_of_a_model_that_is_sure_and_right_or_sure_and_wrong() -> None:
    sure = one_hot([0, 1, 2]) * 100
    assert acc.ece(sure, np.array([0, 1, 2])) == pytest.approx(0.0, abs=1e-9)
    assert acc.ece(sure, np.array([1, 2, 0])) == pytest.approx(1.0)
    assert acc.ece(sure[:0], np.array([], dtype=int)) is None


@pytest.mark.parametrize("labels", [np.array([0, 3]), np.array([-1, 0]), np.array([0])])
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="labels must"):
        acc.accuracy(np.zeros((2, 3)), labels)
