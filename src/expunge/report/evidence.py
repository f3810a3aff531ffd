"""Data of the plots beside summary.json: outputs per row of every model, on rows drawn with a seed, without ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expunge.data.schema import FORGET, RETAIN, TEST_RETAIN, UNSEEN
from expunge.evaluation.rows import thinned
from expunge.system.errors import ManifestError

ROWS = 20_000  # largest number of rows of each part
VIEW_ROWS = {"retained": 300, "unseen": 100, "forgotten": 200}  # points of a 2-D view, drawn in this order
BATCH = 65_536

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """`labels (n,)` int, `parts (n,)` str, and per candidate `logits (n, C)`, all of the same drawn rows.

    `views`: title -> features `(k, d)` of the rows whose group (forgotten, unseen, retained) is `view_groups (k,)`.
    `drawn`: a sentence that says how the rows were chosen.
    """

    classes: tuple[str, ...]
    labels: NDArray[Any]
    parts: NDArray[Any]
    logits: Mapping[str, NDArray[Any]]
    views: Mapping[str, NDArray[Any]]
    view_groups: NDArray[Any]
    drawn: str

    @cached_property
    def groups(self) -> dict[str, Index]:
        """Return the positions of the forgotten, the unseen, the retained and the other test rows.

        The unseen rows are the test rows of the same classes as the forgotten ones.
        """
        return groups_of(self.labels, self.parts)


def groups_of(labels: NDArray[Any], parts: NDArray[Any]) -> dict[str, Index]:
    """Return the positions of the rows of each group, from `labels (n,)` and `parts (n,)`; see `Evidence.groups`."""
    test = np.char.startswith(parts, "test")
    same = np.isin(labels, np.unique(labels[parts == FORGET]))
    return {
        "forgotten": np.flatnonzero(parts == FORGET),
        "unseen": np.flatnonzero(test & same),
        "retained": np.flatnonzero(parts == RETAIN),
        "retained test": np.flatnonzero(parts == TEST_RETAIN),
    }


def draw_rows(parts: NDArray[Any], seed: int, limit: int = ROWS) -> Index:
    """Draw at most `limit` rows of each part that is evaluated, and return them in dataset order."""
    rng = np.random.default_rng([seed, 101])
    drawn = [thinned(np.flatnonzero(parts == part), limit, rng) for part in np.unique(parts) if part != UNSEEN]
    return np.sort(np.concatenate(drawn))


def draw_view(labels: NDArray[Any], parts: NDArray[Any], seed: int) -> tuple[Index, NDArray[Any]]:
    """Draw the rows of a 2-D view; returns their positions `(k,)` and groups `(k,)`."""
    rng = np.random.default_rng([seed, 102])
    groups = groups_of(labels, parts)
    drawn = {name: thinned(groups[name], size, rng) for name, size in VIEW_ROWS.items()}
    return np.concatenate(list(drawn.values())), np.repeat(list(drawn), [len(rows) for rows in drawn.values()])


def drawn_words(count: int, total: int, seed: int) -> str:
    """Return a sentence that says how the rows of the plots were chosen."""
    if count == total:
        return f"All {total:,} rows are counted."
    return f"{count:,} of {total:,} rows are counted: at most {ROWS:,} of each part, drawn with seed {seed}."


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return scalar columns of an evaluation file as numpy arrays. Raises ManifestError if it cannot be read."""
    try:
        table = pq.ParquetFile(path).read(list(columns))
    except (pa.ArrowException, OSError) as e:
        raise ManifestError(f"{path}: cannot be read ({e}); run the evaluate stage again") from None
    return {name: np.array(table[name].to_pylist()) for name in columns}


def read_logits(path: Path, rows: Index) -> NDArray[Any]:
    """Return the logits `(k, C)` float32 of the ascending dataset positions `rows`.

    The file is read in batches, because it may be larger than memory. Raises ManifestError if it cannot be read or has
    too few rows.
    """
    picked, start = [], 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["logits"]):
            here = rows[(rows >= start) & (rows < start + len(batch))] - start
            if len(here):
                column = batch.column(0).take(pa.array(here))
                picked.append(column.flatten().to_numpy(zero_copy_only=False).reshape(len(here), -1))
            start += len(batch)
    except (pa.ArrowException, OSError) as e:
        raise ManifestError(f"{path}: cannot be read ({e}); run the evaluate stage again") from None
    if len(rows) and rows[-1] >= start:
        raise ManifestError(
            f"{path}: holds {start} rows, but row {rows[-1]} was asked for; run the evaluate stage again"
        )
    return np.concatenate(picked)
