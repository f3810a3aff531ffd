"""Rows of a head replaced or taken out by one step of influence functions (Warnecke et al., arXiv 2108.11577).

The head minimises `sum_i l(W h_i, y_i) + ridge n / 2 |W|^2` over its n rows, `h = [z; 1]`. At the optimum of the rows
before, the gradient over the n' rows after is that of the change alone,

    g = sum over new rows of grad l - sum over replaced rows of grad l + ridge (n' - n) W

First order: `W - rate g`. Second order: `W - H^-1 g` with the Hessian over the rows after: the paper's Hessian over the
rows before is the same where only labels change, and wrong where features do. [derived]
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.head import LinearHead
from expunge.core.head_refit import hessian_guess
from expunge.core.logit_mask import MASKED_BIAS
from expunge.core.newton_cg import SoftmaxProblem, conjugate_gradients
from expunge.core.representation import check_choice
from expunge.system.errors import DataError

Rows = tuple[Tensor, Tensor]  # features (n, d) and labels (n,)


class _Influence(Estimator):
    """What both orders share.

    loss         "softmax": cross-entropy; "squared": `|W h - onehot(y) / temperature|^2 / 2`, a ridge head's
    ridge        on the mean of the loss: that of the head. A SoftmaxHead's own; a RidgeHead's divided by its rows
    temperature  of a ridge head; the softmax loss has none

    Fitted: `head_`; `gradient_norm_`, of the mean over the rows after, which is 0 where the head is their optimum.
    """

    head_: LinearHead
    gradient_norm_: float

    def __init__(
        self, loss: Literal["softmax", "squared"] = "softmax", ridge: float = 1e-4, temperature: float = 1.0
    ) -> None:
        check_choice("loss", loss, ("softmax", "squared"))
        if not (ridge > 0 and temperature > 0):
            raise ValueError(f"ridge {ridge} and temperature {temperature} must be above 0")
        self.loss = loss
        self.ridge = ridge
        self.temperature = temperature

    def fit(self, head: LinearHead, kept: Rows, gone: Rows, new: Rows | None = None) -> _Influence:
        """`gone` are replaced by `new`, or taken out where that is None; `kept` are the other rows of `head`.

        Raises DataError where no row is left.
        """
        start = torch.cat([head.weight, head.bias[:, None]], dim=1).double()
        moved = self.move(start, kept, gone, new)
        self.head_ = LinearHead(moved[:, :-1], moved[:, -1])
        after = _joined(kept, new)
        slope = self._gradient(moved, after) / len(after[1]) + self.ridge * moved
        self.gradient_norm_ = float(slope[_present(start)].norm())
        return self

    @torch.no_grad()
    def move(self, w: Tensor, kept: Rows, gone: Rows, new: Rows | None = None) -> Tensor:
        """The weights `(C, d + 1)` float64 after the change, of those before; classes that are masked stay so."""
        after = _joined(kept, new)
        if not len(after[1]):
            raise DataError("every row would be gone; a head needs some")
        grown = len(after[1]) - len(kept[1]) - len(gone[1])
        gradient = self.ridge * grown * w - self._gradient(w, gone)
        if new is not None:
            gradient = gradient + self._gradient(w, new)
        return w - self._step(w, gradient * _present(w)[:, None], after)

    def _gradient(self, w: Tensor, rows: Rows) -> Tensor:
        """The sum over rows of the gradient of the loss, `(C, d + 1)` float64."""
        z, y = rows[0].double(), rows[1].long()
        if self.loss == "softmax":
            return SoftmaxProblem(z, y, 0.0).at(w).gradient * len(y)
        h = _augmented(z)
        return (h @ w.T - one_hot(y, len(w)) / self.temperature).T @ h

    def _step(self, w: Tensor, gradient: Tensor, after: Rows) -> Tensor:
        raise NotImplementedError


class FirstOrder(_Influence):
    """`W - rate g`.

    rate  on the sum of gradients [paper: 2e-5]; None: 1 / (n' L), L the largest curvature that the mean loss can have,
          so that no step goes too far [derived]: `ridge + lambda_max(mean h h^T)`, half of the latter for softmax

    Other arguments, and what is fitted, as in the module. Fitted besides: `rate_`.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows", "corrections"),
        ("features", "retained rows"),
        "head",
        "closed form",
        "arXiv 2108.11577; rate: derived",
    )
    rate_: float

    def __init__(
        self,
        rate: float | None = None,
        loss: Literal["softmax", "squared"] = "softmax",
        ridge: float = 1e-4,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(loss, ridge, temperature)
        if rate is not None and rate <= 0:
            raise ValueError(f"rate {rate} must be above 0")
        self.rate = rate

    def _step(self, w: Tensor, gradient: Tensor, after: Rows) -> Tensor:
        self.rate_ = self.rate or 1 / (len(after[1]) * self._steepest(after[0]))
        return self.rate_ * gradient

    def _steepest(self, z: Tensor) -> float:
        h = _augmented(z.double())
        largest = float(torch.linalg.eigvalsh(h.T @ h / len(h))[-1])
        return self.ridge + (0.5 * largest if self.loss == "softmax" else largest)


class SecondOrder(_Influence):
    """`W - H^-1 g`: exact for the squared loss; what is left for softmax falls with the square of the change.

    tol  of the linear system, relative, for softmax; the squared loss is solved directly

    Other arguments, and what is fitted, as in the module.
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows", "corrections"),
        ("features", "retained rows"),
        "head",
        "features only",
        "arXiv 2108.11577; Hessian of the rows after: derived",
    )

    def __init__(
        self,
        loss: Literal["softmax", "squared"] = "softmax",
        ridge: float = 1e-4,
        temperature: float = 1.0,
        tol: float = 1e-10,
    ) -> None:
        super().__init__(loss, ridge, temperature)
        if not 0 < tol < 1:
            raise ValueError(f"tol {tol} must lie between 0 and 1")
        self.tol = tol

    def _step(self, w: Tensor, gradient: Tensor, after: Rows) -> Tensor:
        z, right = after[0].double(), gradient / len(after[1])
        x, eye = _augmented(z), torch.eye(w.shape[1], dtype=torch.float64, device=w.device)
        if self.loss == "squared":
            solved: Tensor = torch.linalg.solve(x.T @ x / len(x) + self.ridge * eye, right.T).T
            return solved
        problem = SoftmaxProblem(z, after[1].long(), self.ridge)
        factor = torch.linalg.cholesky(hessian_guess(x, w, self.ridge * eye.diagonal()))
        hessian = problem.hessian(problem.at(w).probabilities)
        tol = self.tol * float(right.norm())
        return conjugate_gradients(hessian, right, lambda r: torch.cholesky_solve(r.T, factor).T, tol)[0]


def _augmented(z: Tensor) -> Tensor:
    return torch.cat([z, z.new_ones(len(z), 1)], dim=1)


def _present(w: Tensor) -> Tensor:
    """Classes whose logits are not masked, bool `(C,)`."""
    return w[:, -1] > MASKED_BIAS


def _joined(kept: Rows, new: Rows | None) -> Rows:
    return kept if new is None else (torch.cat([kept[0], new[0]]), torch.cat([kept[1].long(), new[1].long()]))
