"""To which shard and slice each training row belongs: by a keyed hash of its subject, so that nobody can aim at one.

Whoever could choose a shard could have all of them trained again for the price of one request each, or learn from the
cost of a request who shares a shard with whom. All rows of a subject go to one shard and one slice; a row without a
subject goes by its id. Where a row belongs depends on nothing but its subject and the key: with other rows gone, it
stays there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.merkle import merkle_root, row_leaves

PURPOSE = "expunge-shards"  # at most 16 bytes


@dataclass(frozen=True)
class Places:
    """Of n rows: `shard (n,)` in 0 .. shards - 1, `slice (n,)` in 0 .. slices - 1, and what stands for each in a Merkle
    tree. `key` names the key by which they were placed."""

    shards: int
    slices: int
    shard: NDArray[np.int64]
    slice: NDArray[np.int64]
    leaves: list[bytes]
    key: str

    def up_to(self, rows: NDArray[np.integer], shard: int, last: int) -> NDArray[np.int64]:
        """Those of `rows` in the slices 0 .. `last` of a shard, in their order."""
        here = (self.shard[rows] == shard) & (self.slice[rows] <= last)
        return np.asarray(rows[here], np.int64)

    def root(self, rows: NDArray[np.integer]) -> str:
        """The Merkle root of keyed digests of `rows`, each with its label, in the order of the digests."""
        return merkle_root(sorted(self.leaves[i] for i in rows.tolist()))


def places(dataset: Dataset, rows: NDArray[np.integer], directory: Path, shards: int, slices: int) -> Places:
    """Of the dataset positions `rows`. `directory`: where the key of row digests lies, or is made on first use."""
    forgotten = ForgottenRows(directory)
    ids, labels = dataset.sample_ids(), dataset.labels()
    drawn = forgotten.draws(owners(dataset, ids, rows), PURPOSE)
    digests = forgotten.digests(ids[i] for i in rows.tolist())
    return Places(
        shards,
        slices,
        (drawn % shards).astype(np.int64),
        (drawn // shards % slices).astype(np.int64),
        row_leaves(digests, labels[rows].tolist()),
        forgotten.fingerprint(),
    )


def owners(dataset: Dataset, ids: list[str], rows: NDArray[np.integer]) -> list[str]:
    """Who each of `rows` belongs to: its subject, else itself; a subject named as a row's id is somebody else."""
    subjects: list[str | None] = [None] * len(ids)
    if "subject" in dataset.columns:
        subjects = dataset.table(["subject"])["subject"].to_pylist()
    return [f"row {ids[i]}" if subjects[i] is None else f"subject {subjects[i]}" for i in rows.tolist()]
