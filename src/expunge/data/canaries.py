"""Canaries: mislabelled copies of training rows that are planted before training, so that forgetting can be audited.

2 N pairs of a training input (image or text) and a wrong label are drawn. A random half of them is planted in the
training data; the model is never trained on the other half. The two halves therefore have the same distribution, and
only training on the planted half can make them differ.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.data.schema import TRAIN
from expunge.data.source import Batch
from expunge.system.errors import DataError

CANARIES = "canaries.parquet"
SELECTOR = "canaries"
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),  # of the planted copy; null if the pair was not planted
        pa.field("source", pa.string(), nullable=False),  # sample_id of the training row it copies
        pa.field("label", pa.int32(), nullable=False),  # the wrong label
    ]
)


class Planter:
    """Adds a batch of `count` canaries after the last batch of a source.

    The 2 `count` training rows whose ids have the smallest keyed digests are drawn. The draw therefore depends on
    `seed` and the ids, and not on the order of the rows. The content of these rows is held in memory until the source
    ends; after that, `table` (columns of SCHEMA) lists all drawn pairs. Raises DataError if there are fewer than
    2 `count` training rows or fewer than two classes.
    """

    def __init__(self, count: int, classes: int, seed: int) -> None:
        self.count, self.classes, self.seed = count, classes, seed
        self.table = SCHEMA.empty_table()
        # Breaks ties between equal ids, so that the heap never compares content; the writer refuses such ids.
        self._seen = 0
        self._drawn: list[tuple[int, int, str, int, Any]] = []  # a heap whose first entry has the largest digest

    def stream(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches of a source, and after them the batch of planted copies."""
        raw, subjects = True, False
        for batch in batches:
            self._watch(batch)
            raw, subjects = isinstance(batch.content, np.ndarray), batch.subjects is not None
            yield batch
        yield self._planted(raw, subjects)

    def _watch(self, batch: Batch) -> None:
        for i, (sample_id, split) in enumerate(zip(batch.sample_ids, batch.splits, strict=True)):
            if split != TRAIN:
                continue
            key = str(self.seed).encode()
            rank = -int.from_bytes(hashlib.blake2b(sample_id.encode(), key=key, digest_size=8).digest())
            self._seen += 1
            full = len(self._drawn) == 2 * self.count
            if not full or rank > self._drawn[0][0]:
                content = batch.content[i]
                copied = content.copy() if isinstance(content, np.ndarray) else content
                entry = (rank, self._seen, sample_id, int(batch.labels[i]), copied)
                (heapq.heapreplace if full else heapq.heappush)(self._drawn, entry)

    def _planted(self, raw: bool, subjects: bool) -> Batch:
        drawn = sorted(self._drawn, key=lambda entry: (-entry[0], entry[1]))
        if len(drawn) < 2 * self.count or self.classes < 2:
            raise DataError(
                f"data.canaries: {self.count} canaries need {2 * self.count} training rows and two classes, but the "
                f"dataset has {len(drawn)} training rows and {self.classes} classes; plant fewer canaries"
            )
        rng = np.random.default_rng([self.seed, self.count])
        true = np.array([entry[3] for entry in drawn])
        wrong = ((true + rng.integers(1, self.classes, len(drawn))) % self.classes).astype(np.int32)
        planted = np.sort(rng.permutation(len(drawn))[: self.count])
        ids: list[str | None] = [None] * len(drawn)
        for number, at in enumerate(planted):
            ids[at] = f"canary-{number:06d}"
        self.table = pa.table([ids, [entry[2] for entry in drawn], wrong], schema=SCHEMA)
        content = [drawn[at][4] for at in planted]
        return Batch(
            [str(ids[at]) for at in planted],
            wrong[planted],
            [TRAIN] * self.count,
            np.stack(content) if raw else content,
            [None] * self.count if subjects else None,
        )


def canary_rows(directory: Path | str, sample_ids: Sequence[str]) -> tuple[np.ndarray, ...] | None:
    """Return the rows and wrong labels of the canaries of the dataset in `directory`; None if it has no canaries.

    The four int64 arrays `(N,)` are: the positions in `sample_ids` of the planted copies, their wrong labels, the
    positions of the rows that the pairs that were not planted would have copied, and the wrong labels of these pairs.
    Raises DataError if a row is not in `sample_ids`.
    """
    file = Path(directory) / CANARIES
    if not file.is_file():
        return None
    row_of = {sample_id: row for row, sample_id in enumerate(sample_ids)}
    sides: tuple[list[tuple[int, int]], ...] = ([], [])
    for sample_id, source, label in zip(*pq.ParquetFile(file).read().to_pydict().values(), strict=True):
        name = source if sample_id is None else sample_id
        if name not in row_of:
            raise DataError(f"{file}: row {name!r} is not in the dataset; run dvc repro prepare")
        sides[sample_id is None].append((row_of[name], label))
    planted, others = (np.array(side, dtype=np.int64) for side in sides)
    return planted[:, 0], planted[:, 1], others[:, 0], others[:, 1]
