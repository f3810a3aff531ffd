"""Replace labels in the data source, and remove work in progress that was made under the old labels."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expunge.config import Data
from expunge.data.corrected import refuse_old
from expunge.data.prepare import open_source
from expunge.data.readers.labels import index_labels
from expunge.data.readers.npz import LABELS
from expunge.data.readers.tables import DELIMITERS, ROLES
from expunge.data.source import Source
from expunge.sweep.inputs import Found, digest, read_text, unfinished, write_table
from expunge.sweep.journal import Journal
from expunge.sweep.label_targets import LabelTargets
from expunge.sweep.report import NotPurgeable, Residue
from expunge.sweep.sources import elsewhere, place_of
from expunge.system.errors import DataError
from expunge.system.files import read_json
from expunge.system.paths import RAW

OWNER = "the owner of that file; until then every run replaces them when it reads the source"
Values = NDArray[Any]


def source(targets: LabelTargets, journal: Journal | None, data: Data) -> Iterator[Found]:
    """Replace the old labels in the input of the pipeline.

    Where that is not possible, as in an installed package, a read-only file or a folder whose names are the labels,
    `prepare` replaces them each time it reads the input.
    """
    if (outside := elsewhere(data)) is not None:
        if len(targets.corrected):
            yield NotPurgeable(outside.where, f"{outside.what}, with the old labels", outside.who)
        raw = targets.root / RAW
        if raw.is_dir() and targets.changed.any():
            yield Residue(str(RAW), "fetched archive")
            if journal is not None:
                journal.drop(raw)
        return
    path = targets.root / str(data.path)
    if not path.exists():
        return
    opened = open_source(data.source, path, data.test_fraction, data.seed)
    old, new, splits = _read(targets, opened)
    count = int((old != new).sum())
    if not count:
        return
    where, ours = place_of(targets.root, path, data)
    if not ours or data.source == "image-folder":
        yield NotPurgeable(where, f"{count} old labels in an input that the sweep must not rewrite", OWNER)
        return
    rewrite = _npz if data.source == "npz" else _tables
    files = rewrite(path, old, new, splits, opened.class_names)
    if files is None:
        yield NotPurgeable(where, f"{count} old labels, which alone show that their class exists", OWNER)
        return
    yield Residue(where, "labels", count)
    for file, write in files.items() if journal is not None else ():
        assert journal is not None
        write(journal.swap(file))


def _read(targets: LabelTargets, opened: Source) -> tuple[Values, Values, list[str]]:
    """Return the labels of the source before and after, int32 `(rows,)`, and the split of each row."""
    before, after = [], []
    splits: list[str] = []
    for batch in opened.batches:
        labels = np.asarray(batch.labels, np.int32)
        contents = [digest(content, opened.encoding) for content in batch.content]
        before.append(labels)
        after.append(
            targets.corrected.corrected(opened.name, list(batch.sample_ids), contents, labels, opened.class_names)
        )
        splits += batch.splits
    return np.concatenate(before), np.concatenate(after), splits


def _as_written(values: Values, old: Values, new: Values, names: tuple[str, ...]) -> Values | None:
    """Return the labels as the source writes them, `(rows,)`, with those of the corrected rows replaced.

    A new label is written as another row of its class has it. Returns None if a reader would then find other classes.
    """
    example = {int(label): row for row, label in reversed(list(enumerate(old.tolist())))}
    out = values.copy()
    for row in np.flatnonzero(old != new).tolist():
        if int(new[row]) not in example:
            return None
        out[row] = values[example[int(new[row])]]
    return out if index_labels(out, "the source")[0] == names else None


def _npz(path: Path, old: Values, new: Values, splits: list[str], names: tuple[str, ...]) -> dict[Path, Any] | None:
    """Return how to write the archive with the new labels; None if that would change its classes."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    with zipfile.ZipFile(path) as zipped:
        compressed = any(i.compress_type != zipfile.ZIP_STORED for i in zipped.infolist())
    if "x_train" in arrays:
        train = len(arrays["y_train"])
        values = np.concatenate([arrays["y_train"], arrays["y_test"]])
    else:
        name = next(n for n in LABELS if n in arrays)
        values = arrays[name]
    known = index_labels(values, str(path))[0]  # with `class_names`, the archive names its classes otherwise
    relabelled = _as_written(values, old, new, known)
    if relabelled is None:
        return None
    if "x_train" in arrays:
        arrays |= {"y_train": relabelled[:train], "y_test": relabelled[train:]}
    else:
        # A split that is drawn depends on the labels. It is written, so that every row keeps its split.
        arrays |= {name: relabelled, "split": np.array(splits)}

    def write(place: Path) -> None:
        with place.open("wb") as stream:  # given a path, NumPy would append .npz to its name
            (np.savez_compressed if compressed else np.savez)(stream, **arrays)

    return {path: write}


def _tables(path: Path, old: Values, new: Values, splits: list[str], names: tuple[str, ...]) -> dict[Path, Any] | None:
    """Return how to write each Parquet, CSV and TSV file that changes; None if that would change the classes."""
    suffixes = (".parquet", *DELIMITERS)
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in suffixes) if path.is_dir() else [path]
    tables = [pq.ParquetFile(f).read() if f.suffix.lower() == ".parquet" else read_text(f) for f in files]
    label = ROLES["label"][0]
    values = np.array([v for table in tables for v in table[label].to_pylist()], dtype=object)
    digits = all(f.suffix.lower() in DELIMITERS for f in files) and all(str(v).isdigit() for v in values)
    relabelled = _as_written(
        values.astype(np.int64) if digits or isinstance(values[0], int) else values, old, new, names
    )
    if relabelled is None:
        return None
    start, out = 0, {}
    for file, table in zip(files, tables, strict=True):
        rows = slice(start, start + len(table))
        start += len(table)
        if not (old[rows] != new[rows]).any() and "split" in table.column_names:
            continue
        at, field = table.column_names.index(label), table.schema.field(label)
        column = [str(v) for v in relabelled[rows]] if digits else relabelled[rows].tolist()
        changed = table.set_column(at, field, pa.array(column, field.type))
        if "split" not in table.column_names:  # as in `_npz`
            changed = changed.append_column("split", pa.array(splits[rows]))
        out[file] = partial(write_table, changed, suffix=file.suffix.lower())
    return out


def work(targets: LabelTargets, journal: Journal | None) -> Iterator[Found]:
    """Remove work in progress, and nested workspaces whose dataset holds an old label."""
    yield from unfinished(targets.root, bool(targets.changed.any()), lambda d: _holds(d, targets), journal)


def _holds(dataset: Path, targets: LabelTargets) -> bool:
    names = read_json(dataset / "classes.json")["names"]
    for shard in sorted(dataset.glob("part-*.parquet")):
        table = pq.read_table(shard, columns=["sample_id", "digest", "label"])
        columns = table["sample_id"].to_pylist(), table["digest"].to_pylist(), table["label"].to_numpy()
        try:
            refuse_old(targets.corrected, dataset, *columns, names)
        except DataError:
            return True
    return False
