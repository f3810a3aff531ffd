"""The softmax head reaches the optimum that scikit-learn and scipy find.

After rows were added or removed, it is within its stated bound of the optimum of the rows that are left.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from expunge.core import SoftmaxHead, preconditioners
from expunge.core.newton_cg import SoftmaxProblem
from expunge.system.errors import CheckpointError, DataError

CLASSES, DIM, RIDGE = 4, 6, 1e-2


def drawn(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    z = torch.randn(n, DIM, generator=generator, dtype=torch.float64) + 1.5 * torch.eye(CLASSES, DIM)[y].double()
    return z, y


def reference(z: torch.Tensor, y: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Return the optimum found by scipy's BFGS on an objective and gradient written independently of the package."""
    h, onehot, n = np.hstack([z.numpy(), np.ones((len(z), 1))]), np.eye(CLASSES)[y.numpy()], len(z)
    shape = (CLASSES, DIM + 1)

    def value(w):
        w = w.reshape(shape)
        return -(log_softmax(h @ w.T, axis=1) * onehot).sum() / n + ridge / 2 * (w**2).sum()

    def gradient(w):
        w = w.reshape(shape)
        return ((np.exp(log_softmax(h @ w.T, axis=1)) - onehot).T @ h / n + ridge * w).ravel()

    found = scipy.optimize.minimize(value, np.zeros(shape).ravel(), jac=gradient, method="BFGS", options={"gtol": 1e-9})
    return torch.from_numpy(found.x.reshape(shape))


def within_bound(head: SoftmaxHead, optimum: torch.Tensor, slack: float = 1e-6) -> bool:
    return float((head.weights_ - optimum).norm()) <= head.bound_ + slack


def test_a_fit_equals_scikit_learn_and_scipy():
    z, y = drawn(300)
    head = SoftmaxHead(RIDGE, tol=1e-10).fit(z, y, CLASSES)
    assert head.converged_ and head.bound_ <= 1e-8
    h = np.hstack([z.numpy(), np.ones((300, 1))])
    model = LogisticRegression(C=1 / (RIDGE * 300), fit_intercept=False, tol=1e-12, max_iter=10_000).fit(h, y.numpy())
    assert within_bound(head, torch.from_numpy(model.coef_), 1e-5)
    assert within_bound(head, reference(z, y))


def test_each_pass_of_a_fit_is_told_with_a_norm_that_falls_to_the_goal():
    z, y = drawn(300)
    norms: list[float] = []
    head = SoftmaxHead(RIDGE, tol=1e-8)
    head.on_pass = norms.append
    head.fit(z, y, CLASSES)
    assert len(norms) == head.products_ and norms[0] > norms[-1] > head.tol >= head.gradient_norm_
    assert torch.equal(head.weights_, SoftmaxHead(RIDGE, tol=1e-8).fit(z, y, CLASSES).weights_)
    torch.testing.assert_close(head.head_.weight, head.weights_[:, :-1].float())


def test_gradient_and_hessian_are_those_of_autograd():
    z, y = drawn(50)
    problem = SoftmaxProblem(z, y, RIDGE)
    w = torch.randn(CLASSES, DIM + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.randn(CLASSES, DIM + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(w):
        h = torch.cat([z, torch.ones(50, 1, dtype=torch.float64)], dim=1)
        return torch.nn.functional.cross_entropy(h @ w.T, y) + RIDGE / 2 * w.square().sum()

    point = problem.at(w)
    assert point.value == pytest.approx(float(loss(w)))
    torch.testing.assert_close(point.gradient, torch.func.grad(loss)(w))
    _, product = torch.func.jvp(torch.func.grad(loss), (w,), (v,))
    torch.testing.assert_close(problem.hessian(point.probabilities)(v), product)
    less = problem.changed(w, point, SoftmaxProblem(z[:7], y[:7], RIDGE), -1)
    direct = SoftmaxProblem(z[7:], y[7:], RIDGE).at(w)
    assert less.value == pytest.approx(direct.value)
    torch.testing.assert_close(less.gradient, direct.gradient)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_sequence_of_changes_ends_within_the_stated_bound(data):
    z, y = drawn(50, seed=data.draw(st.integers(0, 3), label="seed"))
    z[5:9], y[5:9] = z[5], y[5]
    head, inside = SoftmaxHead(RIDGE, tol=1e-9).fit(z[:35], y[:35], CLASSES), set(range(35))
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        adding = data.draw(st.booleans(), label="add")
        pool = sorted(set(range(50)) - inside if adding else inside)
        if data.draw(st.integers(0, 2), label="whole class") == 0:
            c = data.draw(st.integers(0, CLASSES - 1))
            rows = [i for i in pool if int(y[i]) == c]
        else:
            rows = data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=6)) if pool else []
        (head.add if adding else head.remove)(z[rows], y[rows])
        inside = inside | set(rows) if adding else inside - set(rows)
        retained = sorted(inside)
        assert head.n_ == len(retained) and head.converged_
        fresh = SoftmaxHead(RIDGE, tol=1e-9).fit(z[retained], y[retained], CLASSES)
        assert float((head.weights_ - fresh.weights_).norm()) <= head.bound_ + fresh.bound_ + 1e-12
    if inside:
        assert within_bound(head, reference(z[retained], y[retained]), 1e-5)


def test_without_rows_the_weights_are_zero_and_rows_can_come_back():
    z, y = drawn(20)
    head = SoftmaxHead(RIDGE, tol=1e-9).fit(z, y, CLASSES).remove(z, y)
    assert not head.weights_.any() and head.n_ == 0
    head.add(z, y)
    assert within_bound(head, reference(z, y))


def test_a_warm_start_takes_fewer_products_and_float32_reaches_the_tolerance():
    z, y = drawn(4000)
    z = z.float()
    head = SoftmaxHead(1e-4, tol=1e-8).fit(z, y, CLASSES)
    cold = head.products_
    head.remove(z[:40], y[:40])
    assert head.converged_ and 0 < head.products_ < cold
    fresh = SoftmaxHead(1e-4, tol=1e-8).fit(z[40:], y[40:], CLASSES)
    assert float((head.weights_ - fresh.weights_).norm()) <= head.bound_ + fresh.bound_


def test_the_factor_of_the_whole_hessian_is_that_of_autograd():
    z, y = drawn(50)
    problem = SoftmaxProblem(z, y, RIDGE)
    w = torch.randn(CLASSES, DIM + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = torch.cat([z, z.new_ones(50, 1)], dim=1)

    def value(flat: torch.Tensor) -> torch.Tensor:
        weights = flat.view_as(w)
        return torch.nn.functional.cross_entropy(h @ weights.T, y) + RIDGE / 2 * flat.square().sum()

    expected = torch.autograd.functional.hessian(value, w.flatten())
    factor = preconditioners.hessian_block(problem, problem.at(w).probabilities)
    torch.testing.assert_close(factor[0].T @ factor[0], expected)
    r = torch.randn(w.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    solved = preconditioners.Blocks(factor, RIDGE)(w, w)(r)
    torch.testing.assert_close(solved.flatten(), torch.linalg.solve(expected, r.flatten()))


def test_the_factor_of_the_whole_hessian_takes_the_fewest_products(tmp_path):
    z, y = drawn(4000)
    heads = {}
    for factor in ("classes", "hessian"):
        head = SoftmaxHead(1e-3, tol=1e-9, factor=factor).fit(z, y, CLASSES).prepare()
        head.save(tmp_path)
        heads[factor] = head.remove(z[:40], y[:40])
        again = SoftmaxHead.load(tmp_path).refit(z[40:], y[40:])
        assert again.products_ == head.products_ and again.converged_
        assert float((again.weights_ - head.weights_).norm()) <= again.bound_ + head.bound_
    classes, hessian = heads["classes"], heads["hessian"]
    assert 0 < 2 * hessian.products_ < classes.products_
    assert float((hessian.weights_ - classes.weights_).norm()) <= hessian.bound_ + classes.bound_


def test_a_factor_that_is_too_large_or_unknown_is_refused(monkeypatch):
    z, y = drawn(20)
    with pytest.raises(ValueError, match="factor must be classes or hessian, got 'full'"):
        SoftmaxHead(factor="full")
    monkeypatch.setattr(preconditioners, "HESSIAN_NUMBERS", 28**2 - 1)
    with pytest.raises(ValueError, match="of 28 weights takes 0 GiB; use factor: classes"):
        SoftmaxHead(factor="hessian").fit(z, y, CLASSES).prepare()


def test_rows_that_were_never_added_are_refused_with_nothing_changed():
    z, y = drawn(30)
    head = SoftmaxHead(RIDGE).fit(z, y, CLASSES)
    before = head.weights_.clone()
    for bad_z, bad_y in ((z[:1] + 1e-9, y[:1]), (z[:1], (y[:1] + 1) % CLASSES), (z[[3, 3]], y[[3, 3]])):
        with pytest.raises(DataError, match="is not among the 30 rows"):
            head.remove(bad_z, bad_y)
    assert torch.equal(head.weights_, before) and head.n_ == 30
    head.remove(z[[7, 2]], y[[7, 2]])
    with pytest.raises(DataError, match=r"row 0 .* not among the 28 rows"):
        head.remove(z[[2]], y[[2]])


def test_too_few_steps_to_converge_are_reported():
    z, y = drawn(100)
    head = SoftmaxHead(1e-6, tol=1e-12, steps=1).fit(z, y, CLASSES)
    assert not head.converged_ and head.bound_ == head.gradient_norm_ / 1e-6


def test_a_loaded_head_goes_on_from_rows_it_is_given(tmp_path):
    z, y = drawn(200)
    head = SoftmaxHead(RIDGE, tol=1e-9).fit(z, y, CLASSES).prepare()
    head.save(tmp_path)
    again = SoftmaxHead.load(tmp_path)
    assert torch.equal(again.weights_, head.weights_) and again.bound_ == head.bound_
    with pytest.raises(DataError, match="has no rows"):
        again.remove(z[:5], y[:5])
    again.refit(z[5:], y[5:])
    assert again.converged_ and within_bound(again, reference(z[5:], y[5:]))
    assert torch.equal(again.counts_, torch.bincount(y[5:], minlength=CLASSES))
    (tmp_path / "softmax_head.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read as a softmax head"):
        SoftmaxHead.load(tmp_path)


def test_what_is_saved_after_a_removal_holds_no_moments_of_the_rows(tmp_path):
    """The preconditioner consists of second moments of rows, so it must not be saved after a removal.

    A refit of a head saved without it must still find the optimum.
    """
    z, y = drawn(200)
    head = SoftmaxHead(RIDGE, tol=1e-9).fit(z, y, CLASSES).prepare()
    head.save(tmp_path)
    assert "blocks" in load_file(tmp_path / "softmax_head.safetensors")
    loaded = SoftmaxHead.load(tmp_path).refit(z[5:], y[5:])
    head.remove(z[:5], y[:5])
    for one in (loaded, head):
        one.save(tmp_path)
        assert set(load_file(tmp_path / "softmax_head.safetensors")) == {"weights", "counts"}
        again = SoftmaxHead.load(tmp_path).refit(z[9:], y[9:])
        assert within_bound(again, reference(z[9:], y[9:]))
