"""The feature store: Parquet shards in dataset order, memory-mapped row access, total Moments beside them.

`z` is written PLAIN, uncompressed and one data page per row group, so the values of a row group are the last bytes of
its column chunk, whole and contiguous. Any Parquet reader reads the file; ours also maps it, so the rows of a request
cost what the request is large, however many rows are retained. Readers get float32, whatever is stored.
"""

from __future__ import annotations

import mmap
import os
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
MAPPED_AT_ONCE = 2**16  # bytes that Linux maps around the one that is touched
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
    for at, group in enumerate(_map_shard(path, dim, dtype)):
        start, mapped = at * ROW_GROUP, group.z
        if (
            mapped[:1].tobytes() != z[start : start + 1].tobytes()
            or mapped[-1:].tobytes() != z[: start + len(mapped)][-1:].tobytes()
        ):
            raise ManifestError(
                f"{path}: row group {at} is not one plain page; this pyarrow lays Parquet out differently"
            )


@dataclass(frozen=True)
class Group:
    """A row group: `z (rows, d)` mapped read-only, and where it starts in which shard's file, whose inode it knows."""

    shard: int
    inode: int
    offset: int
    z: np.ndarray


def _map_shard(path: Path, dim: int, dtype: str, shard: int = 0) -> list[Group]:
    """The row groups of a shard, without reading them."""
    try:
        meta = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise ManifestError(f"{path}: not a whole Parquet file ({e}); run the extract stage again") from None
    with path.open("rb") as file:
        inode = os.fstat(file.fileno()).st_ino
        raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    number = np.dtype(NUMBERS[dtype].stored)
    groups = []
    for at in range(meta.num_row_groups):
        rows = meta.row_group(at).num_rows
        chunk = meta.row_group(at).column(meta.num_columns - 1)
        offset = chunk.data_page_offset + chunk.total_compressed_size - rows * dim * number.itemsize
        groups.append(Group(shard, inode, offset, np.frombuffer(raw, number, rows * dim, offset).reshape(rows, dim)))
    return groups


class Shards:
    """Row access to shard files in dataset order, memory-mapped. `dtype` is how `z` is stored."""

    def __init__(self, paths: Sequence[Path], dim: int, dtype: str = "fp32") -> None:
        self.paths = list(paths)
        self.dim = dim
        self.dtype = dtype

    @cached_property
    def _groups(self) -> list[Group]:
        return [g for i, path in enumerate(self.paths) for g in _map_shard(path, self.dim, self.dtype, i)]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(group.z) for group in self._groups)])

    def z(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Features `(k, d)` float32 of the dataset positions `rows (k,)`, in that order; all rows when None."""
        if rows is None:
            everything = np.empty((self._starts[-1], self.dim), np.float32)
            for start, z in self.iter_z():
                everything[start : start + len(z)] = z
            return everything
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self._starts[-1]):
            raise IndexError(f"rows {rows.min()} .. {rows.max()} asked for, the store has {self._starts[-1]}")
        at = np.searchsorted(self._starts, rows, side="right") - 1
        row_bytes = self.dim * np.dtype(NUMBERS[self.dtype].stored).itemsize
        if len(rows) * MAPPED_AT_ONCE < self._starts[-1] * row_bytes:
            return widen(self._read(rows, at, row_bytes), self.dtype)
        out = np.empty((len(rows), self.dim), np.float32)
        for g in np.unique(at):
            mine = np.flatnonzero(at == g)
            out[mine] = widen(self._groups[g].z[rows[mine] - self._starts[g]], self.dtype)
        return out

    def _read(self, rows: np.ndarray, at: np.ndarray, row_bytes: int) -> np.ndarray:
        """`rows (k,)` of the groups `at (k,)` as stored, one read each: they lie so far apart that the memory map
        would bring in, for every one of them, many times what it holds."""
        offsets = np.array([group.offset for group in self._groups])[at] + (rows - self._starts[at]) * row_bytes
        shards = np.array([group.shard for group in self._groups])[at]
        inodes = {group.shard: group.inode for group in self._groups}
        out = np.empty((len(rows), self.dim), NUMBERS[self.dtype].stored)
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            with self.paths[shard].open("rb", buffering=0) as file:
                number = file.fileno()
                if os.fstat(number).st_ino != inodes[shard]:
                    raise ManifestError(f"{self.paths[shard]}: was replaced while the store was open; open it again")
                content = b"".join([os.pread(number, row_bytes, offset) for offset in offsets[mine].tolist()])
            out[mine] = np.frombuffer(content, out.dtype).reshape(len(mine), self.dim)
        return out

    def iter_z(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(first row, z (k, d) float32)` per row group: mapped, so memory stays flat."""
        for start, group in zip(self._starts[:-1], self._groups, strict=True):
            yield int(start), widen(group.z, self.dtype)

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
