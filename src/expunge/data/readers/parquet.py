"""Parquet files with one encoded image a row: one file, or a directory of files read in name order."""

from __future__ import annotations

from pathlib import Path

from expunge.data.readers.tables import read_table
from expunge.data.schema import ENCODED
from expunge.data.source import Source


def read_parquet(path: Path, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Columns `image` (file bytes, or a struct with a `bytes` field), `label` (integer or name), and optionally
    `sample_id` or `id`, `subject`, `split` ("train" or "test")."""
    return read_table(path, "parquet", ENCODED, (".parquet",), test_fraction, seed)
