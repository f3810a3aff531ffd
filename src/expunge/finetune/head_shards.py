"""`model.shards` for a frozen backbone: one head per shard of subjects, combined into their mean.

For linear heads the mean of log-probabilities equals the mean of logits up to a constant per row, which does not change
probabilities: `W = mean W_s`, `b = mean b_s`. For each class the mean is over the shards that have rows of it, as in
`models/sharded.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.core import LinearHead, RidgeHead, SoftmaxHead
from expunge.models.sharded import LEAST_ROWS, shard_shares
from expunge.system.errors import CheckpointError, DataError
from expunge.system.files import read_json, write_json

Head = RidgeHead | SoftmaxHead
DESCRIPTION, FOLDER = "head_shards.json", "shards"
SCHEMA = 1


class HeadShards:
    """One head per shard, and their mean `head_`.

    `heads` holds None for a shard with too few rows, which does not contribute. `counts_ (S, C)` are the rows of each
    class in each shard. `key` names the key by which subjects were assigned to shards.
    """

    def __init__(self, heads: list[Head | None], counts: NDArray[np.int64], key: str) -> None:
        if all(head is None for head in heads):
            raise DataError(
                f"none of the {len(heads)} shards has the {LEAST_ROWS} rows that a head needs; lower model.shards"
            )
        self.heads, self.counts_, self.key = heads, counts, key

    @classmethod
    def fit(
        cls,
        make: Callable[[], Head],
        z: Tensor,
        y: Tensor,
        shard: NDArray[np.int64],
        count: int,
        classes: int,
        key: str,
    ) -> HeadShards:
        """Fit new heads; `shard (n,)` is the shard, of `count`, of each of the rows `z (n, d)`, `y (n,)`.

        Raises DataError where no shard has enough rows.
        """
        heads: list[Head | None] = []
        for number in range(count):
            rows = torch.from_numpy(np.flatnonzero(shard == number))
            heads.append(make().fit(z[rows], y[rows], classes) if len(rows) >= LEAST_ROWS else None)
        return cls(heads, count_rows(shard, y.numpy(), count, classes), key)

    @property
    def head_(self) -> LinearHead:
        """The mean head, weight `(C, d)` and bias `(C,)`, computed in float64."""
        weight = bias = None
        for share, head in zip(torch.from_numpy(shard_shares(self.counts_)).double(), self.heads, strict=True):
            if head is None:
                continue
            own, its = head.head_.weight.double() * share[:, None], head.head_.bias.double() * share
            weight, bias = (own, its) if weight is None or bias is None else (weight + own, bias + its)
        assert weight is not None and bias is not None
        return LinearHead(weight.float(), bias.float())

    @property
    def known(self) -> list[Head]:
        """The heads of the shards that contribute to the mean."""
        return [head for head in self.heads if head is not None]

    def without(
        self,
        removed: tuple[Tensor, Tensor, NDArray[np.int64]],
        left: tuple[Tensor, Tensor, NDArray[np.int64]],
    ) -> tuple[HeadShards, list[int]]:
        """Remove the rows `removed`; `left` are the remaining rows. Both are `z (n, d)`, `y (n,)` and shards `(n,)`.

        Returns the new heads and the changed shards. Heads of other shards do not change.
        """
        touched = sorted(set(removed[2].tolist()))
        heads = list(self.heads)
        for number in touched:
            out, rest = (_of(part, number) for part in (removed, left))
            head = heads[number]
            heads[number] = _removed(head, out, rest) if head is not None and len(rest[1]) >= LEAST_ROWS else None
        counts = count_rows(left[2], left[1].numpy(), *self.counts_.shape)
        return HeadShards(heads, counts, self.key), touched

    def corrected(
        self,
        moved: tuple[Tensor, Tensor, NDArray[np.int64]],
        new: Tensor,
        now: tuple[Tensor, Tensor, NDArray[np.int64]],
    ) -> tuple[HeadShards, list[int]]:
        """Give the rows `moved`, features `(k, d)`, old labels and shards, the labels `new (k,)`.

        `now` are all rows with the corrected labels. Returns the new heads and the changed shards. Heads of other
        shards do not change.
        """
        touched = sorted(set(moved[2].tolist()))
        heads = list(self.heads)
        for number in touched:
            head, rest = heads[number], _of(now, number)
            if isinstance(head, RidgeHead):
                z, old = _of(moved, number)
                head.correct(z, old, _of((moved[0], new, moved[2]), number)[1], rest if head.needs_rows else None)
                if head.quantum is not None:
                    head.solve(rest if head.needs_rows else None)
            elif head is not None:
                head.refit(*rest)
        counts = count_rows(now[2], now[1].numpy(), *self.counts_.shape)
        return HeadShards(heads, counts, self.key), touched

    def save(self, directory: Path | str) -> None:
        """Write every head with its state into a folder of its own, and the JSON description last."""
        directory = Path(directory)
        for number, head in enumerate(self.heads):
            if head is not None:
                place = directory / FOLDER / f"{number:04d}"
                place.mkdir(parents=True)
                head.save(place)
        known = [number for number, head in enumerate(self.heads) if head is not None]
        counts = self.counts_.tolist()
        write_json(directory / DESCRIPTION, {"schema": SCHEMA, "heads": known, "counts": counts, "key": self.key})

    @classmethod
    def load(cls, directory: Path | str, kind: type[RidgeHead] | type[SoftmaxHead]) -> HeadShards:
        """Read what `save` wrote. Raises CheckpointError naming the directory."""
        directory = Path(directory)
        described = read_json(directory / DESCRIPTION)
        if described.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{directory}: its shards have the schema {described.get('schema')!r}, but this version reads "
                f"{SCHEMA}; run the train stage again"
            )
        counts = np.array(described["counts"], np.int64)
        heads: list[Head | None] = [
            kind.load(directory / FOLDER / f"{number:04d}") if number in described["heads"] else None
            for number in range(len(counts))
        ]
        return cls(heads, counts, described["key"])


def count_rows(shard: NDArray[np.int64], labels: NDArray[np.integer], count: int, classes: int) -> NDArray[np.int64]:
    """Return the number of rows of each class in each shard, `(count, classes)` int64."""
    return np.bincount(shard * classes + labels, minlength=count * classes).reshape(count, classes).astype(np.int64)


def accuracy_of(heads: Sequence[Head]) -> Mapping[str, Any]:
    """Return how accurately these heads solve their problems.

    For ridge heads this is the largest residual. For softmax heads it is the largest gradient norm, and a bound on the
    distance between their mean and the mean of the exact optima.
    """
    if isinstance(heads[0], RidgeHead):
        return {"residual": max(head.drift_ for head in heads if isinstance(head, RidgeHead))}
    soft = [head for head in heads if isinstance(head, SoftmaxHead)]
    # The weights of the mean sum to 1 in every class, so its error is at most the root of the sum of squares (Jensen).
    bound = float(np.sqrt(sum(head.bound_**2 for head in soft)))
    return {"gradient_norm": max(head.gradient_norm_ for head in soft), "bound": bound}


def _of(part: tuple[Tensor, Tensor, NDArray[np.int64]], number: int) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(np.flatnonzero(part[2] == number))
    return part[0][rows], part[1][rows]


def _removed(head: Head, out: tuple[Tensor, Tensor], rest: tuple[Tensor, Tensor]) -> Head:
    if isinstance(head, SoftmaxHead):
        return head.refit(*rest)
    rows = rest if head.needs_rows else None
    head.remove(*out, rows)
    return head.solve(rows) if head.quantum is not None else head  # exact sums give the bits of a new fit
