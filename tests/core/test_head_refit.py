"""The refitted head equals the optimum that scikit-learn finds, whatever head the refit starts from."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from expunge.core import HeadRefit, LinearHead, PourP
from expunge.system.errors import DataError


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_refitted_head_equals_scikit_learn(task, l2: float) -> None:
    refit = HeadRefit(l2=l2, tol=1e-10).fit(task.head, task.z, task.labels)
    reference = LogisticRegression(C=1 / (l2 * len(task.z)), tol=1e-10, max_iter=10_000).fit(task.z, task.labels)
    ours, theirs = refit.head_.logits(task.z), torch.from_numpy(reference.decision_function(task.z.numpy()))
    # The softmax does not change when all biases are shifted by the same amount.
    torch.testing.assert_close(
        ours - ours.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True), rtol=1e-4, atol=1e-4
    )
    assert refit.gradient_norm_ < 1e-8


def test_the_optimum_does_not_depend_on_the_start(task) -> None:
    retained = ~task.forgotten
    zero = LinearHead(torch.zeros(5, 16), torch.zeros(5))
    warm, cold = (
        HeadRefit(l2=1e-2, tol=1e-10).fit(h, task.z[retained], task.labels[retained]) for h in (task.head, zero)
    )
    torch.testing.assert_close(
        torch.softmax(warm.head_.logits(task.z), 1), torch.softmax(cold.head_.logits(task.z), 1), rtol=1e-5, atol=1e-6
    )
    assert warm.steps_ <= cold.steps_


def test_classes_without_rows_are_masked_and_can_come_back(task) -> None:
    retained = ~task.forgotten
    without = HeadRefit().fit(task.head, task.z[retained], task.labels[retained]).head_
    assert float(without.bias[0]) == -1e4
    assert float(without.weight[0].abs().max()) == 0
    again = HeadRefit(l2=1e-2, tol=1e-10).fit(without, task.z, task.labels).head_
    direct = HeadRefit(l2=1e-2, tol=1e-10).fit(task.head, task.z, task.labels).head_
    torch.testing.assert_close(
        torch.softmax(again.logits(task.z), 1), torch.softmax(direct.logits(task.z), 1), rtol=1e-5, atol=1e-6
    )


def test_the_head_can_be_refitted_behind_a_map(task) -> None:
    """Features have no variance along a projected-out class direction, and the refit must still be solvable."""
    drop = PourP().fit(task.head, 0).map_
    refit = HeadRefit(l2=1e-3).fit(task.head, task.z, task.labels, map_=drop)
    assert refit.map_ is drop
    direct = HeadRefit(l2=1e-3).fit(task.head, drop(task.z), task.labels)
    torch.testing.assert_close(refit.head_.weight, direct.head_.weight)
    accuracy = (refit.head_.logits(drop(task.z)).argmax(1) == task.labels).double().mean()
    assert float(accuracy) > 0.9


def test_float32_features_reach_the_same_head(task) -> None:
    exact = HeadRefit(l2=1e-2, tol=1e-10).fit(task.head, task.z, task.labels)
    single = HeadRefit(l2=1e-2).fit(task.head, task.z.float(), task.labels)
    torch.testing.assert_close(
        torch.softmax(single.head_.logits(task.z), 1),
        torch.softmax(exact.head_.logits(task.z), 1),
        rtol=1e-3,
        atol=1e-4,
    )


def test_labels_are_checked(task) -> None:
    with pytest.raises(DataError, match=r"0 \.\. 4, got 1 \.\. 5"):
        HeadRefit().fit(task.head, task.z, task.labels + 1)
    with pytest.raises(DataError, match="one label per row"):
        HeadRefit().fit(task.head, task.z, task.labels[:-1])
