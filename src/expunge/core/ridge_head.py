"""A ridge classifier in closed form, from which rows are removed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.core.cholesky import Factor, refined
from expunge.core.class_sums import MEMBERSHIP, NOT_AMONG, ClassSums, as_labelled, check_members
from expunge.core.estimator import Estimator
from expunge.core.facts import Facts
from expunge.core.head import LinearHead
from expunge.core.logit_mask import MASKED_BIAS
from expunge.core.ridge_choice import (
    LeaveOneOut,
    check_choice,
    check_grid,
    checked_rows,
    choose_ridge,
    choose_temperature,
    leave_one_out,
)
from expunge.system.errors import CheckpointError, DataError
from expunge.system.files import read_json, write_json

Array = Tensor | np.ndarray
Rows = tuple[Array, Array]  # features (n, d) and labels (n,)

TENSORS, DESCRIPTION = "ridge_head.safetensors", "ridge_head.json"
SCHEMA = 1
GRID = tuple(10.0**e for e in range(-3, 6))
MANY = 4  # more than d / MANY rows are worked into the sums at once, and the factor is computed again


class RidgeHead(Estimator):
    """A ridge classifier `W = (S + ridge I)^-1 B`, `S = sum h h^T`, `B = sum h onehot(y)^T`, `h = [z; 1]`.

    The bias is penalised too. After `remove` or `add`, in any order, the head equals, up to rounding, the result of
    `fit` on the rows then present. A change needs only its k rows and costs `O(k p^2)`. Sums are float64. The solution
    uses the updated factor of `S + ridge I` and a step of refinement, or a new one if the residual exceeds `drift`.

    ridge        on the sums, not on the mean: a fixed public number, "gcv" (chosen from `grid` by generalised
                 cross-validation, from the sums alone, `O(p^3)` per change) or "press" (by leave-one-out residuals)
    temperature  divides the scores before the softmax: a fixed number, or "leave-one-out" (the least log-loss of
                 leave-one-out scores)
    quantum      features are rounded to multiples of this power of two, so that sums are exact (see ClassSums)
    drift        bound on the residual `|B - (S + ridge I) W| / (tr(S + ridge I) |W| + |B|)`

    The choices of "press" and "leave-one-out" depend on every row. `remove` and `add` then need the rows present
    afterwards as `kept=(z, y)` and choose again, so that removed rows have no influence on the choice.

    Classes without a row get weight 0 and bias -1e4. Fitted: `head_` (its logits are scores / temperature),
    `weights_` `(p, C)` float64, `ridge_`, `temperature_`, `n_`, `counts_`, `drift_`, `rebuilds_`, and
    `leave_one_out_`. [derived]
    """

    facts: ClassVar[Facts] = Facts(
        ("classes", "rows", "corrections"), ("head", "deletable model"), "head", "closed form", "derived"
    )
    head_: LinearHead
    weights_: Tensor
    ridge_: float
    temperature_: float
    drift_: float
    rebuilds_: int

    def __init__(
        self,
        ridge: float | Literal["gcv", "press"] = 1.0,
        temperature: float | Literal["leave-one-out"] = 0.1,
        quantum: float | None = None,
        grid: Sequence[float] = GRID,
        drift: float = 1e-14,
    ) -> None:
        check_choice("ridge", ridge, ("gcv", "press"))
        check_choice("temperature", temperature, ("leave-one-out",))
        self.ridge = ridge
        self.temperature = temperature
        self.quantum = quantum
        self.grid = check_grid(grid)
        self.drift = drift
        self._sums: ClassSums | None = None
        self._factor: Factor | None = None
        self._rows: Rows | None = None
        self._loo: LeaveOneOut | None = None

    @property
    def needs_rows(self) -> bool:
        """Whether `remove` and `add` need the rows present afterwards."""
        return self.ridge == "press" or self.temperature == "leave-one-out"

    @property
    def sums(self) -> ClassSums:
        """The sums of the rows now present. Raises AttributeError before the first rows."""
        if self._sums is None:
            raise AttributeError("RidgeHead has no rows yet; call fit or update first")
        return self._sums

    @property
    def n_(self) -> int:
        """The number of rows now present."""
        return self.sums.n

    @property
    def counts_(self) -> Tensor:
        """Rows per class, `(C,)` int64."""
        return self.sums.counts

    @property
    def leave_one_out_(self) -> LeaveOneOut:
        """Residuals and leverages of the rows of `fit`, or of the last `kept`, in order; computed on first access.

        Raises DataError where rows have changed since, because the head does not store rows.
        """
        if self._loo is None:
            if self._rows is None:
                raise DataError("the head does not keep rows; call leave_one_out(z, y) with its present rows")
            self._loo = self.leave_one_out(*self._rows)
        return self._loo

    def fit(self, z: Array, y: Array, num_classes: int) -> RidgeHead:
        """Fit to `z (n, d)` floating and `y (n,)` integers in `0 .. num_classes - 1`; earlier rows are discarded.

        Raises ValueError for other shapes, DataError naming a row that cannot be used.
        """
        z, y = as_labelled(z, y, None, num_classes)
        sums = ClassSums(z.shape[1], num_classes, self.quantum, z.device)
        sums.update(z, y)
        self._sums, self.rebuilds_ = sums, 0
        return self.solve((z, y))

    def update(self, z: Array, y: Array, num_classes: int | None = None) -> RidgeHead:
        """Add rows to the sums only; call `solve` afterwards. The first call must give `num_classes`."""
        if self._sums is None and num_classes is None:
            raise ValueError("the first update needs num_classes")
        known = self._sums
        z, y = as_labelled(z, y, known.dim if known else None, known.num_classes if known else num_classes or 0)
        if known is None:
            self._sums, self.rebuilds_ = ClassSums(z.shape[1], num_classes or 0, self.quantum, z.device), 0
        self._forget_solution()
        self.sums.update(z, y)
        return self

    def solve(self, kept: Rows | None = None) -> RidgeHead:
        """Choose the ridge and temperature where they are not fixed, and solve from the sums with a new factor."""
        rows = self._checked(kept)
        self._forget_solution()
        self.ridge_ = choose_ridge(self.ridge, self.sums, rows, self.grid)
        self._factor = Factor(self._matrix())
        return self._finish(self._factor.solve(self.sums.by_class), rows)

    def remove(self, z_f: Array, y_f: Array, kept: Rows | None = None) -> RidgeHead:
        """Remove rows that were added before; `kept`: the remaining rows, where `needs_rows`.

        Raises DataError and changes nothing where the sums show that they are not rows of this head: a class has
        fewer rows, or the remaining second moments would not be positive semi-definite.
        """
        return self._change(z_f, y_f, kept, -1)

    def add(self, z: Array, y: Array, kept: Rows | None = None) -> RidgeHead:
        """Add rows; `kept`: all rows including the new ones, where `needs_rows`."""
        return self._change(z, y, kept, 1)

    @torch.no_grad()
    def correct(self, z: Array, old: Array, new: Array, kept: Rows | None = None) -> RidgeHead:
        """Change the labels of rows `z (k, d)` from `old (k,)` to `new (k,)`.

        Two columns of `B` per row change and `S` stays. `kept`: all rows with the new labels, where `needs_rows`.
        Raises DataError as `remove`.
        """
        z, old = as_labelled(z, old, self.sums.dim, self.sums.num_classes)
        _, new = as_labelled(z, new, self.sums.dim, self.sums.num_classes)
        factor, rows, h = self._solved(), self._checked(kept, self.n_), self.sums.augmented(z)
        self.sums.check_removable(h, old)
        self.sums.relabel(h, old, new)
        if choose_ridge(self.ridge, self.sums, rows, self.grid) != self.ridge_:
            return self.solve(kept)
        return self._finish(factor.solve(self.sums.by_class), rows)

    @torch.no_grad()
    def leave_one_out(self, z: Array, y: Array) -> LeaveOneOut:
        """Return residuals and leverages of rows `z (n, d)`, `y (n,)` of the head, each left out alone; `O(n p^2)`."""
        z, y = as_labelled(z, y, self.sums.dim, self.sums.num_classes)
        return leave_one_out(self.sums, self._solved(), self.weights_, z, y)

    @torch.no_grad()
    def scores(self, z: Array) -> Tensor:
        """Return `W^T h`, `(n, C)` float64, which approximates 1 for a row's own class and 0 for others."""
        z = torch.from_numpy(z) if isinstance(z, np.ndarray) else z
        return self.sums.augmented(z) @ self.weights_

    @torch.no_grad()
    def predict_proba(self, z: Array) -> Tensor:
        """Return `softmax(scores / temperature)` over the classes that have rows, `(n, C)` float64."""
        logits = self.scores(z) / self.temperature_
        return torch.softmax(logits.masked_fill(self.counts_ == 0, MASKED_BIAS), dim=1)

    @torch.no_grad()
    def _change(self, z: Array, y: Array, kept: Rows | None, sign: int) -> RidgeHead:
        z, y = as_labelled(z, y, self.sums.dim, self.sums.num_classes)
        factor = self._solved()
        rows = self._checked(kept, self.n_ + sign * len(y))
        if not len(y):
            return self
        if MANY * len(y) > self.sums.dim:
            return self._change_at_once(z, y, rows, sign)
        h = self.sums.augmented(z)
        solved, base = factor.prepare(h)
        inside = h @ solved
        if sign < 0:
            self.sums.check_removable(h, y)
            check_members(inside, solved, self.ridge_)
        onehot = torch.nn.functional.one_hot(y, self.sums.num_classes).to(h)
        eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
        step = solved @ torch.linalg.solve(eye + sign * inside, onehot - h @ self.weights_)
        self.sums.update_augmented(h, y, sign)
        ridge = choose_ridge(self.ridge, self.sums, rows, self.grid)
        if ridge != self.ridge_:
            return self.solve(kept)
        factor.push(h, base, sign, self._matrix)
        return self._finish(self.weights_ + sign * step, rows)

    def _change_at_once(self, z: Tensor, y: Tensor, rows: tuple[Tensor, Tensor] | None, sign: int) -> RidgeHead:
        if sign < 0:
            self.sums.check_removable(self.sums.augmented(z), y)
            left = self.sums.minus(z, y)
            slack = MEMBERSHIP * float(self.sums.second.diagonal().max())
            shifted = left.second.clone()
            shifted.diagonal().add_(slack)
            if int(torch.linalg.cholesky_ex(shifted).info):
                raise DataError(NOT_AMONG)
            self._sums = left
        else:
            self.sums.update(z, y)
        return self.solve(rows)

    def _finish(self, weights: Tensor, rows: tuple[Tensor, Tensor] | None) -> RidgeHead:
        """Refine `weights` until the residual is within `drift`, with a new factor if needed, and build the head."""
        factor = self._solved()
        weights = weights.masked_fill(self.counts_ == 0, 0.0)
        weights, self.drift_ = self._refined(factor, weights)
        if self.drift_ > self.drift and factor.waiting:
            factor.fresh(self._matrix())
            self.rebuilds_ += 1
            weights, self.drift_ = self._refined(factor, factor.solve(self.sums.by_class))
        self.weights_ = weights
        self._rows, self._loo = rows, None
        if self.temperature == "leave-one-out":
            assert rows is not None
            self._loo = leave_one_out(self.sums, factor, weights, *rows)
            self.temperature_ = choose_temperature(self._loo, rows[1])
        else:
            self.temperature_ = float(self.temperature)
        scaled = (weights / self.temperature_).T
        bias = scaled[:, -1].masked_fill(self.counts_ == 0, MASKED_BIAS)
        self.head_ = LinearHead(scaled[:, :-1], bias)
        return self

    def _refined(self, factor: Factor, weights: Tensor) -> tuple[Tensor, float]:
        return refined(factor, self.sums.second, self.ridge_, self.sums.by_class, weights, self.drift)

    def _checked(self, kept: Rows | None, n: int | None = None) -> tuple[Tensor, Tensor] | None:
        return checked_rows(kept, self.needs_rows, self.sums, self.n_ if n is None else n)

    def _matrix(self) -> Tensor:
        matrix = self.sums.second.clone()
        matrix.diagonal().add_(self.ridge_)
        return matrix

    def _solved(self) -> Factor:
        if self._factor is None:
            raise AttributeError("RidgeHead has no solution yet; call solve after the last update")
        return self._factor

    def _forget_solution(self) -> None:
        self._factor = self._rows = self._loo = None
        for name in ("head_", "weights_", "drift_", "temperature_", "ridge_"):
            self.__dict__.pop(name, None)

    def save(self, directory: Path | str) -> None:
        """Write sums and settings into an existing directory, JSON last; rows are not written."""
        directory = Path(directory)
        save_file(self.sums.tensors(), str(directory / TENSORS))
        chosen = {"ridge": self.ridge_, "temperature": self.temperature_}
        settings = {**self.get_params(), "grid": list(self.grid)}
        write_json(directory / DESCRIPTION, {"schema": SCHEMA, "settings": settings, "chosen": chosen})

    @classmethod
    def load(cls, directory: Path | str) -> RidgeHead:
        """Read what `save` wrote and solve again. Raises CheckpointError, which names the directory, if it cannot."""
        directory = Path(directory)
        try:
            description = read_json(directory / DESCRIPTION)
            if description["schema"] != SCHEMA:
                raise ValueError(f"schema is {description['schema']!r}, but this version reads {SCHEMA}")
            head, tensors = cls(**description["settings"]), load_file(str(directory / TENSORS))
            head._sums = ClassSums.of_tensors(tensors, head.quantum)
            ridge, temperature = (float(description["chosen"][k]) for k in ("ridge", "temperature"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{directory}: not a readable ridge head ({e}); train again") from None
        head.rebuilds_ = 0
        return head._resume(ridge, temperature)

    def _resume(self, ridge: float, temperature: float) -> RidgeHead:
        """Solve from loaded sums with the recorded ridge and temperature, because the rows are not available."""
        settings = self.ridge, self.temperature
        self.ridge, self.temperature = ridge, temperature
        try:
            self.solve()
        finally:
            self.ridge, self.temperature = settings
        return self
