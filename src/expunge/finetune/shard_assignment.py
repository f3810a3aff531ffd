"""The shard and slice of each training row, by a keyed hash of its subject, so that nobody can choose a shard.

Whoever could choose shards could force all of them to be trained again with one request each, or learn from the cost of
a request which subjects share a shard. All rows of a subject go to one shard and one slice; a row without a subject is
assigned by its id. The shard and slice of a row depend only on its subject and the key, so they do not change when
other rows are removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.merkle import merkle_root, row_leaves

PURPOSE = "expunge-shards"  # the personalisation of BLAKE2b, at most 16 bytes


@dataclass(frozen=True)
class ShardAssignment:
    """The assignment of n rows: `shard (n,)` in 0 .. shards - 1 and `slice (n,)` in 0 .. slices - 1.

    `leaves` holds each row's leaf of a Merkle tree. `key` is the fingerprint of the key by which they were assigned.
    """

    shards: int
    slices: int
    shard: NDArray[np.int64]
    slice: NDArray[np.int64]
    leaves: list[bytes]
    key: str

    def up_to(self, rows: NDArray[np.integer], shard: int, last: int) -> NDArray[np.int64]:
        """Return those of `rows` in the slices 0 .. `last` of a shard, in their order."""
        here = (self.shard[rows] == shard) & (self.slice[rows] <= last)
        return np.asarray(rows[here], np.int64)

    def root(self, rows: NDArray[np.integer]) -> str:
        """Return the Merkle root of the keyed digests of `rows`, each with its label, in the order of the digests."""
        return merkle_root(sorted(self.leaves[i] for i in rows.tolist()))


def assign_shards(
    dataset: Dataset, rows: NDArray[np.integer], directory: Path, shards: int, slices: int
) -> ShardAssignment:
    """Return the shards and slices of the dataset positions `rows`.

    `directory` holds the key of row digests, which is created on first use.
    """
    forgotten = ForgottenRows(directory)
    ids, labels = dataset.sample_ids(), dataset.labels()
    drawn = forgotten.draws(owners(dataset, ids, rows), PURPOSE)
    digests = forgotten.digests(ids[i] for i in rows.tolist())
    return ShardAssignment(
        shards,
        slices,
        (drawn % shards).astype(np.int64),
        (drawn // shards % slices).astype(np.int64),
        row_leaves(digests, labels[rows].tolist()),
        forgotten.fingerprint(),
    )


def owners(dataset: Dataset, ids: list[str], rows: NDArray[np.integer]) -> list[str]:
    """Return the owner of each of `rows`: its subject, else the row itself.

    Prefixes keep a subject apart from a row whose id is the same text.
    """
    subjects: list[str | None] = [None] * len(ids)
    if "subject" in dataset.columns:
        subjects = dataset.table(["subject"])["subject"].to_pylist()
    return [f"row {ids[i]}" if subjects[i] is None else f"subject {subjects[i]}" for i in rows.tolist()]
