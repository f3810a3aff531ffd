"""Rewrite a Parquet file without some of its rows, and the manifest of its directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expunge.data.corrected import with_label_column
from expunge.system.files import MANIFEST, sha256, write_json

Mask = NDArray[np.bool_]


def copy_without(source: Path, target: Path, erased: Mask) -> None:
    """Write the Parquet file `source` to `target` without the rows of the mask `erased` `(n,)`.

    Row groups without retained rows are omitted.
    """
    _copy(source, target, lambda table, rows: table.filter(pa.array(~erased[rows])))


def copy_labelled(source: Path, target: Path, labels: NDArray[np.int32]) -> None:
    """Write the Parquet file `source` to `target` with `labels` `(n,)` in its column `label`."""
    _copy(source, target, lambda table, rows: with_label_column(table, labels[rows]))


def _copy(source: Path, target: Path, change: Callable[[pa.Table, slice], pa.Table]) -> None:
    """Copy a file by row groups; `change` gets each of them and the place of its rows in the file.

    Compression, dictionaries and statistics are those of `source`, so what does not change is stored as before.
    """
    with (
        pq.ParquetFile(source) as file,
        pq.ParquetWriter(target, file.schema_arrow, **_options(file.metadata)) as writer,
    ):
        start = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            table = change(file.read_row_group(group), slice(start, start + rows))
            start += rows
            if len(table):
                writer.write_table(table, row_group_size=len(table))


def _options(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Return the writer options of a file's columns, taken from its first row group."""
    if not metadata.num_row_groups:
        return {}
    first = metadata.row_group(0)
    columns = [first.column(i) for i in range(first.num_columns)]
    return {
        "compression": {
            c.path_in_schema: "none" if c.compression == "UNCOMPRESSED" else c.compression for c in columns
        },
        "use_dictionary": [c.path_in_schema for c in columns if c.has_dictionary_page],
        "write_statistics": [c.path_in_schema for c in columns if c.is_stats_set],
    }


def link(source: Path, target: Path) -> None:
    """Hard-link a file: an unchanged shard is not copied and keeps its bytes and its inode."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source.resolve(), target)


def renew_manifest(
    directory: Path, source: Path, old: Mapping[str, Any], rows: Mapping[str, int], **fields: Any
) -> dict[str, Any]:
    """Write and return the manifest of a directory that replaces `source`, whose manifest is `old`.

    `rows`: row counts of new files. `fields`: other entries to set. Entries of linked files are copied from `old`, so
    that a sweep hashes only the files that it wrote.
    """
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        name = file.relative_to(directory).as_posix()
        if (source / name).exists() and file.samefile(source / name):
            files[name] = old["files"][name]
        else:
            counts = {"rows": rows[name]} if name in rows else {}
            files[name] = {"sha256": sha256(file), "bytes": file.stat().st_size, **counts}
    manifest = {**old, **fields, "files": files}
    write_json(directory / MANIFEST, manifest)
    return manifest
