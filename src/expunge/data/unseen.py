"""Training rows that are set aside before any model is trained, for methods that need rows the model never saw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from expunge.data.schema import TRAIN, UNSEEN
from expunge.data.source import Batch
from expunge.system.errors import DataError

PURPOSE = b"unseen"


def set_aside(batches: Iterator[Batch], share: float, seed: int) -> Iterator[Batch]:
    """`batches` with about `share` of their training rows marked UNSEEN.

    A row's place depends on its id and `seed` alone, so rows that come or are erased move no other. Raises DataError
    for a share outside (0, 0.5].
    """
    if not 0 < share <= 0.5:
        raise DataError(f"split.unseen is {share}; it must lie in (0, 0.5]")
    for batch in batches:
        rows = zip(batch.sample_ids, batch.splits, strict=True)
        yield replace(batch, splits=[UNSEEN if s == TRAIN and drawn(i, seed) < share else s for i, s in rows])


def drawn(sample_id: str, seed: int) -> float:
    """A number in [0, 1) that looks drawn, by id and seed."""
    h = hashlib.blake2b(sample_id.encode(), key=str(seed).encode(), person=PURPOSE, digest_size=8)
    return int.from_bytes(h.digest()) / 2**64
