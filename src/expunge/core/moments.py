"""First and second moments of a set of features, which can be added and subtracted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.system.errors import CheckpointError, DataError, TooFewRowsError

# Each chunk is converted to float64 before the product. 2**18 numbers (2 MiB) fit into the cache, and bound the memory
# that the conversion takes.
CHUNK_NUMBERS = 1 << 18
MIN_CHUNK_ROWS = 256


def as_features(z: Tensor | np.ndarray, dim: int | None = None) -> Tensor:
    """Return `z` as a floating `(n, d)` tensor. Raises ValueError for another shape or a non-floating dtype."""
    z = torch.from_numpy(z) if isinstance(z, np.ndarray) else z
    if z.ndim != 2 or (dim is not None and z.shape[1] != dim):
        raise ValueError(f"features must have the shape (n, {'d' if dim is None else dim}), got {tuple(z.shape)}")
    if not z.is_floating_point():
        raise ValueError(f"features must be floating point, got {z.dtype}")
    return z


class Moments:
    """`n`, `s = sum z` and `S = sum z z^T` of rows `z (n, d)`, in float64.

    They can be computed shard by shard, on any number of workers and in any order, and merged. Since
    `retained = total - forget`, an erasure needs no pass over the retained rows. `update` works in place; `+` and `-`
    return new objects.

    Products are computed in float64 for rows of any precision. In float32 the relative error of `S` would be about
    1e-7, which destroys the small eigenvalues of the covariance and makes the result depend on the merge order.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.n = 0
        self.s = torch.zeros(dim, dtype=torch.float64, device=device)
        self.S = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, z: Tensor | np.ndarray) -> Moments:
        """Return the moments of the rows of `z (n, d)`, on its device."""
        z = as_features(z)
        return cls(z.shape[1], z.device).update(z)

    @classmethod
    def total(cls, parts: Iterable[Moments]) -> Moments:
        """Return the sum of `parts`, at least one, added in the order given."""
        parts = iter(parts)
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    @property
    def dim(self) -> int:
        """The number d of features."""
        return self.s.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the sums."""
        return self.s.device

    def __repr__(self) -> str:
        return f"Moments(dim={self.dim}, n={self.n})"

    @torch.no_grad()
    def update(self, z: Tensor | np.ndarray) -> Moments:
        """Add the rows of `z (n, d)`, fp16, bf16, fp32 or fp64, on any device; working memory does not grow with n.

        Raises DataError, without adding any row, when a value is not finite.
        """
        z = as_features(z, self.dim)
        rows = max(MIN_CHUNK_ROWS, CHUNK_NUMBERS // self.dim)
        # NaN and infinity persist in a sum, so one check at the end finds them before `self` is changed.
        new_s, new_big = torch.zeros_like(self.s), torch.zeros_like(self.S)
        for chunk in torch.split(z, rows):
            chunk = chunk.to(self.device, torch.float64)
            new_s += chunk.sum(dim=0)
            new_big.addmm_(chunk.T, chunk)
        if not bool(torch.isfinite(new_s).all()):
            bad = int((~torch.isfinite(z).all(dim=1)).nonzero()[0])
            raise DataError(f"row {bad} of the features contains NaN or infinity; extract the features again")
        self.s += new_s
        self.S += new_big
        self.n += z.shape[0]
        return self

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows together."""
        self._check_dim(other)
        return self._like(self.n + other.n, self.s + other.s.to(self.device), self.S + other.S.to(self.device))

    def downdate(self, other: Moments) -> Moments:
        """Return the moments of the rows of `self` without those of `other`, which must be among them.

        Raises DataError when the remaining count would be negative, or the remaining covariance not positive
        semi-definite within rounding. The check is necessary, not sufficient: rows that were never added can pass.
        """
        self._check_dim(other)
        left = self._like(self.n - other.n, self.s - other.s.to(self.device), self.S - other.S.to(self.device))
        if left.n < 0:
            raise DataError(
                f"cannot remove {other.n} rows from the moments of {self.n} rows; check which rows were removed before"
            )
        # The rounding errors in entries of S are about eps times the largest sum of squares in `self`.
        eps = torch.finfo(torch.float64).eps
        tolerance = 16 * eps * self.dim * max(float(self.S.diagonal().max()), torch.finfo(torch.float64).tiny)
        if left.n == 0:
            fits = float(left.S.abs().max()) <= tolerance
        else:
            scatter = left.S - torch.outer(left.s, left.s) / left.n
            scatter.diagonal().add_(tolerance)
            fits = int(torch.linalg.cholesky_ex(scatter).info) == 0
        if not fits:
            raise DataError(
                f"the {other.n} rows to remove are not among the {self.n} rows of these moments, because the "
                "remaining covariance is not positive semi-definite. Check the ids, and that both come from the "
                "same model"
            )
        return left

    __add__ = merge
    __sub__ = downdate

    @property
    def mean(self) -> Tensor:
        """The mean, `(d,)` float64."""
        self._check_rows(1)
        return self.s / self.n

    def second(self, augmented: bool = False) -> Tensor:
        """Return `E[z z^T]`, `(d, d)` float64; if `augmented`, `E[h h^T]` of `h = [z; 1]`, `(d + 1, d + 1)`."""
        self._check_rows(1)
        if not augmented:
            return self.S / self.n
        m = self.mean
        top = torch.cat([self.S / self.n, m[:, None]], dim=1)
        return torch.cat([top, torch.cat([m, m.new_ones(1)])[None]], dim=0)

    def second_about(self, point: Tensor) -> Tensor:
        """Return `E[(z - point)(z - point)^T]`, `(d, d)` float64."""
        point = point.to(self.S)
        cross = torch.outer(self.mean, point)
        return self.second() - cross - cross.T + torch.outer(point, point)

    def cov(self, ddof: int = 1) -> Tensor:
        """Return the covariance about the mean of the rows, `(d, d)` float64; sums are divided by `n - ddof`."""
        self._check_rows(ddof + 1)
        m = self.mean
        return torch.addr(self.S, m, m, alpha=-self.n).div_(self.n - ddof)

    def to(self, device: torch.device | str) -> Moments:
        """Return the same moments on `device`."""
        return self._like(self.n, self.s.to(device), self.S.to(device))

    def save(self, path: Path | str) -> None:
        """Write `n`, `s` and `S` as one safetensors file; equal moments give equal bytes."""
        tensors = {"n": torch.tensor([self.n]), "s": self.s.cpu().contiguous(), "S": self.S.cpu().contiguous()}
        save_file(tensors, str(path))

    @classmethod
    def load(cls, path: Path | str) -> Moments:
        """Read what `save` wrote. Raises CheckpointError, which names the file, if it is something else."""
        try:
            tensors = load_file(str(path))
            n, s, big = int(tensors["n"].item()), tensors["s"], tensors["S"]
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError, OverflowError, MemoryError) as e:
            raise CheckpointError(f"{path}: cannot be read as moments ({e}); run extract again") from None
        if s.ndim != 1 or big.shape != (s.shape[0], s.shape[0]) or s.dtype != torch.float64 or n < 0:
            raise CheckpointError(f"{path}: its tensors do not have the shapes of moments; run extract again")
        moments = cls(s.shape[0])
        moments.n, moments.s, moments.S = n, s, big
        return moments

    def _like(self, n: int, s: Tensor, big: Tensor) -> Moments:
        result = Moments.__new__(Moments)
        result.n, result.s, result.S = n, s, big
        return result

    def _check_dim(self, other: Moments) -> None:
        if self.dim != other.dim:
            raise ValueError(f"moments of {self.dim} and of {other.dim} dimensions cannot be combined")

    def _check_rows(self, needed: int) -> None:
        if self.n < needed:
            raise TooFewRowsError(f"the moments of at least {needed} rows are needed, but there are {self.n}")
