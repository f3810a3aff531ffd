"""Read tables (Parquet, CSV, TSV) with one image or text per row: one file, or those of a directory in name order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from expunge.data.readers.labels import index_labels
from expunge.data.schema import content_column
from expunge.data.source import Batch, Source, split_names, stratified_test_rows
from expunge.system.damage import reading
from expunge.system.errors import DataError

BATCH = 64
AGAIN = "write or fetch it again"
CSV_BLOCK = 1 << 20  # bytes read at once; a row must fit into one block
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ROLES = {
    "label": ("label",),
    "id": ("sample_id", "id"),
    "subject": ("subject",),
    "split": ("split",),
}


def read_table(
    path: Path, source: str, encoding: str, suffixes: tuple[str, ...], test_fraction: float, seed: int
) -> Source:
    """Read the rows of files with one of `suffixes`; the content column is `image` or `text`, according to `encoding`.

    Without an id column, ids are row numbers. Without a split column, a seeded stratified `test_fraction` is drawn.
    Content is streamed a few rows at a time; the label column is read first. Raises DataError for missing columns,
    columns of a wrong type and missing values; the message names the file and, where there is one, the row.
    """
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in suffixes)
    elif path.suffix.lower() in suffixes:
        files = [path]
    else:
        raise DataError(f"{path}: data.source {source} reads only {' or '.join(suffixes)} files")
    if not files:
        raise DataError(f"{path}: contains no {' or '.join(suffixes)} files")
    content = content_column(encoding)
    columns = _roles(files, content)
    _check_types(files, columns, encoding)
    names, labels = index_labels([v for f in files for v in _labels(f, columns["label"])], str(path))
    drawn = None if "split" in columns else split_names(stratified_test_rows(labels, test_fraction, seed))
    width = len(str(len(labels) - 1))

    def batches() -> Iterator[Batch]:
        row = 0
        for file in files:
            for table in _stream(file, list(columns.values())):
                n = table.num_rows
                cut = slice(row, row + n)
                get = {role: table[name] for role, name in columns.items()}
                ids = [f"{i:0{width}d}" for i in range(row, row + n)]
                if "id" in get:
                    ids = [str(v) for v in _present(get["id"], file, columns["id"], row)]
                splits = drawn[cut] if drawn is not None else _present(get["split"], file, columns["split"], row)
                subjects = None
                if "subject" in get:
                    subjects = [None if v is None else str(v) for v in get["subject"].to_pylist()]
                yield Batch(ids, labels[cut], splits, _present(get[content], file, content, row), subjects)
                row += n

    return Source(source, names, encoding, batches(), has_subject="subject" in columns)


def _roles(files: list[Path], content: str) -> dict[str, str]:
    """Map each role to its column. Raises DataError if one is missing or the files differ."""
    columns: dict[str, str] = {}
    for file in files:
        known = _column_names(file)
        found = {}
        for role, names in {content: (content,), **ROLES}.items():
            name = next((n for n in names if n in known), None)
            if name is not None:
                found[role] = name
            elif role in (content, "label"):
                raise DataError(f"{file}: no column {role!r}; it has {', '.join(known)}")
        if columns and found != columns:
            raise DataError(f"{file}: its columns differ from those of {files[0]}; give all files the same columns")
        columns = found
    return columns


def _column_names(file: Path) -> list[str]:
    with reading(file, AGAIN, DataError):
        if file.suffix.lower() in DELIMITERS:
            with _open_csv(file, None) as reader:
                return list(reader.schema.names)
        return list(pq.read_schema(file).names)


def _check_types(files: list[Path], columns: dict[str, str], encoding: str) -> None:
    """Raise DataError for a Parquet column of a type that cannot be used; all columns of CSV and TSV files are text."""
    for file in files:
        if file.suffix.lower() in DELIMITERS:
            continue
        schema = pq.read_schema(file)
        for role, name in columns.items():
            kind = schema.field(name).type
            if role == "text" or role == "split":
                fits, wanted = _is_text(kind), "text"
            elif role == "image":
                fits, wanted = _is_file(kind), "the bytes of image files"
            else:
                fits, wanted = pa.types.is_integer(kind) or _is_text(kind), "integers or text"
            if not fits:
                raise DataError(f"{file}: column {name!r} has the type {kind}, but it must hold {wanted}")


def _is_file(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_file(kind.field(at).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _labels(file: Path, name: str) -> list[Any]:
    """Return the labels of one file; those of a CSV or TSV file become integers if all of them are digits."""
    values = []
    for table in _stream(file, [name]):
        column = table[name]
        values += column.to_pylist()
    if file.suffix.lower() in DELIMITERS and all(v is not None and v.isascii() and v.isdigit() for v in values):
        return [int(v) for v in values]
    return values


def _stream(file: Path, columns: list[str]) -> Iterator[pa.Table]:
    with reading(file, AGAIN, DataError):
        if file.suffix.lower() in DELIMITERS:
            with _open_csv(file, columns) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
            return
        with pq.ParquetFile(file) as reader:
            for batch in reader.iter_batches(batch_size=BATCH, columns=columns):
                batch.validate(full=True)  # offsets of a damaged page may point past its end
                yield pa.Table.from_batches([batch])


def _open_csv(file: Path, columns: list[str] | None) -> pacsv.CSVStreamingReader:
    """Open a file with all columns as text and empty cells as missing values.

    CSV uses double quotes; TSV has no quoting, as in IANA's definition of text/tab-separated-values.
    """
    quoted = DELIMITERS[file.suffix.lower()] == ","
    convert: dict[str, Any] = {"strings_can_be_null": True, "null_values": [""]}
    if columns is not None:
        convert |= {"include_columns": columns, "column_types": dict.fromkeys(columns, pa.string())}
    return pacsv.open_csv(
        file,
        read_options=pacsv.ReadOptions(block_size=CSV_BLOCK),
        parse_options=pacsv.ParseOptions(
            delimiter=DELIMITERS[file.suffix.lower()], quote_char='"' if quoted else False, newlines_in_values=quoted
        ),
        convert_options=pacsv.ConvertOptions(**convert),
    )


def _present(column: pa.ChunkedArray, file: Path, name: str, first: int) -> list[Any]:
    """Return the values of a column; of image structs, the field `bytes`. Raises DataError for a missing value."""
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
