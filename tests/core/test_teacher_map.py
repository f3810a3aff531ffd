"""TeacherMap answers like its teacher on forgotten rows and keeps retained rows in place.

Its stitch is compared with scikit-learn's ridge regression, and its loss with the formula in NumPy.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import Ridge

from expunge.core import HeadRefit, LinearHead, LogitMask, Stitch, TeacherMap
from expunge.evaluation.divergence import agreement_rows, kl_rows
from expunge.system.errors import CollapseError


@pytest.fixture(scope="module")
def teacher(task):
    """Return features and head of another model that never saw class 0. Its features mix those of the task."""
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(16, 20, generator=generator, dtype=torch.float64)
    t = task.z @ mixing + 1.0
    retained = ~task.forgotten
    head = (
        HeadRefit(l2=1e-3).fit(LinearHead(torch.zeros(5, 20), torch.zeros(5)), t[retained], task.labels[retained]).head_
    )
    return t, head


@pytest.fixture(scope="module")
def fitted(task, teacher) -> TeacherMap:
    return fit(task, teacher)


def fit(task, teacher, **settings) -> TeacherMap:
    t, head = teacher
    removed = task.forgotten
    teacher_features = Stitch().fit(t[~removed], task.z[~removed])(t[removed])
    teacher_probabilities = head.logits(t[removed]).softmax(1)
    return TeacherMap(**settings).fit(
        task.z[~removed], task.z[removed], task.head, teacher_probabilities, teacher_features, [0]
    )


def test_the_stitch_is_a_ridge_regression(task, teacher) -> None:
    t, rows = teacher[0], ~task.forgotten
    ridge = 0.05
    stitch = Stitch(ridge).fit(t[rows], task.z[rows])
    alpha = ridge * float((t[rows] - t[rows].mean(0)).square().sum(0).mean())
    theirs = Ridge(alpha=alpha, solver="svd").fit(t[rows].numpy(), task.z[rows].numpy())
    np.testing.assert_allclose(stitch.weight_.numpy(), theirs.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(stitch.bias_.numpy(), theirs.intercept_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(stitch(t).double().numpy(), theirs.predict(t.numpy()), rtol=1e-5, atol=1e-5)
    flat = 1 - np.square(theirs.predict(t[rows].numpy()) - task.z[rows].numpy()).sum() / (
        (task.z[rows] - task.z[rows].mean(0)).square().sum()
    )
    assert stitch.r2_ == pytest.approx(float(flat), abs=1e-9)


def test_the_stitch_undoes_a_linear_change_of_features(task, teacher) -> None:
    t, rows = teacher[0], ~task.forgotten
    stitch = Stitch(1e-9).fit(t[rows], task.z[rows])
    assert stitch.r2_ == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(stitch(t).double(), task.z, rtol=1e-3, atol=1e-3)


def wanted(task, teacher, share: float) -> np.ndarray:
    """Return the logits of q ~ t^a h^(1-a) on forgotten rows, with class 0 left out."""
    t, head = teacher
    removed = task.forgotten
    theirs, ours = (softmax(h.logits(x[removed]).numpy()[:, 1:], axis=1) for h, x in ((head, t), (task.head, task.z)))
    return np.hstack([np.full((240, 1), -1e4), np.log(theirs**share * ours ** (1 - share))])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_first_loss_is_the_formula(task, teacher, share: float) -> None:
    """The network starts at zero, so z' = z and only forgotten rows contribute to the loss."""
    t, removed = teacher[0], task.forgotten
    options = {"batch_size": 960, "steps": 1, "feature_weight": 2.5, "teacher_share": share}
    loss = fit(task, teacher, **options).history_[0]["loss"]
    masked = LogitMask(0).fit(task.head).head_.logits(task.z[removed]).numpy()
    kl = kl_rows(wanted(task, teacher, share), masked).mean()
    teacher_features = Stitch().fit(t[~removed], task.z[~removed])(t[removed])
    far = np.square(teacher_features.numpy() - task.z[removed].numpy()).sum(1).mean()
    variance = task.z[~removed].numpy().var(axis=0).sum()
    assert loss == pytest.approx(kl + 2.5 * far / variance, rel=1e-4)


def test_forgotten_rows_get_the_teachers_answers_and_retained_rows_stay(task, teacher, fitted) -> None:
    removed, q = task.forgotten, wanted(task, teacher, 0.5)
    before = LogitMask(0).fit(task.head).head_.logits(task.z)
    after = fitted.head_.logits(fitted.map_(task.z))
    assert not bool((after.argmax(1) == 0).any())
    assert kl_rows(q, after[removed].numpy()).mean() < 0.5 * kl_rows(q, before[removed].numpy()).mean()
    assert agreement_rows(q, after[removed].numpy()).mean() > agreement_rows(q, before[removed].numpy()).mean()
    same = (after.argmax(1) == before.argmax(1))[~removed].double().mean()
    assert float(same) > 0.98
    assert fitted.distortion_ < 0.1


def test_a_probe_finds_the_class_before_and_less_of_it_after(task, fitted) -> None:
    """The teacher's features are an invertible transform of z that still separates the class.

    Its probe therefore stays above chance, and the map is not expected to bring it down to chance.
    """
    middle = task.z[~task.forgotten].mean(0).expand(240, -1)
    teacher_probabilities = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25]).expand(240, -1)
    flat = TeacherMap().fit(
        task.z[~task.forgotten], task.z[task.forgotten], task.head, teacher_probabilities, middle, [0]
    )
    before, after, moved = (task.probe(z) for z in (task.z, fitted.map_(task.z), flat.map_(task.z)))
    assert before > 0.97
    assert after <= before + 0.005
    assert moved < before - 0.02


def test_the_same_seed_gives_the_same_map_and_the_global_one_is_left(task, teacher, fitted) -> None:
    state = torch.get_rng_state()
    again, other = fit(task, teacher), fit(task, teacher, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(fitted.map_.weights, again.map_.weights, other.map_.weights, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_rows_of_classes_that_stay_are_not_masked(task, teacher) -> None:
    t, head = teacher
    some = torch.arange(0, 1200, 10)
    rest = torch.ones(1200, dtype=torch.bool)
    rest[some] = False
    new = TeacherMap(steps=5).fit(task.z[rest], task.z[some], task.head, head.logits(t[some]).softmax(1), task.z[some])
    assert new.head_ is task.head


def test_bad_input_and_ruined_maps_are_refused(task, teacher) -> None:
    removed = task.forgotten
    z = (task.z[~removed], task.z[removed], task.head)
    teacher_probabilities, teacher_features = torch.full((240, 5), 0.2), task.z[removed]
    with pytest.raises(ValueError, match="240 rows, one per forgotten row, and the former 5 classes"):
        TeacherMap().fit(*z, teacher_probabilities[:, :4], teacher_features)
    with pytest.raises(ValueError, match="240 rows, one per forgotten row, and the former 5 classes"):
        TeacherMap().fit(*z, teacher_probabilities, teacher_features[:10])
    with pytest.raises(ValueError, match="probabilities"):
        TeacherMap().fit(*z, teacher_probabilities.log(), teacher_features)
    with pytest.raises(ValueError, match="teacher_share 0"):
        TeacherMap(teacher_share=0).fit(*z, teacher_probabilities, teacher_features)
    with pytest.raises(ValueError, match="same rows"):
        Stitch().fit(task.z[:5], task.z[:4])
    with pytest.raises(ValueError, match="finite"):
        Stitch().fit(task.z[:5] / 0, task.z[:5])
    with pytest.raises(CollapseError, match="TeacherMap"):
        fit(task, teacher, lr=50.0)
