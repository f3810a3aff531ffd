"""A softmax head with a ridge on all weights, from which rows are removed up to a computed error bound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.core.class_sums import as_labelled
from expunge.core.estimator import Estimator
from expunge.core.head import LinearHead
from expunge.core.logit_mask import MASKED_BIAS
from expunge.core.newton_cg import Point, SoftmaxProblem, newton_cg
from expunge.core.preconditioners import Blocks, Refreshed, class_blocks, hessian_block
from expunge.core.row_store import RowStore
from expunge.system.errors import CheckpointError, DataError
from expunge.system.files import read_json, write_json

TENSORS, DESCRIPTION = "softmax_head.safetensors", "softmax_head.json"
SCHEMA = 1


class SoftmaxHead(Estimator):
    """Minimise `mean cross-entropy + ridge/2 |W|^2` over `W (C, p)` on `h = [z; 1]`, the bias included.

    The objective is strongly convex, so the optimum W* is unique and does not depend on the start, and
    `|W - W*| <= |gradient| / ridge` in Frobenius norms. This is `bound_`, for the float64 `weights_`. `head_` holds the
    weights rounded to float32, with bias -1e4 for classes without a row. `remove` and `add` start from the present
    weights, use a preconditioner that is computed once (see `prepare`), and stop at the same `tol`.

    ridge   on the mean of the loss: scikit-learn's LogisticRegression with C = 1 / (ridge n) and the bias as a feature
    tol     on the Euclidean norm of the gradient
    steps   the maximal number of Newton steps; `converged_` is False where they did not suffice
    factor  what `prepare` factors. "classes": the diagonal block `1/n sum p_c (1 - p_c) h h^T + ridge I` of each class,
            from a sample of rows. "hessian": the whole Hessian from all rows, `(C p)^2` float32 numbers at a cost of
            `O(n C^2 p^2)`; a change then takes a few passes over the rows

    The head stores a copy of the rows, because the next optimum needs them. `save` does not write them; after `load`,
    call `refit` with the remaining rows. The preconditioner contains second moments of rows. Once rows have been
    removed, `save` omits it and `refit` discards it, so that no trace of them is stored.

    Fitted: `head_`, `weights_`, `gradient_norm_`, `bound_`, `converged_`, `steps_`, `products_` (with the Hessian),
    `n_`, `counts_`. Without any row every weight is zero. [derived]
    """

    head_: LinearHead
    weights_: Tensor
    gradient_norm_: float
    steps_: int
    products_: int
    counts_: Tensor
    num_classes_: int

    def __init__(
        self,
        ridge: float = 1e-4,
        tol: float = 1e-7,
        steps: int = 100,
        factor: Literal["classes", "hessian"] = "classes",
    ) -> None:
        if not (math.isfinite(ridge) and ridge > 0 and tol > 0 and steps > 0):
            raise ValueError(f"ridge, tol and steps must be positive, got {ridge}, {tol}, {steps}")
        if factor not in ("classes", "hessian"):
            raise ValueError(f"factor must be classes or hessian, got {factor!r}")
        self.ridge = ridge
        self.tol = tol
        self.steps = steps
        self.factor = factor
        self.on_pass: Callable[[float], None] | None = None  # called with the gradient's norm after each pass
        self._store: RowStore | None = None
        self._blocks: Tensor | None = None
        self._remembers = False  # whether the preconditioner was computed from rows that have been removed since

    @property
    def bound_(self) -> float:
        """An upper bound on `|W - W*|` in the Frobenius norm."""
        return self.gradient_norm_ / self.ridge

    @property
    def converged_(self) -> bool:
        """Whether the norm of the gradient is at most `tol`."""
        return self.gradient_norm_ <= self.tol

    @property
    def n_(self) -> int:
        """The number of rows now present."""
        return int(self.counts_.sum())

    def fit(self, z: Tensor | np.ndarray, y: Tensor | np.ndarray, num_classes: int) -> SoftmaxHead:
        """Fit from weight zero to `z (n, d)` floating and `y (n,)` integers in `0 .. num_classes - 1`.

        Raises ValueError for other shapes, DataError naming a row that cannot be used.
        """
        z, y = as_labelled(z, y, None, num_classes)
        self.num_classes_, self._blocks, self._remembers = num_classes, None, False
        self.weights_ = torch.zeros(num_classes, z.shape[1] + 1, dtype=torch.float64, device=z.device)
        self._point = self._solve(SoftmaxProblem(z, y, self.ridge))
        self._store = RowStore(z, y, self._point.probabilities)
        return self

    def refit(self, z: Tensor | np.ndarray, y: Tensor | np.ndarray) -> SoftmaxHead:
        """Find the optimum on these rows from the present weights, without storing the rows.

        Use it where the head was loaded and so has no rows, or to avoid a copy of them. `z` and `y` as in `fit`.
        """
        z, y = as_labelled(z, y, self.weights_.shape[1] - 1, self.num_classes_)
        self._store = None
        self._solve(SoftmaxProblem(z, y, self.ridge))
        self._blocks = None  # computed from the earlier rows, which may include removed ones
        return self

    def remove(self, z_f: Tensor | np.ndarray, y_f: Tensor | np.ndarray) -> SoftmaxHead:
        """Remove rows that were added before.

        If a row was not, this raises DataError, which names the row, and changes nothing.
        """
        store = self.prepare()._rows()
        z_f, y_f = as_labelled(z_f, y_f, self.weights_.shape[1] - 1, self.num_classes_)
        problem, less = SoftmaxProblem(store.z, store.y, self.ridge), SoftmaxProblem(z_f, y_f, self.ridge)
        store.remove(z_f, y_f)
        self._remembers = True
        return self._resolve(problem.changed(self.weights_, self._point, less, -1), store)

    def add(self, z: Tensor | np.ndarray, y: Tensor | np.ndarray) -> SoftmaxHead:
        """Add rows `z (k, d)` with labels `y (k,)`."""
        store = self.prepare()._rows()
        z, y = as_labelled(z, y, self.weights_.shape[1] - 1, self.num_classes_)
        problem, more = SoftmaxProblem(store.z, store.y, self.ridge), SoftmaxProblem(z, y, self.ridge)
        store.add(z, y, more.at(self.weights_).probabilities)
        return self._resolve(problem.changed(self.weights_, self._point, more, 1), store)

    def _resolve(self, known: Point, store: RowStore) -> SoftmaxHead:
        """Solve after rows changed, from the point `known` at the present weights, which saves a pass over the rows."""
        point = dataclasses.replace(known, probabilities=store.shares)
        self._point = self._solve(SoftmaxProblem(store.z, store.y, self.ridge), point)
        store.shares = self._point.probabilities
        return self

    def prepare(self) -> SoftmaxHead:
        """Compute the preconditioner for later changes at the present optimum; otherwise the first change does so.

        Raises ValueError where the factor of the whole Hessian would be too large.
        """
        store = self._rows()
        if self._blocks is None and len(store.y):
            factor = class_blocks if self.factor == "classes" else hessian_block
            self._blocks = factor(SoftmaxProblem(store.z, store.y, self.ridge), store.shares)
        return self

    @torch.no_grad()
    def _solve(self, problem: SoftmaxProblem, known: Point | None = None) -> Point:
        y, zero = problem.y, torch.zeros_like(self.weights_)
        self.steps_ = self.products_ = 0
        if not len(y):
            self.weights_, point = zero, problem.at(zero)
        else:
            cold = not bool(self.weights_.any())
            precondition = Refreshed(problem) if self._blocks is None else Blocks(self._blocks, self.ridge)
            scale = None if cold else gradient_at_zero(problem.z, y, self.num_classes_)
            solution = newton_cg(problem, self.weights_, precondition, self.tol, self.steps, scale, known, self.on_pass)
            self.weights_, point = solution.w, solution.point
            self.steps_, self.products_ = solution.steps, solution.products
        self.gradient_norm_ = float(point.gradient.norm())
        self.counts_ = torch.bincount(y, minlength=self.num_classes_)
        self._ship()
        return point

    def _ship(self) -> None:
        bias = self.weights_[:, -1].masked_fill(self.counts_ == 0, MASKED_BIAS)
        self.head_ = LinearHead(self.weights_[:, :-1], bias)

    def _rows(self) -> RowStore:
        if self._store is None:
            raise DataError("this head was loaded or refitted and has no rows; give refit the rows that are left")
        return self._store

    def save(self, directory: Path | str) -> None:
        """Write weights, settings and, before any removal, the preconditioner into an existing directory, JSON last.

        Rows are not written.
        """
        directory = Path(directory)
        tensors = {"weights": self.weights_.cpu().contiguous(), "counts": self.counts_.cpu()}
        if self._blocks is not None and not self._remembers:
            tensors["blocks"] = self._blocks.cpu().contiguous()
        save_file(tensors, str(directory / TENSORS))
        solved = {"gradient_norm": self.gradient_norm_, "steps": self.steps_, "products": self.products_}
        write_json(directory / DESCRIPTION, {"schema": SCHEMA, "settings": self.get_params(), "solved": solved})

    @classmethod
    def load(cls, directory: Path | str) -> SoftmaxHead:
        """Read what `save` wrote. Raises CheckpointError, which names the directory, if it holds something else."""
        directory = Path(directory)
        try:
            description = read_json(directory / DESCRIPTION)
            if description["schema"] != SCHEMA:
                raise ValueError(f"schema is {description['schema']!r}, but this version reads {SCHEMA}")
            head, tensors = cls(**description["settings"]), load_file(str(directory / TENSORS))
            w, solved = tensors["weights"], description["solved"]
            head.gradient_norm_ = float(solved["gradient_norm"])
            head.steps_, head.products_ = int(solved["steps"]), int(solved["products"])
            head.weights_, head.counts_, head._blocks = w, tensors["counts"], tensors.get("blocks")
            c, p = w.shape
            expected = (c, p, p) if head.factor == "classes" else (1, c * p, c * p)
            blocks = expected if head._blocks is None else tuple(head._blocks.shape)
            if w.dtype != torch.float64 or head.counts_.shape != (c,) or blocks != expected:
                raise ValueError("its tensors do not have the shapes of a softmax head")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"{directory}: cannot be read as a softmax head ({e}); run the train stage again"
            ) from None
        head.num_classes_ = c
        head._ship()
        return head


def gradient_at_zero(z: Tensor, y: Tensor, num_classes: int) -> float:
    """Return the norm of the gradient at weight zero, from the class sums."""
    sums = torch.zeros(num_classes, z.shape[1], dtype=z.dtype, device=z.device).index_add_(0, y, z).double()
    counts = torch.bincount(y, minlength=num_classes).double()
    both = torch.cat([sums, counts[:, None]], dim=1)
    return float((both - both.mean(dim=0)).norm()) / len(y)
