"""Write any source as the canonical Parquet dataset. Writing is streamed, atomic and deterministic."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expunge.data.canaries import CANARIES, Planter
from expunge.data.corrected import CorrectedLabels
from expunge.data.images import binary_array, decode
from expunge.data.schema import (
    CLASSES,
    DIGEST_BYTES,
    DUPLICATES,
    ENCODED,
    SPLITS,
    TEST,
    TEXT,
    TRAIN,
    UNSEEN,
    content_column,
    dataset_schema,
    row_digest,
    text_digest,
)
from expunge.data.source import Batch, Source
from expunge.data.tombstones import Tombstones
from expunge.system.damage import reading
from expunge.system.errors import DataError
from expunge.system.files import staged_dir, write_json, write_manifest
from expunge.system.limits import in_force

log = logging.getLogger(__name__)

GROUP_ROWS = 4096
GROUP_BYTES = 32 << 20  # of images or texts; bounds the memory needed for writing
SHARD_BYTES = 200 << 20


def write_dataset(
    out_dir: Path | str,
    source: Source,
    shard_rows: int = 16384,
    tombstones: Tombstones | None = None,
    corrected: CorrectedLabels | None = None,
    planter: Planter | None = None,
    package: str | None = None,
) -> dict[str, Any]:
    """Write `source` to the directory `out_dir` and return its manifest.

    Content is streamed; only sample_id, label, split and digest of each row stay in memory, for the checks over all
    rows. Rows with `tombstones` are left out, and `corrected` labels replace those of the source. `planter` adds
    canaries and the file CANARIES, which lists them. `package` is the name and version of the package whose reader is
    used, if it is another one; the manifest records it. Raises DataError for a corrupt image, a blank text, a label out
    of range, an unknown split and a repeated id; the message names the row or the value.
    """
    schema = dataset_schema(source.has_subject, source.encoding)
    kept: list[pa.Table] = []
    shapes: set[tuple[int, int, int]] = set()
    with staged_dir(out_dir) as tmp:
        with closing(_Shards(tmp, schema, shard_rows, source.encoding)) as shards:
            for batch in source.batches if planter is None else planter.stream(source.batches):
                for piece in _pieces(batch):
                    with reading(source.name, "correct these rows, or leave them out", DataError):
                        table = _table(piece, source, schema, shapes)
                    table = _without_erased(table, source, tombstones)
                    if corrected is not None:
                        table = corrected.apply(table, source.name, source.class_names)
                    kept.append(table.select(["sample_id", "label", "split", "digest"]))
                    shards.add(table)
        if not kept:
            raise DataError(f"{source.name}: no rows found")
        rows = pa.concat_tables(kept).combine_chunks()
        _check_rows(rows, source)
        duplicates, counts = find_duplicates(rows)
        if counts["rows"]:
            log.warning("%s: %d rows have an exact duplicate (%s)", source.name, counts["rows"], DUPLICATES)
        pq.write_table(duplicates, tmp / DUPLICATES, compression="zstd")
        write_json(tmp / CLASSES, {"names": list(source.class_names)})
        canaries = {}
        if planter is not None:
            pq.write_table(planter.table, tmp / CANARIES, compression="zstd")
            canaries = {CANARIES: planter.table.num_rows}
        made_by: dict[str, Any] = {} if package is None else {"package": package}
        by_split = {name: pc.sum(pc.equal(rows["split"], name)).as_py() for name in (TRAIN, TEST, UNSEEN)}
        return write_manifest(
            tmp,
            "prepare",
            rows={**shards.rows, DUPLICATES: duplicates.num_rows, **canaries},
            source=source.name,
            encoding=source.encoding,
            image_shape=list(next(iter(shapes))) if len(shapes) == 1 else None,
            rows_train=by_split[TRAIN],
            rows_test=by_split[TEST],
            rows_unseen=by_split[UNSEEN],
            duplicates=counts,
            **made_by,
        )


def find_duplicates(rows: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return a table of the rows whose content occurs more than once, and counts of them.

    `rows` has the columns sample_id, label, split and digest. The table has the columns sample_id, group (int32,
    numbered by first occurrence), label and split, and is ordered by group. The counts are rows, groups,
    groups_across_splits and groups_across_labels.
    """
    digests = np.frombuffer(b"".join(rows["digest"].to_pylist()), dtype="<u8").reshape(-1, DIGEST_BYTES // 8)
    order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(order)))
    groups = sorted((order[s : s + n] for s, n in zip(starts, sizes, strict=True) if n > 1), key=lambda g: int(g[0]))
    index = np.concatenate(groups) if groups else np.empty(0, dtype=np.int64)
    number = np.repeat(np.arange(len(groups), dtype=np.int32), [len(g) for g in groups])
    table = rows.select(["sample_id", "label", "split"]).take(pa.array(index))
    table = table.add_column(1, "group", pa.array(number, pa.int32()))
    per_group = table.group_by("group").aggregate([("split", "count_distinct"), ("label", "count_distinct")])
    return table, {
        "rows": len(index),
        "groups": len(groups),
        "groups_across_splits": int(np.sum(per_group["split_count_distinct"].to_numpy() > 1)),
        "groups_across_labels": int(np.sum(per_group["label_count_distinct"].to_numpy() > 1)),
    }


class _Shards:
    """Parquet shards of at most `shard_rows` rows and about SHARD_BYTES of content, in bounded row groups."""

    def __init__(self, directory: Path, schema: pa.Schema, shard_rows: int, encoding: str) -> None:
        if shard_rows < 1:
            raise DataError(f"shard_rows is {shard_rows}; it must be at least 1")
        self.rows: dict[str, int] = {}
        self._directory, self._schema, self._shard_rows = directory, schema, shard_rows
        self._content = content_column(encoding)
        compress = {f.name: "zstd" for f in schema} | ({"image": "none"} if encoding == ENCODED else {})
        self._options: dict[str, Any] = {
            "compression": compress,
            "use_dictionary": [n for n in ("subject", "label", "split") if n in schema.names],
            "write_statistics": [n for n in ("label", "split") if n in schema.names],
        }
        self._writer: pq.ParquetWriter | None = None
        self._pending = schema.empty_table()
        self._bytes = 0
        self._name = ""

    def add(self, table: pa.Table) -> None:
        """Add rows. They are written once they fill a row group, so row groups do not depend on the batches."""
        self._pending = pa.concat_tables([self._pending, table])
        self._write(last=False)

    def close(self) -> None:
        """Write the pending rows and close the last shard."""
        self._write(last=True)
        self._finish()

    def _write(self, last: bool) -> None:
        while rows := self._pending.num_rows:
            if self._writer is None or self.rows[self._name] >= self._shard_rows or self._bytes >= SHARD_BYTES:
                self._finish()
                self._open()
            assert self._writer is not None
            ends = np.cumsum(pc.binary_length(self._pending[self._content]).to_numpy(), dtype=np.int64)
            fits = max(int(np.searchsorted(ends, GROUP_BYTES, side="right")), 1)
            take = min(fits, GROUP_ROWS, self._shard_rows - self.rows[self._name])
            if take >= rows and not last:
                return
            take = min(take, rows)
            self._writer.write_table(self._pending.slice(0, take), row_group_size=take)
            self.rows[self._name] += take
            self._bytes += int(ends[take - 1])
            self._pending = self._pending.slice(take)

    def _open(self) -> None:
        self._name = f"part-{len(self.rows):05d}.parquet"
        self.rows[self._name] = self._bytes = 0
        self._writer = pq.ParquetWriter(self._directory / self._name, self._schema, **self._options)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _pieces(batch: Batch) -> Iterator[Batch]:
    """Split a batch into pieces no larger than a row group, because a binary Arrow array holds at most 2 GiB.

    Raises DataError if the columns of the batch differ in length.
    """
    n = len(batch.sample_ids)
    if not len(batch.labels) == len(batch.splits) == len(batch.content) == n:
        raise DataError(
            f"a reader returned {n} ids, {len(batch.content)} rows and {len(batch.labels)} labels; it must return as "
            "many of each"
        )
    if isinstance(batch.content, list):
        sizes = np.array([len(i) for i in batch.content])
    else:
        sizes = np.full(n, int(np.prod(batch.content.shape[1:])))
    start = 0
    while start < n:
        fits = int(np.searchsorted(np.cumsum(sizes[start : start + GROUP_ROWS]), GROUP_BYTES, side="right"))
        cut = slice(start, start + max(fits, 1))
        yield Batch(
            batch.sample_ids[cut],
            batch.labels[cut],
            batch.splits[cut],
            batch.content[cut],
            batch.subjects[cut] if batch.subjects is not None else None,
        )
        start = cut.stop


def _table(batch: Batch, source: Source, schema: pa.Schema, shapes: set[tuple[int, int, int]]) -> pa.Table:
    n = len(batch.sample_ids)
    labels = np.asarray(batch.labels)
    bad = np.flatnonzero((labels < 0) | (labels >= len(source.class_names)))
    if len(bad):
        raise DataError(
            f"{source.name}: row {batch.sample_ids[bad[0]]!r} has label {labels[bad[0]]}, which is outside 0 to "
            f"{len(source.class_names) - 1}; correct the label, or name all classes"
        )
    content = _texts(batch, source) if source.encoding == TEXT else _images(batch, source, shapes)
    columns = {
        "sample_id": pa.array(batch.sample_ids, pa.string()),
        "subject": pa.array(batch.subjects, pa.string()) if batch.subjects is not None else pa.nulls(n, pa.string()),
        "label": pa.array(labels.astype(np.int32)),
        "split": pa.array(batch.splits, pa.string()),
        **content,
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _texts(batch: Batch, source: Source) -> dict[str, pa.Array]:
    digests, most = [], in_force().characters
    for sample_id, text in zip(batch.sample_ids, batch.content, strict=True):
        if not text.strip():
            raise DataError(
                f"{source.name}: the text of row {sample_id!r} is blank; write a text, or leave the row out"
            )
        if len(text) > most:
            raise DataError(
                f"{source.name}: the text of row {sample_id!r} has {len(text):,} characters, but at most "
                f"{most:,} are allowed (limits.characters); divide it into several rows, or leave it out"
            )
        digests.append(text_digest(text))
    return {"text": pa.array(batch.content, pa.string()), "digest": pa.array(digests, pa.binary(DIGEST_BYTES))}


def _images(batch: Batch, source: Source, shapes: set[tuple[int, int, int]]) -> dict[str, pa.Array]:
    size = np.empty((len(batch.content), 3), dtype=np.int32)
    digests = []
    for i, image in enumerate(batch.content):
        pixels = image if isinstance(image, np.ndarray) else decode(image, f"{source.name}: {batch.sample_ids[i]}")
        size[i] = pixels.shape
        digests.append(row_digest(pixels))
    if size.min() < 1 or not np.isin(size[:, 2], (1, 3)).all():
        raise DataError(
            f"{source.name}: images have the shape {size[0].tolist()}, but (height, width, 1 or 3) is needed"
        )
    shapes.update((int(h), int(w), int(c)) for h, w, c in np.unique(size, axis=0))
    images = pa.array(batch.content, pa.binary()) if isinstance(batch.content, list) else binary_array(batch.content)
    return {
        "image": images,
        "height": pa.array(size[:, 0]),
        "width": pa.array(size[:, 1]),
        "channels": pa.array(size[:, 2]),
        "digest": pa.array(digests, pa.binary(DIGEST_BYTES)),
    }


def _without_erased(table: pa.Table, source: Source, tombstones: Tombstones | None) -> pa.Table:
    """Drop the rows that were erased but are still in the source, such as an installed package or a read-only input.

    The reader has already assigned ids and splits, so those of the other rows do not change. Raises DataError for a row
    with the id of an erased row but other content.
    """
    if tombstones is None:
        return table
    hits = tombstones.hits(table["sample_id"].to_pylist(), table["digest"].to_pylist())
    altered = int((hits.ids & ~hits.contents).sum())
    if altered:
        raise DataError(
            f"{source.name}: {altered} rows have the ids of erased rows, but different content. Altered copies of "
            "erased rows must not return; give new rows new ids"
        )
    return table.filter(pa.array(~hits.contents)) if hits.contents.any() else table


def _check_rows(rows: pa.Table, source: Source) -> None:
    counts = pc.value_counts(rows["sample_id"])
    repeated = [c["values"] for c in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    if repeated:
        raise DataError(f"{source.name}: {len(repeated)} sample ids occur more than once, first {repeated[0]!r}")
    splits = set(pc.unique(rows["split"]).to_pylist())
    unknown = sorted(splits - {*SPLITS, UNSEEN})
    if unknown:
        raise DataError(f"{source.name}: split {unknown[0]!r} is neither 'train' nor 'test'; rename or drop those rows")
    for name in SPLITS:
        if name not in splits:
            raise DataError(
                f"{source.name}: has no {name} rows, but training and test rows are needed (see data.test_fraction)"
            )
