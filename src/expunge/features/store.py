"""The feature store: Parquet shards in dataset order with memory-mapped row access, and the total Moments.

`z` is written with PLAIN encoding, uncompressed, in one data page per row group. The values of a row group are
therefore the last bytes of its column chunk, contiguous. Any Parquet reader can read the files. This module also maps
them into memory, so that the cost of reading the rows of a request depends on their number only. Readers always get
float32.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.data.tombstones import Tombstones, refuse
from expunge.features import parquet
from expunge.system.damage import reading
from expunge.system.errors import ManifestError
from expunge.system.files import read_manifest

ROW_GROUP = 16_384
AGAIN = "run the extract stage again"
MOMENTS = "moments.safetensors"
CLASS_SUMS = "class_sums.safetensors"


@dataclass(frozen=True)
class StorageType:
    """How `z` is stored on disk."""

    name: str
    stored: type[np.generic]
    arrow: pa.DataType


# Arrow and Parquet have no bfloat16, so its two bytes are stored as little-endian binary values.
STORAGE_TYPES = {
    "fp32": StorageType("float32", np.float32, pa.float32()),
    "fp16": StorageType("float16", np.float16, pa.float16()),
    "bf16": StorageType("bfloat16", np.uint16, pa.binary(2)),
}


def narrow(z: np.ndarray, dtype: str) -> np.ndarray:
    """Convert float32 `z` to its stored form in `dtype`, rounded to nearest, ties to even; overflow gives infinity."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return z.astype(STORAGE_TYPES[dtype].stored, copy=False)
    bits = np.ascontiguousarray(z).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Convert the result of `narrow` back to float32."""
    if dtype != "bf16":
        return stored.astype(np.float32, copy=False)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def schema(dim: int, subject: bool, dtype: str = "fp32") -> pa.Schema:
    """Return the columns `sample_id`, `label`, `split`, optional `subject`, and `z` `fixed_size_list<number>[dim]`."""
    fields = [
        pa.field("sample_id", pa.string(), False),
        pa.field("label", pa.int32(), False),
        pa.field("split", pa.string(), False),
    ]
    if subject:
        fields.append(pa.field("subject", pa.string()))
    note = {"dtype": "bfloat16, little endian"} if dtype == "bf16" else None
    item = pa.field("item", STORAGE_TYPES[dtype].arrow, False, metadata=note)
    return pa.schema([*fields, pa.field("z", pa.list_(item, dim), False)])


def write_shard(path: Path, rows: pa.Table, z: np.ndarray, dtype: str = "fp32") -> None:
    """Write one shard, deterministically; `rows` has the other columns, `z (n, d)` is the result of `narrow`.

    Raises ManifestError if a row group does not have the expected layout.
    """
    dim = z.shape[1]
    target = schema(dim, "subject" in rows.column_names, dtype)
    z = np.ascontiguousarray(z, STORAGE_TYPES[dtype].stored)
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
    start = 0
    for number, view in enumerate(_views(_map(path), groups(path, dim, dtype), dim, dtype)):
        mine = z[start : start + len(view)]
        if view[:1].tobytes() != mine[:1].tobytes() or view[-1:].tobytes() != mine[-1:].tobytes():
            raise ManifestError(
                f"{path}: row group {number} is not a single plain page, because this version of pyarrow writes "
                "Parquet differently; install the pinned version"
            )
        start += len(view)


def groups(path: Path, dim: int, dtype: str = "fp32") -> list[list[int]]:
    """Read `[first byte of z, rows]` of each row group from the footer of a shard. Raises ManifestError if damaged."""
    with reading(path, AGAIN):
        meta = pq.read_metadata(path)
    number, found = np.dtype(STORAGE_TYPES[dtype].stored).itemsize, []
    for i in range(meta.num_row_groups):
        rows = meta.row_group(i).num_rows
        chunk = meta.row_group(i).column(meta.num_columns - 1)
        first = chunk.data_page_offset + chunk.total_compressed_size - rows * dim * number
        if rows and (first < 0 or first % number):
            raise ManifestError(f"{path}: its footer puts z at byte {first}, where no shard has it; {AGAIN}")
        found.append([first, rows])
    return found


def _map(path: Path) -> mmap.mmap:
    """Map a file into memory, read-only."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _views(content: mmap.mmap, groups: Sequence[Sequence[int]], dim: int, dtype: str) -> Iterator[np.ndarray]:
    """Yield a read-only array `(rows, dim)` of each row group."""
    for first, rows in groups:
        yield np.ndarray((rows, dim), STORAGE_TYPES[dtype].stored, content, first)


class Shards:
    """Memory-mapped row access to shard files in dataset order; `z` is stored as `dtype`.

    `known` maps names of files to their `groups`, so that their footers need not be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        dim: int,
        dtype: str = "fp32",
        known: Mapping[str, Sequence[Sequence[int]]] | None = None,
    ) -> None:
        self.paths = list(paths)
        self.dim = dim
        self.dtype = dtype
        self._known = known or {}

    @cached_property
    def _groups(self) -> list[Sequence[Sequence[int]]]:
        return [self._known.get(path.name) or groups(path, self.dim, self.dtype) for path in self.paths]

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row group the shard, the first byte of z, and the first row, followed by the total number of rows."""
        shard = np.repeat(np.arange(len(self.paths)), [len(shard) for shard in self._groups])
        first, rows = np.array([group for shard in self._groups for group in shard], np.int64).reshape(-1, 2).T
        return shard, first, np.cumsum([0, *rows])

    def z(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the features `(k, d)`, float32, at the dataset positions `rows (k,)`, in that order; None: all rows.

        Raises IndexError for a position outside the store.
        """
        shard, first, starts = self._places
        if rows is None:
            everything = np.empty((starts[-1], self.dim), np.float32)
            for start, chunk in self.iter_z():
                everything[start : start + len(chunk)] = chunk
            return everything
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= starts[-1]):
            raise IndexError(f"rows {rows.min()} to {rows.max()} are outside the store, which has {starts[-1]} rows")
        order = np.argsort(rows, kind="stable")
        group = np.searchsorted(starts, rows[order], side="right") - 1
        row_bytes = self.dim * np.dtype(STORAGE_TYPES[self.dtype].stored).itemsize
        at = first[group] + (rows[order] - starts[group]) * row_bytes
        stored = self._gather(np.searchsorted(shard[group], np.arange(len(self.paths) + 1)), at)
        z = widen(stored, self.dtype)
        return z if (order[1:] > order[:-1]).all() else z[np.argsort(order)]

    def _gather(self, bounds: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return stored rows by their byte offsets `at`; those in shard i are `at[bounds[i] : bounds[i + 1]]`.

        A file is viewed as a strided matrix with overlapping rows, one at every offset at which a row may begin, from
        which torch.index_select copies. Most of the time is spent on memory that is touched for the first time, and
        torch does this with several threads.
        """
        import torch  # imported here, because checks and listings of a store do not need it

        number = np.dtype(STORAGE_TYPES[self.dtype].stored)
        size = self.dim * number.itemsize
        number = np.dtype(np.int16) if number == np.uint16 else number  # index_select does not support uint16
        found = np.empty((len(at), self.dim), number)
        for i in np.flatnonzero(np.diff(bounds)):
            content, mine = _map(self.paths[i]), slice(bounds[i], bounds[i + 1])
            step = math.gcd(size, *(first for first, _ in self._groups[i]))
            shape, strides = ((len(content) - size) // step + 1, self.dim), (step, number.itemsize)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to it
                overlapping = torch.from_numpy(np.ndarray(shape, number, content, strides=strides))
            torch.index_select(overlapping, 0, torch.from_numpy(at[mine] // step), out=torch.from_numpy(found[mine]))
        return found.view(STORAGE_TYPES[self.dtype].stored)

    def iter_z(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(first row, z (k, d) float32)` per row group. The files are mapped, so memory use is bounded."""
        start = 0
        for path, found in zip(self.paths, self._groups, strict=True):
            for view in _views(_map(path), found, self.dim, self.dtype):
                yield start, widen(view, self.dtype)
                start += len(view)

    def column(self, name: str) -> np.ndarray:
        """Read one of the columns `sample_id`, `label`, `split`, `subject`, `(rows,)`, in dataset order."""
        tables = []
        for path in self.paths:
            with reading(path, AGAIN):
                tables.append(pq.ParquetFile(path).read([name]))
                tables[-1].validate(full=True)
        with reading(self.paths[0].parent, AGAIN):  # the columns of a damaged shard differ from those of the others
            return np.array(pa.concat_tables(tables)[name].to_numpy())  # a copy: Arrow's memory is read-only


class FeatureStore(Shards):
    """A store directory.

    Opening it checks the manifest and the file sizes; `verify` also compares every sha256, which the quality gate does
    once per extraction. A store may refer to another one by `same_as`, because a model with a frozen backbone has the
    features of its original. Raises ManifestError, which names the file, if something is missing, truncated or changed,
    and DataError if the store contains an erased row.
    """

    def __init__(self, directory: Path | str, verify: bool = False) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory, verify=verify)
        if "same_as" in self.manifest:
            self.directory = self.directory / self.manifest["same_as"]
            self.manifest = read_manifest(self.directory, verify=verify)
        dim = self.manifest.get("dim")
        if type(dim) is not int or dim < 1:  # JSON's `true` would be an int for isinstance
            raise ManifestError(
                f"{self.directory}: is not a feature store (its producer is {self.manifest.get('producer')!r})"
            )
        with reading(self.directory, AGAIN):
            self._open(verify)
        if (tombstones := Tombstones.near(self.directory)) is not None:
            refuse(tombstones, self.directory, self.column("sample_id").tolist(), None)

    def _open(self, verify: bool) -> None:
        files = self.manifest["files"]
        stored = self.manifest.get("dtype", "float32")
        dtype = next((name for name, numbers in STORAGE_TYPES.items() if numbers.name == stored), None)
        if dtype is None:
            raise ManifestError(f"{self.directory}: z is stored as {stored!r}, which this version cannot read; {AGAIN}")
        shards = [self.directory / name for name in sorted(files) if name.endswith(".parquet")]
        known = {name: entry["groups"] for name, entry in files.items() if "groups" in entry}
        super().__init__(shards, self.manifest["dim"], dtype, known)
        self.rows: int = sum(entry.get("rows", 0) for entry in files.values())
        self.model_digest: str = self.manifest["model_digest"]
        if verify:
            self._verify_groups(known)
        rows = int(self._places[2][-1])
        if rows != self.rows:
            raise ManifestError(
                f"{self.directory}: its shards hold {rows} rows, but its manifest says {self.rows}; {AGAIN}"
            )
        self._check_places()

    def _check_places(self) -> None:
        """Raise ManifestError if z exceeds its file, since offsets of footers and manifests are mapped as they are."""
        row_bytes = self.dim * np.dtype(STORAGE_TYPES[self.dtype].stored).itemsize
        for path, found in zip(self.paths, self._groups, strict=True):
            size = path.stat().st_size
            for first, rows in found:
                if first < 0 or rows < 0 or first + rows * row_bytes > size:
                    raise ManifestError(f"{path}: its manifest or footer places z outside the file; {AGAIN}")

    def _verify_groups(self, known: Mapping[str, Sequence[Sequence[int]]]) -> None:
        for path in self.paths:
            if path.name in known and known[path.name] != groups(path, self.dim, self.dtype):
                raise ManifestError(f"{path}: z is not where its manifest says; run the extract stage again")
