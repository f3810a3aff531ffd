"""Read Parquet, CSV or TSV files with one text per row: one file, or the files of a directory in name order."""

from __future__ import annotations

from pathlib import Path

from expunge.data.readers.tables import DELIMITERS, read_table
from expunge.data.schema import TEXT
from expunge.data.source import Source


def read_text(path: Path, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Read the columns `text` and `label`, and optionally `sample_id` or `id`, `subject` and `split`.

    A label is an integer or a name, and a split is "train" or "test". The first line of CSV and TSV files names the
    columns. See `read_table`.
    """
    return read_table(path, "text", TEXT, (".parquet", *DELIMITERS), test_fraction, seed)
