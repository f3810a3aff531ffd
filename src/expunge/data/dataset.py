"""Read access to the canonical dataset."""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expunge.data.corrected import CorrectedLabels, refuse_old
from expunge.data.images import decode, raw_stack
from expunge.data.schema import CLASSES, DIGEST_BYTES, ENCODED, RAW, TEXT, content_column
from expunge.data.tombstones import Tombstones, refuse
from expunge.system.damage import reading
from expunge.system.errors import DataError, ManifestError
from expunge.system.files import MANIFEST, digest_of, read_json, read_manifest

Images = np.ndarray | list[np.ndarray]
Inputs = Images | list[str]
AGAIN = "run the prepare stage again"
MANIFEST_KEYS = ("encoding", "image_shape", "rows_train", "rows_test", "duplicates")


class Dataset:
    """A dataset directory whose files were checked against its manifest.

    `rows` is the number of rows, `class_names` the class names indexed by label, `encoding` "raw", "encoded" or "text",
    `image_shape` the (height, width, channels) of all images, or None if they differ. Images are returned as one uint8
    array `(n, h, w, c)` if they share a shape, else as a list of `(h, w, c)` arrays; texts as a list of str.
    """

    def __init__(
        self, directory: Path | str, verify: bool = True, erased: Literal["refuse", "allow"] = "refuse"
    ) -> None:
        """Open `directory`. Raises ManifestError if it has no manifest or its files disagree with it.

        Raises DataError if it contains an erased row or an old label of a corrected row, unless `erased="allow"`, which
        only the sweep uses, to remove them. `verify=False` compares the sizes of the files and not their sha256.
        """
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory, verify=verify)
        missing = [k for k in MANIFEST_KEYS if k not in self.manifest]
        if missing:
            producer = self.manifest.get("producer")
            raise ManifestError(
                f"{self.directory}: is not a dataset, because its manifest, written by {producer!r}, lacks {missing[0]}"
            )
        with reading(self.directory, AGAIN):
            self._open(erased)

    def _open(self, erased: str) -> None:
        files = self.manifest["files"]
        self._shards = [self.directory / name for name in sorted(files) if name.startswith("part-")]
        self.rows = sum(group.rows for group in self._groups)
        rows_of: Counter[Path] = Counter()
        for group in self._groups:
            rows_of[group.shard] += group.rows
        for shard in self._shards:
            found = rows_of[shard]
            if files[shard.name].get("rows") != found:
                raise ManifestError(
                    f"{shard}: holds {found} rows, but its manifest says {files[shard.name].get('rows')}; {AGAIN}"
                )
        self._labels: np.ndarray | None = None
        self.class_names: list[str] = [str(name) for name in read_json(self.directory / CLASSES)["names"]]
        self.encoding: str = self.manifest["encoding"]
        if self.encoding not in (RAW, ENCODED, TEXT):
            raise ManifestError(f"{self.directory / MANIFEST}: encoding {self.encoding!r} is unknown; {AGAIN}")
        self._content = content_column(self.encoding)
        shape = self.manifest["image_shape"]
        self.image_shape: tuple[int, int, int] | None = (int(shape[0]), int(shape[1]), int(shape[2])) if shape else None
        if self.image_shape is not None and (min(self.image_shape) < 1 or self.image_shape[2] not in (1, 3)):
            raise ManifestError(f"{self.directory / MANIFEST}: image_shape {shape} is not a valid image shape; {AGAIN}")
        tombstones, corrected = Tombstones.near(self.directory), CorrectedLabels.near(self.directory)
        if erased == "refuse" and (tombstones is not None or corrected is not None):
            rows = self.table(["sample_id", "digest", "label"])
            ids, contents = rows["sample_id"].to_pylist(), rows["digest"].to_pylist()
            refuse(tombstones, self.directory, ids, contents)
            refuse_old(corrected, self.directory, ids, contents, rows["label"].to_numpy(), self.class_names)

    def __len__(self) -> int:
        return self.rows

    @cached_property
    def digest(self) -> str:
        """`sha256:...` over the names and sha256 digests of all files."""
        return digest_of({name: entry["sha256"] for name, entry in self.manifest["files"].items()})

    @cached_property
    def columns(self) -> list[str]:
        """The names of the columns."""
        with reading(self._shards[0], AGAIN):
            return list(pq.read_schema(self._shards[0]).names)

    def table(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pa.Table:
        """Read the named columns of the rows `start` to `stop` (exclusive) into memory; all rows by default.

        Raises DataError for an unknown column.
        """
        stop = self.rows if stop is None else min(stop, self.rows)
        unknown = [c for c in columns if c not in self.columns]
        if unknown:
            raise DataError(f"{self.directory}: no column {unknown[0]!r}; it has {', '.join(self.columns)}")
        tables = []
        for shard, groups in groupby(self._groups_between(start, stop), key=lambda g: g.shard):
            mine = list(groups)
            with reading(shard, AGAIN), pq.ParquetFile(shard) as file:
                table = file.read_row_groups([g.index for g in mine], columns=list(columns))
                table.validate(full=True)  # text of a damaged page may be invalid UTF-8
            tables.append(table.slice(max(0, start - mine[0].first)))
        if not tables:
            return pa.table({name: [] for name in columns})
        return self._joined(tables).slice(0, stop - start)

    def labels(self) -> np.ndarray:
        """The labels of all rows, int32 `(rows,)`."""
        return np.asarray(self.table(["label"])["label"].to_numpy()) if self._labels is None else self._labels

    def with_labels(self, labels: np.ndarray) -> Dataset:
        """A view of this dataset whose `labels()` returns int32 `labels (rows,)`.

        `table`, `digest` and the files keep the stored labels. Raises ValueError for another number of labels.
        """
        if labels.shape != (self.rows,):
            raise ValueError(f"labels must have the shape ({self.rows},), got {labels.shape}")
        other = copy.copy(self)
        other._labels = np.asarray(labels, dtype=np.int32)
        return other

    def splits(self) -> np.ndarray:
        """The split of each row, str `(rows,)`: "train", "test" or "unseen"."""
        return np.array(self.table(["split"])["split"].to_pylist(), dtype="U6")

    def sample_ids(self) -> list[str]:
        """Return the ids of all rows, in the order of the dataset."""
        ids: list[str] = self.table(["sample_id"])["sample_id"].to_pylist()
        return ids

    def digests(self) -> np.ndarray:
        """Row digests as void scalars of 16 bytes, `(rows,)`; they can be compared, sorted and passed to np.isin."""
        column = self.table(["digest"])["digest"]
        with reading(self.directory, AGAIN):
            return np.frombuffer(b"".join(column.to_pylist()), dtype=f"V{DIGEST_BYTES}")

    def content_bytes(self) -> np.ndarray:
        """The stored size of each image or text in bytes, int64 `(rows,)`."""
        tables = (self._read_content(group) for group in self._groups)
        return np.concatenate([pc.binary_length(t[self._content]).to_numpy() for t in tables]).astype(np.int64)

    def iter_batches(
        self, rows_per_batch: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, Inputs]]:
        """Yield `(first row, images or texts)` for batches of `rows_per_batch` rows from `start` to `stop` (exclusive).

        The last batch may be shorter. Arrays may be read-only views of a decoded Parquet page. Raises DataError for an
        image that cannot be decoded, with the id of its row.
        """
        for row, table in self.iter_tables(rows_per_batch, start, stop):
            yield row, self.decode(table)

    def iter_tables(
        self, rows_per_batch: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield `(first row, table)` in the same batches as `iter_batches`, with images undecoded; see `decode`."""
        if rows_per_batch < 1:
            raise ValueError(f"rows_per_batch must be at least 1, got {rows_per_batch}")
        stop = self.rows if stop is None else min(stop, self.rows)
        row = start
        pending: list[pa.Table] = []
        for group in self._groups_between(start, stop):
            lo, hi = max(start, group.first), min(stop, group.first + group.rows)
            pending.append(self._read_content(group).slice(lo - group.first, hi - lo))
            table = self._joined(pending)
            while len(table) >= rows_per_batch:
                yield row, table.slice(0, rows_per_batch)
                table = table.slice(rows_per_batch)
                row += rows_per_batch
            pending = [table]
        if pending and len(pending[0]):
            yield row, pending[0]

    def images(self, rows: np.ndarray | None = None) -> Images:
        """Like `inputs`, but raises DataError if the dataset holds texts."""
        if self.encoding == TEXT:
            raise DataError(
                f"{self.directory}: holds texts, but images are needed here; use a model of texts "
                "(sentence:NAME-OR-DIR) and methods that do not change pixels"
            )
        return cast(Images, self.inputs(rows))

    def inputs(self, rows: np.ndarray | None = None) -> Inputs:
        """Read the images or texts at the row positions `rows` `(n,)`, in that order, or of all rows, into memory.

        Raises IndexError for a position outside the dataset.
        """
        wanted = np.arange(self.rows) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.rows:
            raise IndexError(
                f"rows {wanted.min()} to {wanted.max()} are outside the dataset, which has {self.rows} rows"
            )
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        out: Any = [None] * len(wanted)
        if self.image_shape:
            out = np.empty((len(wanted), *self.image_shape), dtype=np.uint8)
        for group in self._groups:
            lo, hi = np.searchsorted(ordered, [group.first, group.first + group.rows])
            if lo == hi:
                continue
            table = self._read_content(group)
            inside = ordered[lo:hi] - group.first
            if not np.array_equal(inside, np.arange(group.rows)):
                table = table.take(pa.array(inside))
            decoded = self.decode(table)
            if isinstance(out, np.ndarray):
                out[order[lo:hi]] = decoded
            else:
                for position, item in zip(order[lo:hi], decoded, strict=True):
                    out[position] = item
        inputs: Inputs = out
        return inputs

    @cached_property
    def _groups(self) -> list[_Group]:
        groups, first = [], 0
        for shard in self._shards:
            with reading(shard, AGAIN):
                meta = pq.read_metadata(shard)
            for i in range(meta.num_row_groups):
                groups.append(_Group(shard, i, first, meta.row_group(i).num_rows))
                first += groups[-1].rows
        return groups

    def _groups_between(self, start: int, stop: int) -> list[_Group]:
        """The row groups that contain any of the rows `start` to `stop` (exclusive)."""
        if start >= stop:
            return []
        first = bisect_right(self._groups, start, key=lambda g: g.first) - 1
        return self._groups[first : bisect_left(self._groups, stop, key=lambda g: g.first)]

    def _read_content(self, group: _Group) -> pa.Table:
        columns = ["sample_id", self._content]
        if self.image_shape is None and self.encoding == RAW:
            columns += ["height", "width", "channels"]
        with reading(f"{group.shard}, row group {group.index}", AGAIN):
            with pq.ParquetFile(group.shard, memory_map=True) as file:
                table = file.read_row_group(group.index, columns=columns)
            table.validate(full=True)  # offsets of a damaged page may point past its end
            if len(table) != group.rows:
                raise ValueError(f"{len(table)} rows instead of {group.rows}")
            return table

    def _joined(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Concatenate tables of several shards, whose columns differ if one is damaged."""
        with reading(self.directory, AGAIN):
            return pa.concat_tables(tables)

    def decode(self, table: pa.Table) -> Inputs:
        """Decode the images or texts of a table from `iter_tables`, or of a slice of it. The method is thread-safe."""
        with reading(self.directory, AGAIN):
            return self._decode(table)

    def _decode(self, table: pa.Table) -> Inputs:
        if self.encoding == TEXT:
            texts: list[str] = table["text"].to_pylist()
            return texts
        column = table["image"].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if self.encoding == RAW and self.image_shape:
            return raw_stack(column, self.image_shape)
        if self.encoding == RAW:
            shapes = zip(*(table[c].to_pylist() for c in ("height", "width", "channels")), strict=True)
            return [np.frombuffer(b.as_buffer(), np.uint8).reshape(s) for b, s in zip(column, shapes, strict=True)]
        ids = table["sample_id"].to_pylist()
        images = [decode(b.as_py(), f"{self.directory}: {i}") for b, i in zip(column, ids, strict=True)]
        return np.stack(images) if self.image_shape else images


@dataclass(frozen=True)
class _Group:
    """One row group of a shard; `first` is the dataset row at which it starts."""

    shard: Path
    index: int
    first: int
    rows: int
