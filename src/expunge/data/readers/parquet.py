"""Read Parquet files with one encoded image per row: one file, or the files of a directory in name order."""

from __future__ import annotations

from pathlib import Path

from expunge.data.readers.tables import read_table
from expunge.data.schema import ENCODED
from expunge.data.source import Source


def read_parquet(path: Path, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Read the columns `image` (file bytes, or a struct with a `bytes` field) and `label` (integer or name).

    Optional columns are `sample_id` or `id`, `subject`, and `split` ("train" or "test"). See `read_table`.
    """
    return read_table(path, "parquet", ENCODED, (".parquet",), test_fraction, seed)
