"""The feature store: Parquet shards in dataset order, memory-mapped row access, total Moments beside them.

`z` is written PLAIN, uncompressed and one data page per row group, so the float32 values of a row group are the last
bytes of its column chunk, whole and contiguous. Any Parquet reader reads the file; ours also maps it, so the rows of a
request cost what the request is large, however many rows are retained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

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
    fields = [
        pa.field("sample_id", pa.string(), False),
        pa.field("label", pa.int32(), False),
        pa.field("split", pa.string(), False),
    ]
    if subject:
        fields.append(pa.field("subject", pa.string()))
    return pa.schema([*fields, pa.field("z", pa.list_(pa.field("item", pa.float32(), False), dim), False)])


def write_shard(path: Path, rows: pa.Table, z: np.ndarray) -> None:
    """Write one shard: `rows` holds the columns beside `z (n, d)` float32. Same input, same bytes."""
    dim = z.shape[1]
    target = schema(dim, "subject" in rows.column_names)
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(z, np.float32).reshape(-1)), type=target.field("z").type
    )
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
        if (
            mapped[:1].tobytes() != z[start : start + 1].tobytes()
            or mapped[-1:].tobytes() != z[: start + len(mapped)][-1:].tobytes()
        ):
            raise ManifestError(
                f"{path}: row group {group} is not one plain page; this pyarrow lays Parquet out differently"
            )


def _map_shard(path: Path, dim: int) -> list[np.ndarray]:
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


class Shards:
    """Row access to shard files in dataset order, memory-mapped."""

    def __init__(self, paths: Sequence[Path], dim: int) -> None:
        self.paths = list(paths)
        self.dim = dim

    @cached_property
    def _views(self) -> list[np.ndarray]:
        return [view for path in self.paths for view in _map_shard(path, self.dim)]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(view) for view in self._views)])

    def z(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Features `(k, d)` float32 of the dataset positions `rows (k,)`, in that order; all rows when None."""
        if rows is None:
            return np.concatenate(self._views)
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self._starts[-1]):
            raise IndexError(f"rows {rows.min()} .. {rows.max()} asked for, the store has {self._starts[-1]}")
        out = np.empty((len(rows), self.dim), np.float32)
        group = np.searchsorted(self._starts, rows, side="right") - 1
        for g in np.unique(group):
            mine = np.flatnonzero(group == g)
            out[mine] = self._views[g][rows[mine] - self._starts[g]]
        return out

    def iter_z(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(first row, z (k, d))` per row group: mapped, so memory stays flat."""
        yield from zip((int(s) for s in self._starts[:-1]), self._views, strict=True)

    def column(self, name: str) -> np.ndarray:
        """One of `sample_id`, `label`, `split`, `subject` over all rows, in dataset order."""
        table = pa.concat_tables([pq.ParquetFile(path).read([name]) for path in self.paths])
        return np.array(table[name].to_numpy())  # a copy: Arrow's memory is read-only


class FeatureStore(Shards):
    """A store directory.

    Opening checks the manifest and file sizes; `verify` also compares every sha256 (the quality gate does that once per
    extraction). A store may say that it is the same as another one: a model whose backbone is frozen has the features
    of its original. Raises ManifestError naming what is missing, truncated or changed.
    """

    def __init__(self, directory: Path | str, verify: bool = False) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory, verify=verify)
        if "same_as" in self.manifest:
            self.directory = self.directory / self.manifest["same_as"]
            self.manifest = read_manifest(self.directory, verify=verify)
        if "dim" not in self.manifest:
            raise ManifestError(
                f"{self.directory}: not a feature store (its producer is {self.manifest.get('producer')!r})"
            )
        files = self.manifest["files"]
        super().__init__(
            [self.directory / name for name in sorted(files) if name.endswith(".parquet")], self.manifest["dim"]
        )
        self.rows: int = sum(entry.get("rows", 0) for entry in files.values())
        self.model_digest: str = self.manifest["model_digest"]
        if self._starts[-1] != self.rows:
            raise ManifestError(
                f"{self.directory}: its shards hold {self._starts[-1]} rows, the manifest says {self.rows}"
            )
