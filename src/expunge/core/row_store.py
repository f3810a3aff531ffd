"""Feature rows with labels that can be taken out again by their values."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.system.errors import DataError


class RowStore:
    """A copy of `z (n, d)` and `y (n,)`, and beside them `shares (n, C)`; the order of rows is not kept."""

    def __init__(self, z: Tensor, y: Tensor, shares: Tensor) -> None:
        self.z, self.y, self.shares = z.clone(), y.clone(), shares
        self._prints: tuple[Tensor, Tensor] | None = None

    def add(self, z: Tensor, y: Tensor, shares: Tensor) -> None:
        self.z, self.y = torch.cat([self.z, z.to(self.z)]), torch.cat([self.y, y])
        self.shares = torch.cat([self.shares, shares.to(self.shares)])
        self._prints = None

    def remove(self, z: Tensor, y: Tensor) -> None:
        """Take out one row for each row of `z (k, d)`, `y (k,)` with the same values and label.

        Raises DataError, with nothing changed, naming the first that is not there (any more).
        """
        found = self.find(z.to(self.z), y)
        n, left = len(self.y), len(self.y) - len(found)
        gone = torch.zeros(n, dtype=torch.bool, device=self.y.device).index_fill_(0, found, True)
        # Rows of the tail fill the holes, so that few are copied; the tail is cleared.
        holes, movers = gone[:left].nonzero()[:, 0], (~gone[left:]).nonzero()[:, 0] + left
        for kept in (self.z, self.y, self.shares):
            kept[holes] = kept[movers]
            kept[left:] = 0
        self.z, self.y, self.shares = self.z[:left], self.y[:left], self.shares[:left]
        self._prints = None

    def find(self, z: Tensor, y: Tensor) -> Tensor:
        """Where each of the rows is, every position once, `(k,)` int64. Raises DataError naming one that is not."""
        order, prints = self._fingerprints()
        own = _fingerprint(z, y)
        slack = 1e-6 * (1 + own.abs())  # a product over many rows and one over few are rounded otherwise
        low, high = (torch.searchsorted(prints, own + s * slack).tolist() for s in (-1, 1))
        used: set[int] = set()
        for row, (start, end) in enumerate(zip(low, high, strict=True)):
            candidates = [i for i in order[start:end].tolist() if i not in used]
            match = next((i for i in candidates if self.y[i] == y[row] and torch.equal(self.z[i], z[row])), None)
            if match is None:
                raise DataError(
                    f"row {row} of those to be removed is not among the {len(self.y)} rows of this head (or fewer "
                    "times than it is named); check the ids, and that one model made both"
                )
            used.add(match)
        return torch.tensor(sorted(used), dtype=torch.int64, device=self.y.device)

    def _fingerprints(self) -> tuple[Tensor, Tensor]:
        """Positions in the order of their fingerprints, and these."""
        if self._prints is None:
            prints, order = torch.sort(_fingerprint(self.z, self.y))
            self._prints = order, prints
        return self._prints


def _fingerprint(z: Tensor, y: Tensor) -> Tensor:
    """A number per row that rows of equal values share up to rounding, `(n,)` float64."""
    direction = torch.cos(torch.arange(1, z.shape[1] + 1, device=z.device, dtype=torch.float64)).to(z.dtype)
    return (z @ direction).double() + 1000.0 * y
