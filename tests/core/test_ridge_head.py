"""After any sequence of changes the ridge head equals a fit from scratch.

The references are the normal equations in numpy and, for leave-one-out values, models refitted without each row.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core import RidgeHead, cholesky
from expunge.core.cholesky import Factor, rank_update
from expunge.core.logit_mask import MASKED_BIAS
from expunge.system.errors import CheckpointError, DataError

CLASSES, DIM = 4, 6


def drawn(n: int, seed: int = 0, dim: int = DIM) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    z = torch.randn(n, dim, generator=generator, dtype=torch.float64) + 2.0 * torch.eye(CLASSES, dim)[y].double()
    return z, y


def reference(z: torch.Tensor, y: torch.Tensor, ridge: float) -> np.ndarray:
    """Return the solution of the normal equations by numpy."""
    h = np.hstack([z.double().numpy(), np.ones((len(z), 1))])
    onehot = np.eye(CLASSES)[y.numpy()]
    return np.linalg.solve(h.T @ h + ridge * np.eye(h.shape[1]), h.T @ onehot)


def near(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray, rtol: float = 1e-9) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return float((a - b).norm()) <= rtol * max(float(b.norm()), 1e-12)


@pytest.mark.parametrize("ridge", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("n", [0, 3, 200])
def test_a_fit_equals_numpy(ridge, n):
    z, y = drawn(n)
    head = RidgeHead(ridge).fit(z, y, CLASSES)
    assert near(head.weights_, reference(z, y, ridge))
    assert head.n_ == n
    expected = head.weights_.T / head.temperature_
    torch.testing.assert_close(head.head_.weight, expected[:, :-1].float())
    present = torch.bincount(y, minlength=CLASSES) > 0
    torch.testing.assert_close(head.head_.bias[present], expected[present, -1].float())
    assert (head.head_.bias[~present] == MASKED_BIAS).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_sequence_of_changes_equals_a_fit_from_scratch(data):
    """The sequences vary the order and the batches, repeat rows, empty and refill classes, and remove all rows.

    On the way, pending rows are merged into the factor.
    """
    z, y = drawn(60, seed=data.draw(st.integers(0, 5), label="seed"))
    z[10:20] = z[10]  # The same row occurs ten times.
    y[10:20] = y[10]
    head, inside = RidgeHead(0.5).fit(z[:40], y[:40], CLASSES), set(range(40))
    for _ in range(data.draw(st.integers(1, 12), label="changes")):
        adding = data.draw(st.booleans(), label="add")
        pool = sorted(set(range(60)) - inside if adding else inside)
        if data.draw(st.integers(0, 3), label="whole class") == 0:
            c = data.draw(st.integers(0, CLASSES - 1))
            rows = [i for i in pool if int(y[i]) == c]
        else:
            rows = data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=8)) if pool else []
        if adding:
            head.add(z[rows], y[rows])
            inside |= set(rows)
        else:
            head.remove(z[rows], y[rows])
            inside -= set(rows)
        retained = sorted(inside)
        assert near(head.weights_, reference(z[retained], y[retained], 0.5))
        assert torch.equal(head.counts_, torch.bincount(y[retained], minlength=CLASSES))


@pytest.mark.parametrize(("dim", "batch"), [(20, 3), (700, 7), (700, 40)])
def test_many_requests_do_not_drift(dim, batch):
    """Pending rows are merged by a new factorisation at 20 dimensions, and by blocked rotations at 700."""
    z, y = drawn(1200, dim=dim)
    head = RidgeHead(1.0).fit(z, y, CLASSES)
    for start in range(0, 600, batch):
        head.remove(z[start : start + batch], y[start : start + batch])
    left = 600 - 600 % -batch if 600 % batch else 600
    fresh = RidgeHead(1.0).fit(z[left:], y[left:], CLASSES)
    assert near(head.weights_, fresh.weights_)
    assert near(head.weights_, reference(z[left:], y[left:], 1.0))


def test_a_thousand_people_one_by_one_at_constant_cost(monkeypatch):
    """The test counts factorisations, factor updates and solves, because times would depend on the machine.

    Each person has one to five rows, in several classes.
    """
    counts: Counter[str] = Counter()

    def count(owner, name):
        real = getattr(owner, name)

        def counting(*arguments):
            counts[name] += 1
            return real(*arguments)

        monkeypatch.setattr(owner, name, counting)

    dim, people = 60, 1000
    rows = torch.arange(people) % 5 + 1
    ends = torch.cumsum(rows, 0).tolist()
    z, y = drawn(ends[-1] + 400, dim=dim)
    head = RidgeHead(1.0).fit(z, y, CLASSES)
    for name in ("fresh", "solve", "prepare"):
        count(Factor, name)
    count(cholesky, "rank_update")
    halves, start = [], 0
    for person, end in enumerate(ends):
        head.remove(z[start:end], y[start:end])
        start = end
        if person % 100 == 99:
            fresh = RidgeHead(1.0).fit(z[end:], y[end:], CLASSES)
            counts["fresh"] -= 1
            counts["solve"] -= 1
            assert near(head.weights_, fresh.weights_, 1e-8)
        if person % 500 == 499:
            halves.append(Counter(counts))
    assert near(head.weights_, reference(z[end:], y[end:], 1.0), 1e-8)
    assert head.n_ == 400 and head.rebuilds_ == 0
    first, second = halves[0], halves[1] - halves[0]
    # The factor is computed again or updated once in `limit` rows. A request solves for its own rows, and at most once
    # more to refine the solution.
    limit = Factor(torch.eye(dim + 1, dtype=torch.float64)).limit
    for half in (first, second):
        assert half["fresh"] + half["rank_update"] <= 1500 / (limit - 5) + 1
        assert half["prepare"] == 500 and half["solve"] <= 500
    assert abs(first["fresh"] - second["fresh"]) <= 1


def test_nothing_is_left_of_an_emptied_class():
    """Rounding errors must go too, since in a class without rows they would come from the erased rows alone."""
    z, y = drawn(200)
    rows = (y == 2).nonzero()[:, 0]
    head = RidgeHead(1.0).fit(z, y, CLASSES)
    for row in rows.tolist():
        head.remove(z[[row]], y[[row]])
    assert not head.sums.by_class[:, 2].any() and head.sums.squares[2] == 0
    assert not head.weights_[:, 2].any() and not head.head_.weight[2].any()


@pytest.mark.parametrize("p", [5, 64, 150])
@pytest.mark.parametrize("k", [1, 9, 80])
def test_the_cholesky_factor_follows_updates_and_downdates(p, k):
    generator = torch.Generator().manual_seed(p)
    a = torch.randn(400, p, generator=generator, dtype=torch.float64)
    rows = torch.randn(k, p, generator=generator, dtype=torch.float64)
    matrix = a.T @ a
    upper = torch.linalg.cholesky(matrix, upper=True).contiguous()
    assert rank_update(upper, rows, 1)
    torch.testing.assert_close(upper, torch.linalg.cholesky(matrix + rows.T @ rows, upper=True), rtol=1e-10, atol=1e-9)
    assert rank_update(upper, rows, -1)
    torch.testing.assert_close(upper.T @ upper, matrix, rtol=1e-9, atol=1e-8)
    assert not rank_update(upper, 100 * rows, -1)


def test_rows_that_wait_for_an_update_count_in_solutions():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(300, dtype=torch.float64) * 3
    rows = torch.randn(30, 300, generator=generator, dtype=torch.float64) / 10
    factor = Factor(matrix)
    for part, sign in ((rows[:8], 1), (rows[8:20], 1), (rows[:8], -1), (rows[20:], 1)):
        _, base = factor.prepare(part)
        matrix = matrix + sign * part.T @ part
        factor.push(part, base, sign, lambda matrix=matrix: matrix)
        assert factor.waiting
        right = torch.ones(300, 2, dtype=torch.float64)
        torch.testing.assert_close(matrix @ factor.solve(right), right)


def test_a_streamed_fit_of_float32_rows_equals_a_fit_at_once():
    z, y = drawn(100)
    z = z.float()
    whole = RidgeHead().fit(z, y, CLASSES)
    parts = RidgeHead()
    for start in range(0, 100, 30):
        parts.update(z[start : start + 30], y[start : start + 30], CLASSES)
    with pytest.raises(AttributeError, match="call solve"):
        parts.remove(z[:1], y[:1])
    assert near(parts.solve().weights_, whole.weights_)
    with pytest.raises(AttributeError, match="head_ yet"):
        _ = parts.update(z[:1], y[:1]).head_


def test_quantised_sums_give_the_same_bits():
    z, y = drawn(300)
    head = RidgeHead(quantum=2.0**-10).fit(z, y, CLASSES)
    for start in range(0, 100, 4):
        head.remove(z[start : start + 4], y[start : start + 4])
    head.add(z[:7], y[:7]).remove(z[:7], y[:7])
    fresh = RidgeHead(quantum=2.0**-10).fit(z[100:], y[100:], CLASSES)
    assert torch.equal(head.sums.second, fresh.sums.second)
    assert torch.equal(head.solve().weights_, fresh.weights_)
    # Rounding changes the weights little.
    assert near(fresh.weights_, RidgeHead().fit(z[100:], y[100:], CLASSES).weights_, 1e-2)
    with pytest.raises(DataError, match="no longer exact"):
        RidgeHead(quantum=2.0**-30).fit(z, y, CLASSES)
    with pytest.raises(ValueError, match="power of two"):
        RidgeHead(quantum=0.3).fit(z, y, CLASSES)


def refitted_without(z, y, rows, ridge):
    keep = torch.ones(len(y), dtype=torch.bool)
    keep[rows] = False
    weights = torch.from_numpy(reference(z[keep], y[keep], ridge))
    h = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], dim=1)
    return (torch.eye(CLASSES, dtype=torch.float64)[y] - h @ weights)[rows]


def test_leave_one_out_equals_models_without_the_row():
    z, y = drawn(40)
    head = RidgeHead(0.3).fit(z, y, CLASSES)
    loo = head.leave_one_out_
    for i in range(40):
        torch.testing.assert_close(loo.residuals[i : i + 1], refitted_without(z, y, [i], 0.3))
    own = refitted_without(z, y, [], 0.3)
    assert own.shape == (0, CLASSES)
    h = torch.cat([z, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    change = loo.residuals - (torch.eye(CLASSES, dtype=torch.float64)[y] - h @ head.weights_)
    torch.testing.assert_close(loo.scores, change.norm(dim=1))
    head.remove(z[:3], y[:3])
    with pytest.raises(DataError, match="does not keep rows"):
        _ = head.leave_one_out_
    again = head.leave_one_out(z[3:], y[3:])
    torch.testing.assert_close(again.residuals, RidgeHead(0.3).fit(z[3:], y[3:], CLASSES).leave_one_out_.residuals)


def test_press_and_gcv_equal_brute_force():
    z, y = drawn(60)
    z[:, 3:] *= 5
    # With random labels a large ridge is best.
    y = torch.randint(0, CLASSES, (60,), generator=torch.Generator().manual_seed(1))
    grid = (0.01, 1.0, 30.0, 1000.0)
    press, gcv = {}, {}
    for ridge in grid:
        left_out = torch.cat([refitted_without(z, y, [i], ridge) for i in range(60)])
        press[ridge] = float(left_out.square().sum())
        h = np.hstack([z.numpy(), np.ones((60, 1))])
        hat = h @ np.linalg.solve(h.T @ h + ridge * np.eye(DIM + 1), h.T)
        residual = np.eye(CLASSES)[y.numpy()] - hat @ np.eye(CLASSES)[y.numpy()]
        gcv[ridge] = 60 * float((residual**2).sum()) / (60 - np.trace(hat)) ** 2
    assert RidgeHead("press", grid=grid).fit(z, y, CLASSES).ridge_ == min(press, key=press.get)
    assert RidgeHead("gcv", grid=grid).fit(z, y, CLASSES).ridge_ == min(gcv, key=gcv.get)
    assert min(press, key=press.get) != grid[0]


@pytest.mark.parametrize("ridge", ["press", "gcv"])
def test_choices_of_ridge_are_those_of_the_remaining_rows(ridge):
    """Noisy rows favour a large ridge. Once they are removed, the choice must be that of the other rows."""
    z, y = drawn(80)
    noise = torch.randint(0, CLASSES, (40,), generator=torch.Generator().manual_seed(1))
    z, y = torch.cat([z, 20 * z[:40].roll(1, 1)]), torch.cat([y, noise])
    grid = (1e-2, 1.0, 1e2, 1e4)
    head = RidgeHead(ridge, "leave-one-out", grid=grid).fit(z, y, CLASSES)
    fresh = RidgeHead(ridge, "leave-one-out", grid=grid).fit(z[:80], y[:80], CLASSES)
    with pytest.raises(DataError, match="give kept"):
        head.remove(z[80:], y[80:])
    with pytest.raises(DataError, match="79 rows, but the head has 80"):
        head.remove(z[80:], y[80:], kept=(z[:79], y[:79]))
    for start in range(80, 120, 10):
        head.remove(z[start : start + 10], y[start : start + 10], kept=(
            torch.cat([z[:80], z[start + 10 :]]), torch.cat([y[:80], y[start + 10 :]]),
        ))  # fmt: skip
    assert head.ridge_ == fresh.ridge_
    assert head.temperature_ == pytest.approx(fresh.temperature_, rel=1e-9)
    assert near(head.weights_, fresh.weights_)


def test_the_temperature_minimises_the_leave_one_out_loss():
    z, y = drawn(200)
    head = RidgeHead(1.0, "leave-one-out").fit(z, y, CLASSES)
    scores = torch.eye(CLASSES, dtype=torch.float64)[y] - head.leave_one_out_.residuals

    def loss(t):
        return float(torch.nn.functional.cross_entropy(scores / t, y))

    t = head.temperature_
    assert loss(t) <= min(loss(t * f) for f in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0))
    p = head.predict_proba(z)
    torch.testing.assert_close(p.sum(1), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(p, head.head_.logits(z).softmax(1), rtol=1e-4, atol=1e-5)


def test_rows_that_were_never_added_are_refused_with_nothing_changed():
    z, y = drawn(50)
    head = RidgeHead(0.1).fit(z, y, CLASSES)
    before = head.weights_.clone(), head.sums.second.clone()
    stranger = 30 * torch.ones(1, DIM, dtype=torch.float64)
    with pytest.raises(DataError, match="not among"):
        head.remove(stranger, y[:1])
    other = z[:1] + torch.tensor([[0, 0, 0, 0, 9.0, 9.0]])
    with pytest.raises(DataError, match="not among"):
        head.remove(other.repeat(3, 1), y[:1].repeat(3))
    own = (y == 0).nonzero()[:, 0]
    with pytest.raises(DataError, match=r"rows of class 0 are to be removed, but the head has only"):
        head.remove(z[own].repeat(2, 1), y[own].repeat(2))
    moved = z[own] + 0.01
    with pytest.raises(DataError, match="rows of class 0"):
        head.remove(moved, y[own])
    with pytest.raises(DataError, match="row 0 has label 9"):
        head.remove(z[:1], torch.tensor([9]))
    with pytest.raises(DataError, match="row 1 of the features contains NaN"):
        head.add(torch.stack([z[0], z[1] * float("nan")]), y[:2])
    assert torch.equal(head.weights_, before[0]) and torch.equal(head.sums.second, before[1])


def test_saved_and_loaded_heads_go_on_alike(tmp_path):
    z, y = drawn(90)
    head = RidgeHead(0.7, "leave-one-out").fit(z, y, CLASSES)
    head.save(tmp_path)
    again = RidgeHead.load(tmp_path)
    assert again.get_params() == head.get_params()
    assert torch.equal(again.head_.weight, head.head_.weight) and again.temperature_ == head.temperature_
    retained = (z[5:], y[5:])
    assert near(again.remove(z[:5], y[:5], retained).weights_, reference(*retained, 0.7))
    assert not any(b"pickle" in f.read_bytes() for f in tmp_path.iterdir())
    (tmp_path / "ridge_head.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a readable ridge head"):
        RidgeHead.load(tmp_path)


def test_bad_settings_are_refused():
    for bad in ({"ridge": 0.0}, {"ridge": "loo"}, {"temperature": -1.0}, {"grid": ()}):
        with pytest.raises(ValueError):
            RidgeHead(**bad)


def other_labels(y: torch.Tensor, rows: torch.Tensor, shift: int = 1) -> torch.Tensor:
    new = y.clone()
    new[rows] = (y[rows] + shift) % CLASSES
    return new


@pytest.mark.parametrize("count", [1, 5, 60])
@pytest.mark.parametrize("settings_", [{}, {"ridge": "gcv"}, {"ridge": "press"}, {"temperature": "leave-one-out"}])
def test_corrected_labels_equal_numpy_and_a_fit_from_scratch(count, settings_):
    z, y = drawn(200)
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(3))[:count]
    new = other_labels(y, rows)
    head = RidgeHead(**settings_).fit(z, y, CLASSES)
    before = head.weights_.clone()
    head.correct(z[rows], y[rows], new[rows], (z, new) if head.needs_rows else None)
    fresh = RidgeHead(**settings_).fit(z, new, CLASSES)
    assert near(head.weights_, reference(z, new, head.ridge_)) and near(head.weights_, fresh.weights_)
    assert (head.ridge_, head.n_) == (fresh.ridge_, 200) and head.temperature_ == pytest.approx(fresh.temperature_)
    assert torch.equal(head.counts_, fresh.counts_)
    assert not near(before, head.weights_, 1e-4)


def test_with_a_quantum_corrected_sums_have_the_bits_of_a_fit_and_the_reverse_restores_them():
    z, y = drawn(200)
    rows, head = torch.arange(0, 40), RidgeHead(quantum=2.0**-10)
    first = head.fit(z, y, CLASSES).weights_.clone()
    new = other_labels(y, rows)
    head.correct(z[rows], y[rows], new[rows])
    fresh = RidgeHead(quantum=2.0**-10).fit(z, new, CLASSES)
    assert torch.equal(head.weights_, fresh.weights_) and torch.equal(head.sums.squares, fresh.sums.squares)
    head.correct(z[rows], new[rows], y[rows])
    assert torch.equal(head.weights_, first)


def test_a_class_can_be_emptied_by_corrections():
    z, y = drawn(100)
    rows = (y == 2).nonzero()[:, 0]
    new = other_labels(y, rows)
    head = RidgeHead().fit(z, y, CLASSES).correct(z[rows], y[rows], new[rows])
    assert int(head.counts_[2]) == 0 and float(head.head_.bias[2]) == MASKED_BIAS
    assert near(head.weights_, reference(z, new, 1.0))


def test_corrections_of_rows_that_were_never_added_change_nothing():
    z, y = drawn(50)
    head = RidgeHead().fit(z, y, CLASSES)
    before = head.sums.by_class.clone()
    with pytest.raises(DataError, match="not among those of this head"):
        head.correct(100 * z[:3], y[:3], (y[:3] + 1) % CLASSES)
    with pytest.raises(DataError, match="has label 4"):
        head.correct(z[:1], y[:1], torch.tensor([CLASSES]))
    assert torch.equal(head.sums.by_class, before)
