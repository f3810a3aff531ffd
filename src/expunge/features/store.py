"""The feature store: Parquet shards in dataset order, memory-mapped row access, total Moments beside them.

`z` is written PLAIN, uncompressed and one data page per row group, so the values of a row group are the last bytes of
its column chunk, whole and contiguous. Any Parquet reader reads the file; ours also maps it, so the rows of a request
cost what the request is large, however many rows are retained. Readers get float32, whatever is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.data.tombstones import Tombstones, refuse
from expunge.errors import ManifestError
from expunge.features import parquet
from expunge.files import read_manifest

ROW_GROUP = 16_384
MOMENTS = "moments.safetensors"
CLASS_SUMS = "class_sums.safetensors"


@dataclass(frozen=True)
class Numbers:
    """How `z` lies on disk."""

    name: str
    stored: type[np.generic]
    arrow: pa.DataType


# Arrow and Parquet have no bfloat16: its two bytes, little endian, are stored as they are.
NUMBERS = {
    "fp32": Numbers("float32", np.float32, pa.float32()),
    "fp16": Numbers("float16", np.float16, pa.float16()),
    "bf16": Numbers("bfloat16", np.uint16, pa.binary(2)),
}


def narrow(z: np.ndarray, dtype: str) -> np.ndarray:
    """float32 `z` as it is stored in `dtype`, rounded to nearest, ties to even; what is too large becomes infinite."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return z.astype(NUMBERS[dtype].stored, copy=False)
    bits = np.ascontiguousarray(z).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """What `narrow` made, as float32."""
    if dtype != "bf16":
        return stored.astype(np.float32, copy=False)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def schema(dim: int, subject: bool, dtype: str = "fp32") -> pa.Schema:
    """Columns `sample_id`, `label`, `split`, optional `subject`, and `z` as `fixed_size_list<number>[dim]`."""
    fields = [
        pa.field("sample_id", pa.string(), False),
        pa.field("label", pa.int32(), False),
        pa.field("split", pa.string(), False),
    ]
    if subject:
        fields.append(pa.field("subject", pa.string()))
    note = {"dtype": "bfloat16, little endian"} if dtype == "bf16" else None
    item = pa.field("item", NUMBERS[dtype].arrow, False, metadata=note)
    return pa.schema([*fields, pa.field("z", pa.list_(item, dim), False)])


def write_shard(path: Path, rows: pa.Table, z: np.ndarray, dtype: str = "fp32") -> None:
    """Write one shard: `rows` holds the columns beside `z (n, d)`, which `narrow` made. Same input, same bytes."""
    dim = z.shape[1]
    target = schema(dim, "subject" in rows.column_names, dtype)
    z = np.ascontiguousarray(z, NUMBERS[dtype].stored)
    names = [field.name for field in target][:-1]
    parquet.write(
        path,
        rows.select(names).cast(pa.schema([target.field(name) for name in names])),
        target,
        z,
        ROW_GROUP,
        compression="zstd",
        use_dictionary=False,
        write_statistics=["sample_id", "label", "split"],
    )
    for group, mapped in enumerate(_map_shard(path, dim, dtype)):
        start = group * ROW_GROUP
        if (
            mapped[:1].tobytes() != z[start : start + 1].tobytes()
            or mapped[-1:].tobytes() != z[: start + len(mapped)][-1:].tobytes()
        ):
            raise ManifestError(
                f"{path}: row group {group} is not one plain page; this pyarrow lays Parquet out differently"
            )


def _map_shard(path: Path, dim: int, dtype: str) -> list[np.ndarray]:
    """Read-only views `(rows, dim)` of the row groups of a shard, without reading them."""
    try:
        meta = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise ManifestError(f"{path}: not a whole Parquet file ({e}); run the extract stage again") from None
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    number = np.dtype(NUMBERS[dtype].stored)
    views = []
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group).num_rows
        chunk = meta.row_group(group).column(meta.num_columns - 1)
        end = chunk.data_page_offset + chunk.total_compressed_size
        views.append(np.frombuffer(raw.data, number, rows * dim, end - rows * dim * number.itemsize).reshape(rows, dim))
    return views


class Shards:
    """Row access to shard files in dataset order, memory-mapped. `dtype` is how `z` is stored."""

    def __init__(self, paths: Sequence[Path], dim: int, dtype: str = "fp32") -> None:
        self.paths = list(paths)
        self.dim = dim
        self.dtype = dtype

    @cached_property
    def _views(self) -> list[np.ndarray]:
        return [view for path in self.paths for view in _map_shard(path, self.dim, self.dtype)]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(view) for view in self._views)])

    def z(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Features `(k, d)` float32 of the dataset positions `rows (k,)`, in that order; all rows when None."""
        if rows is None:
            everything = np.empty((self._starts[-1], self.dim), np.float32)
            for start, view in zip(self._starts[:-1], self._views, strict=True):
                everything[start : start + len(view)] = widen(view, self.dtype)
            return everything
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self._starts[-1]):
            raise IndexError(f"rows {rows.min()} .. {rows.max()} asked for, the store has {self._starts[-1]}")
        out = np.empty((len(rows), self.dim), np.float32)
        group = np.searchsorted(self._starts, rows, side="right") - 1
        for g in np.unique(group):
            mine = np.flatnonzero(group == g)
            out[mine] = widen(self._views[g][rows[mine] - self._starts[g]], self.dtype)
        return out

    def iter_z(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(first row, z (k, d) float32)` per row group: mapped, so memory stays flat."""
        for start, view in zip(self._starts[:-1], self._views, strict=True):
            yield int(start), widen(view, self.dtype)

    def column(self, name: str) -> np.ndarray:
        """One of `sample_id`, `label`, `split`, `subject` over all rows, in dataset order."""
        table = pa.concat_tables([pq.ParquetFile(path).read([name]) for path in self.paths])
        return np.array(table[name].to_numpy())  # a copy: Arrow's memory is read-only


class FeatureStore(Shards):
    """A store directory.

    Opening checks the manifest and file sizes; `verify` also compares every sha256 (the quality gate does that once per
    extraction). A store may say that it is the same as another one: a model whose backbone is frozen has the features
    of its original. Raises ManifestError naming what is missing, truncated or changed, DataError where an erased row is
    back.
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
        stored = self.manifest.get("dtype", "float32")
        dtype = next((name for name, numbers in NUMBERS.items() if numbers.name == stored), None)
        if dtype is None:
            raise ManifestError(f"{self.directory}: z is stored as {stored!r}, which this version does not read")
        shards = [self.directory / name for name in sorted(files) if name.endswith(".parquet")]
        super().__init__(shards, self.manifest["dim"], dtype)
        self.rows: int = sum(entry.get("rows", 0) for entry in files.values())
        self.model_digest: str = self.manifest["model_digest"]
        if self._starts[-1] != self.rows:
            raise ManifestError(
                f"{self.directory}: its shards hold {self._starts[-1]} rows, the manifest says {self.rows}"
            )
        if (tombstones := Tombstones.near(self.directory)) is not None:
            refuse(tombstones, self.directory, self.column("sample_id").tolist(), None)
