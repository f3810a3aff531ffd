"""The feature store: Parquet shards in dataset order, memory-mapped row access, total Moments beside them.

`z` is written PLAIN, uncompressed and one data page per row group, so the float32 values of a row group are the last
bytes of its column chunk, whole and contiguous. Any Parquet reader reads the file; ours also maps it, so the rows of a
request cost what the request is large, however many rows are retained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.errors import ManifestError
from expunge.files import read_manifest

ROW_GROUP = 16_384
MOMENTS = "moments.safetensors"
CLASS_SUMS = "class_sums.safetensors"


def schema(dim: int, subject: bool) -> pa.Schema:
    """Columns `sample_id`, `label`, `split`, optional `subject`, and `z` as `fixed_size_list<float32>[dim]`."""
    fields = [pa.field("sample_id", pa.string(), False), pa.field("label", pa.int32(), False), pa.field("split", pa.string(), False)]
    if subject:
        fields.append(pa.field("subject", pa.string()))
    return pa.schema([*fields, pa.field("z", pa.list_(pa.field("item", pa.float32(), False), dim), False)])


def write_shard(path: Path, rows: pa.Table, z: np.ndarray[Any, Any]) -> None:
    """Write one shard: `rows` holds the columns beside `z (n, d)` float32. Same input, same bytes."""
    n, dim = z.shape
    target = schema(dim, "subject" in rows.column_names)
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(z, np.float32).reshape(-1)), type=target.field("z").type)
    table = pa.table([*(rows[f.name].combine_chunks() for f in target if f.name != "z"), column], schema=target)
    with pq.ParquetWriter(
        path,
        target,
        compression={f.name: "zstd" for f in target if f.name != "z"} | {"z.list.element": "none"},
        use_dictionary=False,
        write_statistics=["sample_id", "label", "split"],
        data_page_size=1 << 30,  # with max_rows_per_page: one page per row group, which `_z_offset` relies on
        max_rows_per_page=ROW_GROUP,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
    for group, mapped in enumerate(_map_shard(path, dim)):
        start = group * ROW_GROUP
        if mapped[:1].tobytes() != z[start : start + 1].tobytes() or mapped[-1:].tobytes() != z[: start + len(mapped)][-1:].tobytes():
            raise ManifestError(f"{path}: row group {group} is not one plain page; this pyarrow lays Parquet out differently")


def _map_shard(path: Path, dim: int) -> list[np.ndarray[Any, Any]]:
    """Read-only views `(rows, dim)` of the row groups of a shard, without reading them."""
    try:
        meta = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise ManifestError(f"{path}: not a whole Parquet file ({e}); run the extract stage again") from None
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    views = []
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group).num_rows
        chunk = meta.row_group(group).column(meta.num_columns - 1)
        end = chunk.data_page_offset + chunk.total_compressed_size
        views.append(np.frombuffer(raw.data, np.float32, rows * dim, end - rows * dim * 4).reshape(rows, dim))
    return views


class FeatureStore:
    """Read access to a store directory.

    Opening checks the manifest and file sizes; `verify` also compares every sha256 (the quality gate does that once per
    extraction). Raises ManifestError naming what is missing, truncated or changed.
    """

    def __init__(self, directory: Path | str, verify: bool = False) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory, verify=verify)
        if "same_as" in self.manifest:
            self.directory = self.directory / self.manifest["same_as"]
            self.manifest = read_manifest(self.directory, verify=verify)
        self.dim: int = self.manifest["dim"]
        self.rows: int = sum(f.get("rows", 0) for f in self.manifest["files"].values())
        self.model_digest: str = self.manifest["model_digest"]
        self.shards = [self.directory / n for n in sorted(self.manifest["files"]) if n.endswith(".parquet")]
        self._views: list[np.ndarray[Any, Any]] | None = None

    def _groups(self) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
        if self._views is None:
            self._views = [view for shard in self.shards for view in _map_shard(shard, self.dim)]
            self._starts = np.cumsum([0, *(len(v) for v in self._views)])
            if self._starts[-1] != self.rows:
                raise ManifestError(f"{self.directory}: shards hold {self._starts[-1]} rows, the manifest says {self.rows}")
        return self._views, self._starts

    def z(self, rows: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """Features `(k, d)` float32 of the dataset positions `rows (k,)`, in that order; all rows when None."""
        views, starts = self._groups()
        if rows is None:
            out = np.empty((self.rows, self.dim), np.float32)
            for view, start in zip(views, starts, strict=False):
                out[start : start + len(view)] = view
            return out
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"{self.directory}: rows {rows.min()}..{rows.max()} asked for, the store has {self.rows}")
        out = np.empty((len(rows), self.dim), np.float32)
        group = np.searchsorted(starts, rows, side="right") - 1
        for g in np.unique(group):
            mine = np.flatnonzero(group == g)
            out[mine] = views[g][rows[mine] - starts[g]]
        return out

    def iter_z(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield `(first row, z (k, d))` per row group: mapped, so memory stays flat."""
        views, starts = self._groups()
        yield from zip((int(s) for s in starts[:-1]), views, strict=True)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One of `sample_id`, `label`, `split`, `subject` over all rows, in dataset order."""
        parts = [pq.read_table(shard, columns=[name])[name] for shard in self.shards]
        return np.asarray(pa.chunked_array([c for part in parts for c in part.chunks]).to_numpy(zero_copy_only=False))
