"""Training rows that are set aside before any model is trained, for methods that need rows the model never saw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

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


def usable(unseen: np.ndarray, forget: np.ndarray, subjects: Sequence[str | None] | None) -> np.ndarray:
    """Those of the rows `unseen` that belong to nobody who has a row in `forget`; `subjects`: of every row, or None
    where the dataset has none. Whoever is forgotten should not help to fit the model that forgets them."""
    if subjects is None:
        return unseen
    asked = {subjects[i] for i in forget.tolist()} - {None}
    return np.array([i for i in unseen.tolist() if subjects[i] not in asked], np.int64)
