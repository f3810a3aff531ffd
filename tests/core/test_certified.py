"""Certified removal states bounds that hold, is exact for a quadratic loss, and refuses when its budget is used up.

The gradients come from autograd on the loss of the paper, and the noise is known wherever a formula is checked.
"""

from __future__ import annotations

import math

import pytest
import torch

from expunge.core import CertifiedRemoval
from expunge.core.certified import solve_by_class
from expunge.core.secret_noise import secret_normal
from expunge.system.errors import ConfigError, DataError, QualityError


def inputs(removal: CertifiedRemoval, z: torch.Tensor) -> torch.Tensor:
    return torch.cat([z / removal.radius_, torch.ones(len(z), 1, dtype=torch.float64)], dim=1) / math.sqrt(2)


def weights(removal: CertifiedRemoval) -> torch.Tensor:
    head = removal.head_
    return torch.cat([head.weight.double() * removal.radius_, head.bias.double()[:, None]], dim=1) * math.sqrt(2)


def given(classes: int, dim: int) -> torch.Tensor:
    return torch.randn(classes, dim + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noise(removal: CertifiedRemoval, classes: int, dim: int) -> torch.Tensor:
    return removal.sigma * given(classes, dim)


def gradient_norm(removal: CertifiedRemoval, z: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> float:
    """Return the norm of the gradient of the perturbed training loss on these rows.

    The loss is written as the paper defines it, and autograd differentiates it.
    """
    w = w.clone().requires_grad_()
    x = inputs(removal, z)
    y = torch.full((len(x), len(w)), -1.0, dtype=torch.float64)
    y[torch.arange(len(x)), labels] = 1.0
    logits = x @ w.T
    losses = -torch.nn.functional.logsigmoid(y * logits) if removal.loss == "logistic" else 0.5 * (logits - y) ** 2
    loss = losses.sum() + removal.l2 * len(x) / 2 * w.square().sum() + (noise(removal, *head_shape(removal)) * w).sum()
    return float(torch.autograd.grad(loss, w)[0].norm())


def head_shape(removal: CertifiedRemoval) -> tuple[int, int]:
    return removal.head_.num_classes, removal.head_.dim


def fitted(task, **options: object) -> CertifiedRemoval:
    """Return a removal fitted with known noise, so that formulas can be checked.

    The radius is given, so no removed row can have determined it.
    """
    removal = CertifiedRemoval(**{"l2": 1e-3, "delta": 1e-4, "radius": longest(task), **options})  # type: ignore[arg-type]
    noise_ = given(task.head.num_classes, task.head.dim)
    return removal.fit(task.head, task.z, task.labels, saw_forget_data=False, noise=noise_)


def longest(task) -> float:
    return float(task.z.double().norm(dim=1).max())


def without(task, removal: CertifiedRemoval, rows: slice) -> CertifiedRemoval:
    removed = torch.zeros(len(task.z), dtype=torch.bool)
    removed[rows] = True
    return removal.remove(task.z[~removed], task.labels[~removed], task.z[removed], task.labels[removed])


def test_training_reaches_the_perturbed_optimum(task) -> None:
    removal = fitted(task)
    assert removal.spent_ < 1e-3
    assert gradient_norm(removal, task.z, task.labels, removal.weights_) == pytest.approx(removal.spent_, abs=1e-8)
    torch.testing.assert_close(weights(removal), removal.weights_, rtol=1e-5, atol=1e-5)
    accuracy = (removal.head_.logits(task.z).argmax(1) == task.labels).double().mean()
    assert float(accuracy) > 0.9


def test_the_bound_holds_over_several_requests(task) -> None:
    removal, spent = fitted(task, epsilon=100.0), []
    for stop in (5, 40, 100):
        start = 0 if not spent else (5, 40)[len(spent) - 1]
        removed = slice(start, stop)
        retained = torch.arange(stop, len(task.z))
        removal.remove(task.z[retained], task.labels[retained], task.z[removed], task.labels[removed])
        actual = gradient_norm(removal, task.z[retained], task.labels[retained], removal.weights_)
        assert actual <= removal.spent_
        spent.append(removal.spent_)
    assert spent == sorted(spent)
    assert removal.removed_ == 100
    assert removal.epsilon_spent_ == pytest.approx(removal.spent_ * math.sqrt(2 * math.log(1.5 / 1e-4)))


def test_our_bound_is_below_the_papers(task) -> None:
    removal = fitted(task, epsilon=100.0)
    before = removal.spent_, removal.weights_.clone()
    without(task, removal, slice(0, 30))
    ours = removal.spent_ - before[0]
    x = inputs(removal, task.z[30:])
    step = removal.weights_ - before[1]
    paper = 0.25 * torch.linalg.matrix_norm(inputs(removal, task.z), 2) * step.norm(dim=1) * (x @ step.T).norm(dim=0)
    assert ours < float(paper.norm())


def test_a_quadratic_loss_is_removed_exactly(task) -> None:
    removal = without(task, fitted(task, loss="squared"), slice(0, 240))
    x, c = inputs(removal, task.z[240:]), 5
    y = torch.full((len(x), c), -1.0, dtype=torch.float64)
    y[torch.arange(len(x)), task.labels[240:]] = 1.0
    hessian = x.T @ x + removal.l2 * len(x) * torch.eye(17, dtype=torch.float64)
    exact = torch.linalg.solve(hessian, (x.T @ y - noise(removal, c, 16).T)).T
    torch.testing.assert_close(removal.weights_, exact, rtol=1e-6, atol=1e-7)
    assert removal.spent_ < 1e-4


def test_removal_goes_most_of_the_way_to_retraining(task) -> None:
    removal = fitted(task, epsilon=100.0)
    before = removal.weights_.clone()
    without(task, removal, slice(0, 30))
    retained = torch.arange(30, len(task.z))
    retrained = CertifiedRemoval(l2=1e-3, radius=removal.radius_)
    noise_ = given(task.head.num_classes, task.head.dim)
    retrained.fit(task.head, task.z[retained], task.labels[retained], saw_forget_data=False, noise=noise_)
    assert float((removal.weights_ - retrained.weights_).norm()) < 0.05 * float((before - retrained.weights_).norm())


def test_an_exhausted_budget_refuses_and_changes_nothing(task) -> None:
    removal = fitted(task, sigma=0.01)
    head, spent = removal.head_, removal.spent_
    with pytest.raises(QualityError, match="train the head again"):
        without(task, removal, slice(0, 240))
    assert removal.head_ is head
    assert (removal.spent_, removal.removed_) == (spent, 0)


def test_the_noise_is_secret_and_nothing_is_claimed_where_it_is_known(task) -> None:
    known, again = fitted(task), fitted(task)
    assert torch.equal(known.weights_, again.weights_) and "not secret" in str(known.why_not_)

    def secret(**options: object) -> CertifiedRemoval:
        return CertifiedRemoval(l2=1e-3, **options).fit(task.head, task.z, task.labels, saw_forget_data=False)  # type: ignore[arg-type]

    torch.manual_seed(0)
    first = secret()
    torch.manual_seed(0)
    second = secret()
    assert not torch.equal(first.weights_, second.weights_)
    assert first.why_not_ is None and first.delta_ == pytest.approx(0.1 / len(task.z))
    assert "must be below 1/n" in str(secret(delta=1 / len(task.z)).why_not_)
    assert "seed" not in first.get_params()


def test_secret_noise_is_standard_normal() -> None:
    from scipy.stats import kstest

    values = secret_normal(100, 200)
    assert values.shape == (100, 200) and values.dtype == torch.float64 and bool(values.isfinite().all())
    assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-6  # one run in a million fails by chance


def test_a_radius_from_rows_must_survive_the_removal(task) -> None:
    order = task.z.double().norm(dim=1).argsort(descending=True)
    z, labels = task.z[order], task.labels[order]

    def trained(**options: object) -> CertifiedRemoval:
        own = {"radius_of": options.pop("radius_of", None)}
        removal = CertifiedRemoval(l2=1e-3, epsilon=100.0, **options)  # type: ignore[arg-type]
        return removal.fit(task.head, z, labels, saw_forget_data=False, **own)  # type: ignore[arg-type]

    with pytest.raises(QualityError, match="the row with the largest norm"):
        trained().remove(z[1:], labels[1:], z[:1], labels[:1])
    of_retained = trained(radius_of=z[1:]).remove(z[1:], labels[1:], z[:1], labels[:1])
    assert of_retained.radius_ == pytest.approx(float(z[1].double().norm())) and of_retained.why_not_ is None
    assert trained(radius=1.0).remove(z[1:], labels[1:], z[:1], labels[:1]).removed_ == 1


def test_what_earlier_releases_spent_counts(task) -> None:
    fresh = fitted(task, epsilon=100.0)
    removal = CertifiedRemoval(l2=1e-3, delta=1e-4, epsilon=100.0, radius=longest(task))
    removal.fit(task.head, task.z, task.labels, saw_forget_data=False, epsilon_before=60.0)
    without(task, fresh, slice(0, 5))
    without(task, removal, slice(0, 5))
    # The tolerance is wide because `removal` draws noise of its own.
    assert removal.epsilon_spent_ - 60 == pytest.approx(fresh.epsilon_spent_, rel=0.3)
    full = CertifiedRemoval(l2=1e-3, epsilon=1.0).fit(
        task.head, task.z, task.labels, saw_forget_data=False, epsilon_before=1.0
    )
    with pytest.raises(QualityError, match="train the head again"):
        without(task, full, slice(100, 101))


def test_a_backbone_that_saw_the_rows_is_refused(task) -> None:
    with pytest.raises(DataError, match="trained on the forgotten rows"):
        CertifiedRemoval().fit(task.head, task.z, task.labels, saw_forget_data=True)
    with pytest.raises(ConfigError, match="loss"):
        fitted(task, loss="hinge")


def test_rows_longer_than_the_radius_are_shortened(task) -> None:
    removal = fitted(task, radius=1.0)
    assert float(removal._inputs(task.z).norm(dim=1).max()) <= 1 + 1e-12


def test_conjugate_gradients_solve_each_class(task) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 7, generator=generator, dtype=torch.float64)
    curvature = torch.rand(60, 3, generator=generator, dtype=torch.float64)
    right = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    v, left = solve_by_class(x, curvature, 0.5, right, 1e-12)
    for c in range(3):
        hessian = x.T @ (curvature[:, c, None] * x) + 0.5 * torch.eye(7, dtype=torch.float64)
        torch.testing.assert_close(v[c], torch.linalg.solve(hessian, right[c]))
    assert float(left.max()) < 1e-10
