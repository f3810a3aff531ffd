"""One step of influence functions is compared with heads fitted from scratch to the changed rows, and with autograd."""

from __future__ import annotations

import pytest
import torch

from expunge.core import LinearHead, RidgeHead, SoftmaxHead
from expunge.core.influence import FirstOrder, Rows, SecondOrder
from expunge.core.logit_mask import MASKED_BIAS
from expunge.system.errors import ConfigError, DataError

N, DIM, CLASSES, RIDGE = 200, 6, 4, 1e-2


def rows(seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (N,), generator=generator)
    return torch.randn(N, DIM, generator=generator, dtype=torch.float64) + torch.eye(CLASSES, DIM)[y].double(), y


def parts(change: str, count: int = 20) -> tuple[Rows, Rows, Rows | None]:
    """Return the rows that stay, the rows that go, and what replaces them.

    The replacement has other labels or other features, is the same rows again, or is None.
    """
    z, y = rows()
    new = {
        "labels": (z[:count], (y[:count] + 1) % CLASSES),
        "features": (z[:count].flip(1), y[:count]),
        "removed": None,
        "same": (z[:count], y[:count]),
    }
    return (z[count:], y[count:]), (z[:count], y[:count]), new[change]


def after(kept: Rows, new: Rows | None) -> Rows:
    return kept if new is None else (torch.cat([kept[0], new[0]]), torch.cat([kept[1], new[1]]))


def optimum(loss: str, of: Rows, ridge: float = RIDGE) -> torch.Tensor:
    """Return the weights `(C, d + 1)` of the fitted ridge head (squared loss) or softmax head."""
    if loss == "squared":
        return RidgeHead(ridge * len(of[1]), temperature=0.5).fit(*of, CLASSES).weights_.T / 0.5
    return SoftmaxHead(ridge, tol=1e-13).fit(*of, CLASSES).weights_


@pytest.mark.parametrize("change", ["labels", "features", "removed"])
def test_the_second_order_step_of_the_squared_loss_is_a_fit_from_scratch(change: str) -> None:
    retain, forget, new = parts(change)
    start, wanted = optimum("squared", rows()), optimum("squared", after(retain, new))
    moved = SecondOrder("squared", RIDGE, 0.5).move(start, retain, forget, new)
    assert float((moved - wanted).norm()) <= 1e-10 * float(wanted.norm())
    assert float((start - wanted).norm()) > 1e-3 * float(wanted.norm())


@pytest.mark.parametrize("change", ["labels", "features", "removed"])
def test_the_error_of_the_softmax_step_falls_with_the_square_of_the_change(change: str) -> None:
    start = optimum("softmax", rows())
    left = []
    for count in (2, 4, 8):
        retain, forget, new = parts(change, count)
        wanted = optimum("softmax", after(retain, new))
        moved = SecondOrder(ridge=RIDGE).move(start, retain, forget, new)
        left.append((float((moved - wanted).norm()), float((start - wanted).norm())))
    assert all(error < 0.2 * distance for error, distance in left)
    ratios = [error / distance**2 for error, distance in left]
    assert max(ratios) < 5 * min(ratios)


@pytest.mark.parametrize("loss", ["softmax", "squared"])
@pytest.mark.parametrize("order", [FirstOrder, SecondOrder])
def test_replacing_rows_by_themselves_changes_nothing(order: type[FirstOrder] | type[SecondOrder], loss: str) -> None:
    start = optimum(loss, rows())
    moved = order(loss=loss, ridge=RIDGE, temperature=0.5).move(start, *parts("same"))  # type: ignore[arg-type]
    torch.testing.assert_close(moved, start, rtol=0, atol=1e-12)


def test_a_correction_and_its_reverse_restore_the_head() -> None:
    retain, forget, new = parts("labels")
    assert new is not None
    start, method = optimum("squared", rows()), SecondOrder("squared", RIDGE, 0.5)
    back = method.move(method.move(start, retain, forget, new), retain, new, forget)
    torch.testing.assert_close(back, start, rtol=0, atol=1e-10)


@pytest.mark.parametrize("change", ["labels", "features", "removed"])
@pytest.mark.parametrize("loss", ["softmax", "squared"])
def test_the_first_order_is_a_gradient_step_on_the_rows_after(loss: str, change: str) -> None:
    """Autograd differentiates the whole objective. At the old optimum only the change contributes to its gradient."""
    retain, forget, new = parts(change)
    start, (z, y) = optimum(loss, rows()), after(retain, new)
    w = start.clone().requires_grad_(True)
    logits = z @ w[:, :-1].T + w[:, -1]
    losses = (
        torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        if loss == "softmax"
        else 0.5 * (logits - 2 * torch.nn.functional.one_hot(y, CLASSES)).square().sum()
    )
    (gradient,) = torch.autograd.grad(losses + 0.5 * RIDGE * len(y) * w.square().sum(), w)
    moved = FirstOrder(rate=1e-3, loss=loss, ridge=RIDGE, temperature=0.5).move(start, retain, forget, new)  # type: ignore[arg-type]
    torch.testing.assert_close(moved, start - 1e-3 * gradient, rtol=0, atol=1e-8)


@pytest.mark.parametrize("loss", ["softmax", "squared"])
def test_the_default_rate_goes_towards_the_optimum_and_not_too_far(loss: str) -> None:
    retain, forget, new = parts("labels")
    start, wanted = optimum(loss, rows()), optimum(loss, after(retain, new))
    method = FirstOrder(loss=loss, ridge=RIDGE, temperature=0.5)  # type: ignore[arg-type]
    moved = method.move(start, retain, forget, new)
    assert 0 < float((moved - wanted).norm()) < float((start - wanted).norm())
    twice = FirstOrder(rate=20 * method.rate_, loss=loss, ridge=RIDGE, temperature=0.5)  # type: ignore[arg-type]
    assert float((twice.move(start, retain, forget, new) - wanted).norm()) > float((moved - wanted).norm())


def test_masked_classes_stay_masked_and_the_remaining_gradient_is_reported() -> None:
    z, y = rows()
    few = y < 3
    softmax = SoftmaxHead(RIDGE, tol=1e-10).fit(z[few], y[few], CLASSES)
    retain, forget = (z[few][5:], y[few][5:]), (z[few][:5], y[few][:5])
    fitted = SecondOrder(ridge=RIDGE).fit(softmax.head_, retain, forget)
    assert float(fitted.head_.bias[3]) == MASKED_BIAS
    assert torch.equal(fitted.head_.weight[3], softmax.head_.weight[3])
    assert not torch.equal(fitted.head_.weight[:3], softmax.head_.weight[:3])
    assert 0 < fitted.gradient_norm_ < FirstOrder(ridge=RIDGE).fit(softmax.head_, retain, forget).gradient_norm_


def test_impossible_changes_are_refused() -> None:
    z, y = rows()
    head = LinearHead(torch.zeros(CLASSES, DIM), torch.zeros(CLASSES))
    with pytest.raises(DataError, match="no row would be left"):
        SecondOrder().fit(head, (z[:0], y[:0]), (z, y))
    for wrong in ({"ridge": 0.0}, {"loss": "hinge"}, {"temperature": -1.0}, {"tol": 2.0}):
        with pytest.raises((ValueError, ConfigError)):
            SecondOrder(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate 0"):
        FirstOrder(rate=0.0)
