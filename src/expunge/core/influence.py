"""Replace or remove rows of a head by one step of influence functions (Warnecke et al., arXiv 2108.11577).

The head minimises `sum_i l(W h_i, y_i) + ridge n / 2 |W|^2` over its n rows, `h = [z; 1]`. At the optimum for the rows
before the change, the gradient over the n' rows after it consists of the changed rows alone:

    g = sum over new rows of grad l - sum over replaced rows of grad l + ridge (n' - n) W

First order is `W - rate g`. Second order is `W - H^-1 g`, with the Hessian over the rows after the change. The paper's
Hessian is over the rows before: it is the same where only labels change, and wrong where features change. [derived]
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
    """Base class of the first- and the second-order step.

    loss         "softmax": cross-entropy; "squared": `|W h - onehot(y) / temperature|^2 / 2`, that of a ridge head
    ridge        the penalty of the head, on the mean of the loss: the ridge of a SoftmaxHead, or the ridge of a
                 RidgeHead divided by its number of rows
    temperature  of a ridge head; not used by the softmax loss

    Fitted: `head_`, and `gradient_norm_`, the norm of the mean gradient over the rows after the change. It is 0 where
    the head is their optimum.
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
        """Replace the rows `gone` by `new`, or remove them where `new` is None; `kept` are the other rows of `head`.

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
        """Return the weights `(C, d + 1)` float64 after the change, from `w` before it; masked classes do not change.

        Raises DataError where no row is left.
        """
        after = _joined(kept, new)
        if not len(after[1]):
            raise DataError("every row would be gone; a head needs some")
        grown = len(after[1]) - len(kept[1]) - len(gone[1])
        gradient = self.ridge * grown * w - self._gradient(w, gone)
        if new is not None:
            gradient = gradient + self._gradient(w, new)
        return w - self._step(w, gradient * _present(w)[:, None], after)

    def _gradient(self, w: Tensor, rows: Rows) -> Tensor:
        """Return the gradient of the loss without the ridge, summed over rows, `(C, d + 1)` float64."""
        z, y = rows[0].double(), rows[1].long()
        if self.loss == "softmax":
            return SoftmaxProblem(z, y, 0.0).at(w).gradient * len(y)
        h = _augmented(z)
        return (h @ w.T - one_hot(y, len(w)) / self.temperature).T @ h

    def _step(self, w: Tensor, gradient: Tensor, after: Rows) -> Tensor:
        raise NotImplementedError


class FirstOrder(_Influence):
    """The first-order step `W - rate g`.

    rate  on the sum of gradients [paper: 2e-5]. None takes 1 / (n' L), with L an upper bound of the curvature of the
          mean loss, so that the step cannot overshoot: `ridge + lambda_max(mean h h^T)`, with half of `lambda_max` for
          softmax [derived]

    Other arguments and fitted attributes as in the base class. Also fitted: `rate_`.
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
    """The second-order step `W - H^-1 g`.

    It is exact for the squared loss. For softmax the error falls with the square of the change.

    tol  relative residual of the linear system, for softmax; for the squared loss it is solved directly

    Other arguments and fitted attributes as in the base class.
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
    """Whether the logits of each class are not masked, bool `(C,)`."""
    return w[:, -1] > MASKED_BIAS


def _joined(kept: Rows, new: Rows | None) -> Rows:
    return kept if new is None else (torch.cat([kept[0], new[0]]), torch.cat([kept[1].long(), new[1].long()]))
