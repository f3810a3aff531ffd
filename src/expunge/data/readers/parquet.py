"""Parquet files with one encoded image a row: one file, or a directory of files read in name order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expunge.data.readers.labels import index_labels
from expunge.data.schema import ENCODED
from expunge.data.source import Batch, Source, split_names, stratified_test_rows
from expunge.errors import DataError

BATCH = 64
NAMES = {
    "image": ("image",),
    "label": ("label",),
    "id": ("sample_id", "id"),
    "subject": ("subject",),
    "split": ("split",),
}


def read_parquet(path: Path, test_fraction: float = 0.2, seed: int = 0) -> Source:
    """Columns `image` (file bytes, or a struct with a `bytes` field), `label` (integer or name), and optionally
    `sample_id` or `id`, `subject`, `split` ("train" or "test").

    Without ids a row is called by its number, without a split column a seeded stratified `test_fraction` is drawn.
    Images are streamed a few at a time; the label column is read first.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .parquet files in it")
    columns = _columns(files)
    label_type = _schema(files[0]).field(columns["label"]).type
    if not (pa.types.is_integer(label_type) or _is_text(label_type)):
        raise DataError(f"{files[0]}: column {columns['label']!r} is {label_type}; integers or names are needed")
    values = [v for f in files for v in _column(f, columns["label"])]
    names, labels = index_labels(values, str(path))
    drawn = None if "split" in columns else split_names(stratified_test_rows(labels, test_fraction, seed))
    width = len(str(len(labels) - 1))

    def batches() -> Iterator[Batch]:
        row = 0
        for file in files:
            for table in _stream(file, list(columns.values())):
                n = table.num_rows
                cut = slice(row, row + n)
                get = {key: table[name] for key, name in columns.items()}
                ids = [f"{i:0{width}d}" for i in range(row, row + n)]
                if "id" in get:
                    ids = [str(v) for v in _present(get["id"], file, columns["id"], row)]
                splits = drawn[cut] if drawn is not None else _present(get["split"], file, columns["split"], row)
                subjects = None
                if "subject" in get:
                    subjects = [None if v is None else str(v) for v in get["subject"].to_pylist()]
                images = _present(get["image"], file, columns["image"], row)
                yield Batch(ids, labels[cut], splits, images, subjects)
                row += n

    return Source("parquet", names, ENCODED, batches(), has_subject="subject" in columns)


def _columns(files: list[Path]) -> dict[str, str]:
    """Which column of the files plays which role; all files must have the same."""
    columns: dict[str, str] = {}
    for file in files:
        schema = _schema(file)
        found = {}
        for role, names in NAMES.items():
            name = next((n for n in names if n in schema.names), None)
            if name is not None:
                found[role] = name
            elif role in ("image", "label"):
                raise DataError(f"{file}: no column {role!r}; it has {', '.join(schema.names)}")
        if columns and found != columns:
            raise DataError(f"{file}: its columns differ from those of {files[0]}; give all files the same")
        columns = found
    return columns


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{file}: not a whole Parquet file ({e}); write or fetch it again") from e


def _column(file: Path, name: str) -> list[Any]:
    return [value for table in _stream(file, [name]) for value in table[name].to_pylist()]


def _stream(file: Path, columns: list[str]) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(file) as reader:
            for batch in reader.iter_batches(batch_size=BATCH, columns=columns):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{file}: damaged Parquet file ({e}); write or fetch it again") from e


def _present(column: pa.ChunkedArray, file: Path, name: str, first: int) -> list[Any]:
    """The values of a column that must not be missing; image structs give their bytes."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    missing = np.flatnonzero(column.is_null().to_numpy())
    if len(missing):
        raise DataError(f"{file}: row {first + missing[0]} has no {name}")
    values: list[Any] = column.to_pylist()
    return values


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
