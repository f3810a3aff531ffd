"""The sufficient statistics of a ridge classifier: second moments of rows and their sums per class."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from expunge.core.moments import CHUNK_NUMBERS, MIN_CHUNK_ROWS, as_features
from expunge.system.errors import DataError

# The rounding error that may remain in a sum after all of its rows were removed, as a share of their squares.
ROUNDING = 1e-9
MEMBERSHIP = 1e-7  # tolerance of the membership check of removed rows, for numbers between 0 and 1
NOT_AMONG = (
    "the rows to remove are not among those of this head, because the remaining second moments are not positive "
    "semi-definite. Check the ids, and that both come from the same model"
)


def as_labelled(
    z: Tensor | np.ndarray, y: Tensor | np.ndarray, dim: int | None, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return `z (n, d)` floating and `y (n,)` int64 in `0 .. num_classes - 1`; n may be 0.

    Raises ValueError for other shapes, DataError naming the first row that cannot be used.
    """
    z = as_features(z, dim)
    y = torch.from_numpy(y) if isinstance(y, np.ndarray) else y
    if y.shape != z.shape[:1] or y.is_floating_point():
        raise ValueError(f"labels must be integers, one per row, got {tuple(y.shape)} {y.dtype} for {len(z)} rows")
    y = y.to(z.device, torch.int64)
    wrong = ((y < 0) | (y >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"row {row} has label {int(y[row])}, but the classes are 0 .. {num_classes - 1}")
    wrong = (~torch.isfinite(z.sum(dim=1))).nonzero()
    if len(wrong):
        raise DataError(f"row {int(wrong[0])} of the features contains NaN or infinity; extract the features again")
    return z, y


class ClassSums:
    """The sums over rows from which a ridge classifier is computed, in float64.

    They are `S = sum h h^T` `(p, p)`, `B = sum h onehot(y)^T` `(p, C)` and `sum |h|^2` per class, with `h = [z; 1]`.
    The last row of `B` is the number of rows per class. With `quantum`, a power of two, features are rounded to its
    multiples. Sums of products are then integers below 2^53 times quantum squared, hence exact, and after any sequence
    of additions and removals they equal the sums of the remaining rows bit for bit. [derived]
    """

    def __init__(
        self, dim: int, num_classes: int, quantum: float | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if dim < 1 or num_classes < 1:
            raise ValueError(f"dim and num_classes must be at least 1, got {dim} and {num_classes}")
        if quantum is not None and (quantum <= 0 or math.frexp(quantum)[0] != 0.5):
            raise ValueError(f"quantum must be a power of two, got {quantum}")
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=device)
        self.quantum = quantum
        self.second = zeros(dim + 1, dim + 1)
        self.by_class = zeros(dim + 1, num_classes)
        self.squares = zeros(num_classes)

    @property
    def dim(self) -> int:
        """The number d of features, without the constant 1."""
        return self.second.shape[0] - 1

    @property
    def num_classes(self) -> int:
        """The number C of classes."""
        return self.by_class.shape[1]

    @property
    def counts(self) -> Tensor:
        """Rows per class, `(C,)` int64."""
        return self.by_class[-1].round().long()

    @property
    def n(self) -> int:
        """The number of rows."""
        return int(self.counts.sum())

    def augmented(self, z: Tensor) -> Tensor:
        """Return `h = [z; 1]`, `(n, p)` float64, for rows `z (n, d)`, rounded to multiples of `quantum` if set."""
        h = torch.ones(z.shape[0], self.dim + 1, dtype=torch.float64, device=self.second.device)
        h[:, :-1] = z
        if self.quantum is not None:
            h[:, :-1].div_(self.quantum).round_().mul_(self.quantum)
        return h

    def update(self, z: Tensor, y: Tensor, sign: int = 1) -> None:
        """Add rows checked by `as_labelled`, or remove them with `sign` -1; working memory does not grow with n."""
        rows = max(MIN_CHUNK_ROWS, CHUNK_NUMBERS // (self.dim + 1))
        for part, labels in zip(torch.split(z, rows), torch.split(y, rows), strict=True):
            self.update_augmented(self.augmented(part), labels, sign)

    def update_augmented(self, h: Tensor, y: Tensor, sign: int = 1) -> None:
        """Add, or with `sign` -1 remove, rows `h (n, p)` as `augmented` returns them, with classes `y (n,)`."""
        self.second.addmm_(h.T, h, alpha=sign)
        onehot = torch.nn.functional.one_hot(y, self.num_classes).to(h)
        self.by_class.addmm_(h.T, onehot, alpha=sign)
        self.squares.addmv_(onehot.T, h.square().sum(dim=1), alpha=sign)
        if sign < 0:
            self._clear_empty()
        self._check_exact()

    def _clear_empty(self) -> None:
        """Set the sums of classes without rows to zero: only rounding errors of removed rows remain in them."""
        empty = self.counts == 0
        self.by_class[:, empty] = 0.0
        self.squares[empty] = 0.0

    def relabel(self, h: Tensor, old: Tensor, new: Tensor) -> None:
        """Move the rows `h (k, p)` from the classes `old (k,)` to `new (k,)`; the second moments do not change."""
        after, before = (torch.nn.functional.one_hot(y, self.num_classes).to(h) for y in (new, old))
        change = after - before
        self.by_class.addmm_(h.T, change)
        self.squares.addmv_(change.T, h.square().sum(dim=1))
        self._clear_empty()

    def minus(self, z: Tensor, y: Tensor) -> ClassSums:
        """Return a copy without the rows `z (k, d)`, `y (k,)`."""
        left = self.like(self.second.clone(), self.by_class.clone(), self.squares.clone())
        left.update(z, y, -1)
        return left

    def check_removable(self, h: Tensor, y: Tensor) -> None:
        """Raise DataError where the sums show that rows `h (k, p)`, `y (k,)` cannot be among those that were added.

        A class must have at least that many rows, the sums of an emptied class must be zero, and in every other class
        the remaining squares must be at least those of the mean (Cauchy-Schwarz). These conditions are necessary, not
        sufficient, because the rows themselves are not stored.
        """
        onehot = torch.nn.functional.one_hot(y, self.num_classes).to(h)
        counts, wanted = self.counts, onehot.sum(dim=0).long()
        short = (wanted > counts).nonzero()
        if len(short):
            c = int(short[0])
            raise DataError(
                f"{int(wanted[c])} rows of class {c} are to be removed, but the head has only {int(counts[c])}; "
                "check which rows were removed before"
            )
        sums = self.by_class - h.T @ onehot
        squares = self.squares - onehot.T @ h.square().sum(dim=1)
        left, slack = counts - wanted, ROUNDING * (self.squares + 1)
        least = sums.square().sum(dim=0) / left.clamp(min=1)
        emptied = (left == 0) & ((least > slack) | (squares.abs() > slack))
        wrong = ((wanted > 0) & (emptied | (squares < least.where(left > 0, squares) - slack))).nonzero()
        if len(wrong):
            raise DataError(
                f"the rows of class {int(wrong[0])} to remove are not among those of this head, because their "
                "squares do not fit its sums. Check the ids, and that both come from the same model"
            )

    def like(self, second: Tensor, by_class: Tensor, squares: Tensor) -> ClassSums:
        """Return sums with the same `quantum` and the given tensors, which are not copied."""
        same = ClassSums.__new__(ClassSums)
        same.quantum, same.second, same.by_class, same.squares = self.quantum, second, by_class, squares
        return same

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by name, for a safetensors file."""
        named = {"second": self.second, "by_class": self.by_class, "squares": self.squares}
        return {name: t.cpu().contiguous() for name, t in named.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], quantum: float | None) -> ClassSums:
        """Build the sums from the result of `tensors`. Raises KeyError or ValueError for anything else."""
        second, by_class, squares = (tensors[name] for name in ("second", "by_class", "squares"))
        p, c = by_class.shape
        if second.shape != (p, p) or squares.shape != (c,) or {t.dtype for t in tensors.values()} != {torch.float64}:
            raise ValueError("its tensors do not have the shapes of class sums")
        return cls(p - 1, c, quantum).like(second, by_class, squares)

    def _check_exact(self) -> None:
        if self.quantum is not None and float(self.second.diagonal().max()) >= 2.0**53 * self.quantum**2:
            raise DataError(
                f"sums of products are no longer exact in steps of {self.quantum}; use a larger quantum, or quantum: "
                "null to accept rounding"
            )


def check_members(inside: Tensor, solved: Tensor, ridge: float) -> None:
    """Raise DataError where `S - H^T H` is not positive semi-definite along `X = P H^T`.

    `X^T (S - H^T H) X = K - ridge X^T X - K^2` with `K = H P H^T`, and every eigenvalue of K must be below 1. [derived]
    """
    left = inside - ridge * solved.T @ solved - inside @ inside
    if float(torch.linalg.eigvalsh(inside)[-1]) >= 1 or float(torch.linalg.eigvalsh(left)[0]) < -MEMBERSHIP:
        raise DataError(NOT_AMONG)
