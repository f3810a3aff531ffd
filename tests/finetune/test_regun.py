"""Tests of ReGUn: its targets must follow the distribution of unseen rows, class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn.functional import cross_entropy

from expunge.finetune.loop import Run
from expunge.finetune.regun import ReGUn
from expunge.finetune.unseen import no_better_than_unseen, quantile_targets
from expunge.system.errors import DataError


@dataclass(frozen=True)
class Rows:
    retain: np.ndarray
    forget: np.ndarray
    unseen: np.ndarray
    judged: np.ndarray  # neither seen by the original nor given to a method


@pytest.fixture(scope="module")
def rows(digits: Any) -> Rows:
    """Return 140 rows to forget, the retained ones, and two halves of the test rows, which the model never saw."""
    order = np.random.default_rng(0).permutation(np.concatenate(digits.rows))
    test = np.random.default_rng(1).permutation(digits.test)
    half = len(test) // 2
    return Rows(order[140:], order[:140], test[:half], test[half:])


def losses(digits: Any, model: Any, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        y = torch.from_numpy(digits.labels[rows]).long()
        return cross_entropy(model(digits.images[rows]), y, reduction="none").numpy()


def fit(method: ReGUn, digits: Any, rows: Rows) -> ReGUn:
    return method.fit(digits.model, digits.images, digits.labels, rows.retain, rows.forget, rows.unseen)


def some_probabilities(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(5), n)


def test_targets_have_the_distribution_of_unseen_rows_class_by_class() -> None:
    p, unseen = some_probabilities(0, 40), some_probabilities(1, 40)
    labels = np.repeat([0, 3], 20)
    target = quantile_targets(p, labels, unseen, labels)
    np.testing.assert_allclose(target.sum(1), 1)
    for y in (0, 3):
        mine = labels == y
        np.testing.assert_array_equal(np.sort(target[mine, y]), np.sort(unseen[mine, y]))
        np.testing.assert_array_equal(np.argsort(target[mine, y]), np.argsort(p[mine, y]))  # the order is kept
    # The probabilities of the other classes keep their proportions.
    np.testing.assert_allclose(target[:20, 1] / target[:20, 2], p[:20, 1] / p[:20, 2])


def test_other_sizes_are_matched_at_their_quantiles() -> None:
    p, unseen = some_probabilities(2, 7), some_probabilities(3, 60)
    labels, of_unseen = np.zeros(7, int), np.zeros(60, int)
    found = np.sort(quantile_targets(p, labels, unseen, of_unseen)[:, 0])
    expected = np.quantile(unseen[:, 0], (np.arange(7) + 0.5) / 7, method="inverted_cdf")
    np.testing.assert_allclose(found, expected, atol=np.diff(np.sort(unseen[:, 0])).max())


def test_the_unseen_rows_themselves_are_left_as_they_are_and_certain_rows_are_evened() -> None:
    p = some_probabilities(4, 30)
    labels = np.arange(30) % 5
    np.testing.assert_allclose(quantile_targets(p, labels, p, labels), p, atol=1e-15)
    certain = np.array([[1.0, 0, 0, 0, 0]])
    target = quantile_targets(certain, np.array([0]), np.array([[0.6, 0.4, 0, 0, 0]]), np.array([0]))
    np.testing.assert_allclose(target, [[0.6, 0.1, 0.1, 0.1, 0.1]])


def test_per_class_targets_are_means_and_the_loss_has_its_floor_at_the_target(digits: Any, rows: Rows) -> None:
    method = ReGUn(target="per-class", lam=0.25)
    run = Run(method, digits.model, digits.images, digits.labels, rows.retain, rows.forget, rows.unseen)
    [phase, _] = method.phases(run)
    with torch.no_grad():
        p = digits.model(digits.images[rows.unseen]).double().softmax(1).numpy()
        logits = digits.model(digits.images[rows.forget]).double().numpy()
    for y, target in zip(digits.labels[rows.forget], method.targets_, strict=True):
        np.testing.assert_allclose(target, p[digits.labels[rows.unseen] == y].mean(0), atol=1e-5)
    q = method.targets_[:10]
    expected = (q * (np.log(q) - log_softmax(logits[:10], 1))).sum(1).mean()
    terms = phase.loss(rows.retain[:10], rows.forget[:10])
    assert terms["forget"].item() == pytest.approx(0.25 * expected, rel=1e-3)
    # A student whose answers equal the targets has no loss.
    order = np.zeros(len(digits.labels), int)
    order[rows.forget] = np.arange(len(rows.forget))
    run.logits = lambda r, frozen_norm=False: (  # type: ignore[method-assign]
        torch.from_numpy(np.log(method.targets_[order[r]])).float() if r[0] in rows.forget else torch.zeros(len(r), 10)
    )
    assert abs(phase.loss(rows.retain[:10], rows.forget[:10])["forget"].item()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("target", ["quantile", "per-class"])
def test_forgotten_rows_come_to_look_like_rows_never_seen(digits: Any, rows: Rows, target: str) -> None:
    """The mean loss of forgotten rows rises from far below to near that of judged rows. Retained rows stay correct."""
    model = digits.model
    before, aim = losses(digits, model, rows.forget).mean(), losses(digits, model, rows.judged).mean()
    assert before < 0.2 * aim
    settings: dict[str, Any] = {"lr": 0.05, "epochs": 12, "batch_size": 64, "retain_share": 1.0}
    result = fit(ReGUn(target=target, **settings), digits, rows).classifier_
    after = losses(digits, result, rows.forget).mean()
    # Targets that are class means are less spread than those of single rows, so they raise the loss less.
    low = {"quantile": 0.4, "per-class": 0.2}[target]
    assert low * aim < after < 1.6 * aim
    assert digits.accuracy(result, rows.retain) > 0.98
    assert digits.accuracy(result, rows.judged) > 0.9


def test_a_student_is_compared_with_unseen_rows_of_the_same_classes(digits: Any, rows: Rows) -> None:
    run = Run(ReGUn(), digits.model, digits.images, digits.labels, rows.retain, rows.forget, rows.unseen)
    assert not no_better_than_unseen(run)
    with torch.no_grad():
        run.student.head.weight.zero_()  # all rows now get the same class
        run.student.head.bias.zero_()
    assert no_better_than_unseen(run)


def test_impossible_requests_are_refused(digits: Any, rows: Rows) -> None:
    arguments = (digits.model, digits.images, digits.labels)
    with pytest.raises(DataError, match="class 5 keeps no retained row"):
        ReGUn().fit(*arguments, *digits.rows, rows.unseen)
    with pytest.raises(DataError, match="needs unseen_rows"):
        ReGUn().fit(*arguments, rows.retain, rows.forget)
    without = rows.unseen[digits.labels[rows.unseen] != 3]
    with pytest.raises(DataError, match="no unseen row of class 3"):
        ReGUn().fit(*arguments, rows.retain, rows.forget, without)
    with pytest.raises(DataError, match="among unseen_rows, but also among the retained or forgotten rows"):
        ReGUn().fit(*arguments, rows.retain, rows.forget, rows.retain[:5])
    for wrong in ({"target": "uniform"}, {"lam": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ReGUn(**wrong)  # type: ignore[arg-type]
