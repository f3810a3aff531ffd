"""A store of feature rows with labels, from which rows are removed by their values."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.system.errors import DataError


class RowStore:
    """A copy of the rows `z (n, d)` and `y (n,)` with their `shares (n, C)`; the order of rows may change."""

    def __init__(self, z: Tensor, y: Tensor, shares: Tensor) -> None:
        self.z, self.y, self.shares = z.clone(), y.clone(), shares
        self._prints: tuple[Tensor, Tensor] | None = None

    def add(self, z: Tensor, y: Tensor, shares: Tensor) -> None:
        """Append the rows `z (k, d)` with classes `y (k,)` and `shares (k, C)`."""
        self.z, self.y = torch.cat([self.z, z.to(self.z)]), torch.cat([self.y, y])
        self.shares = torch.cat([self.shares, shares.to(self.shares)])
        self._prints = None

    def remove(self, z: Tensor, y: Tensor) -> None:
        """Remove, for each row of `z (k, d)`, `y (k,)`, one stored row with the same values and label.

        Raises DataError and changes nothing where a row is not stored, naming the first such row.
        """
        found = self.find(z.to(self.z), y)
        n, left = len(self.y), len(self.y) - len(found)
        mask = torch.zeros(n, dtype=torch.bool, device=self.y.device).index_fill_(0, found, True)
        # Rows from the end fill the gaps, so that few rows are copied. The end is then cleared, because the tensors
        # are views of the same memory and would still hold the removed values.
        holes, movers = mask[:left].nonzero()[:, 0], (~mask[left:]).nonzero()[:, 0] + left
        for block in (self.z, self.y, self.shares):
            block[holes] = block[movers]
            block[left:] = 0
        self.z, self.y, self.shares = self.z[:left], self.y[:left], self.shares[:left]
        self._prints = None

    def find(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the sorted positions `(k,)` int64 of stored rows that equal the given rows, each position once.

        Raises DataError naming the first row that is not stored.
        """
        order, prints = self._fingerprints()
        own = _fingerprint(z, y)
        slack = 1e-6 * (1 + own.abs())  # the rounding of a matrix product depends on its number of rows
        low, high = (torch.searchsorted(prints, own + s * slack).tolist() for s in (-1, 1))
        used: set[int] = set()
        for row, (start, end) in enumerate(zip(low, high, strict=True)):
            candidates = [i for i in order[start:end].tolist() if i not in used]
            match = next((i for i in candidates if self.y[i] == y[row] and torch.equal(self.z[i], z[row])), None)
            if match is None:
                raise DataError(
                    f"row {row} of the rows to remove is not among the {len(self.y)} rows of this head, or is named "
                    "more often than it occurs; check the ids, and that both come from the same model"
                )
            used.add(match)
        return torch.tensor(sorted(used), dtype=torch.int64, device=self.y.device)

    def _fingerprints(self) -> tuple[Tensor, Tensor]:
        """Return the positions of rows in ascending order of their fingerprints, and the sorted fingerprints."""
        if self._prints is None:
            prints, order = torch.sort(_fingerprint(self.z, self.y))
            self._prints = order, prints
        return self._prints


def _fingerprint(z: Tensor, y: Tensor) -> Tensor:
    """Return one number per row, `(n,)` float64, which is equal up to rounding for rows of equal values."""
    direction = torch.cos(torch.arange(1, z.shape[1] + 1, device=z.device, dtype=torch.float64)).to(z.dtype)
    return (z @ direction).double() + 1000.0 * y
