"""Set training rows aside before any model is trained, for methods that need rows which the model never saw."""

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
    """Yield `batches` with about `share` of their training rows marked UNSEEN.

    Whether a row is marked depends only on its id and `seed`, so adding or erasing rows does not change the others.
    Raises DataError for a share outside (0, 0.5].
    """
    if not 0 < share <= 0.5:
        raise DataError(f"split.unseen is {share}; it must be above 0 and at most 0.5")
    for batch in batches:
        rows = zip(batch.sample_ids, batch.splits, strict=True)
        yield replace(batch, splits=[UNSEEN if s == TRAIN and drawn(i, seed) < share else s for i, s in rows])


def drawn(sample_id: str, seed: int) -> float:
    """Return a pseudo-random number in [0, 1) that is a function of the id and `seed` (keyed BLAKE2b)."""
    h = hashlib.blake2b(sample_id.encode(), key=str(seed).encode(), person=PURPOSE, digest_size=8)
    return int.from_bytes(h.digest()) / 2**64


def usable(unseen: np.ndarray, forget: np.ndarray, subjects: Sequence[str | None] | None) -> np.ndarray:
    """Return the positions in `unseen` whose subject has no row in `forget`, int64.

    `subjects` are those of all rows of the dataset, or None if it has none. Rows of a forgotten person must not be used
    to fit the model that forgets that person.
    """
    if subjects is None:
        return unseen
    asked = {subjects[i] for i in forget.tolist()} - {None}
    return np.array([i for i in unseen.tolist() if subjects[i] not in asked], np.int64)
