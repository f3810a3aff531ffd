"""Sweep the inputs: the data source, the lists of requests, downloaded archives, and work in progress."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expunge.config import Data
from expunge.data.corrections import COLUMNS, read_labels
from expunge.data.images import decode
from expunge.data.prepare import open_source
from expunge.data.readers.tables import DELIMITERS, ROLES
from expunge.data.schema import ENCODED, TEXT, row_digest, text_digest
from expunge.data.selectors import read_values
from expunge.data.source import Source
from expunge.sweep.journal import Journal, staged
from expunge.sweep.report import NotPurgeable, Residue
from expunge.sweep.sources import elsewhere, place_of
from expunge.sweep.targets import Targets
from expunge.system.errors import DataError
from expunge.system.files import MANIFEST
from expunge.system.paths import DATASET, RAW, REQUESTS, WORK

Found = Residue | NotPurgeable
IN_PROGRESS = ("features", "activations", "train", "shadow", "stages", "measured")


@dataclass(frozen=True)
class _Rows:
    """The rows of a source in its own order. `erased`: mask `(rows,)` over them."""

    ids: list[str]
    labels: NDArray[np.int32]
    splits: list[str]
    erased: NDArray[np.bool_]
    class_names: tuple[str, ...]


def source(targets: Targets, journal: Journal | None, data: Data) -> Iterator[Found]:
    """Sweep the input of the pipeline.

    An installed or read-only input must be cleaned by its owner; tombstones keep its erased rows out of the dataset.
    """
    if (outside := elsewhere(data)) is not None:
        if len(targets.tombstones):
            yield outside
        raw = targets.root / RAW
        if raw.is_dir() and targets.erased.any():
            yield Residue(str(RAW), "fetched archive")
            if journal is not None:
                journal.drop(raw)
        return
    path = targets.root / str(data.path)
    if not path.exists():
        return
    rows = _read(open_source(data.source, path, data.test_fraction, data.seed), targets)
    count = int(rows.erased.sum())
    if not count:
        return
    where, ours = place_of(targets.root, path, data)
    if not ours:
        yield NotPurgeable(where, f"{count} rows in an input that the sweep must not rewrite", "the owner of that file")
        return
    yield Residue(where, "rows", count)
    if journal is None:
        return
    if data.source == "image-folder":
        for name in (n for n, is_erased in zip(rows.ids, rows.erased, strict=True) if is_erased):
            journal.drop(path / name)
    elif data.source == "npz":
        _npz_without(path, journal.swap(path), rows)
    else:
        _tables_without(path, journal, rows)


def _read(opened: Source, targets: Targets) -> _Rows:
    ids: list[str] = []
    splits: list[str] = []
    labels, masks = [], []
    for batch in opened.batches:
        digests = [digest(content, opened.encoding) for content in batch.content]
        masks.append(targets.hits(list(batch.sample_ids), digests))
        ids += batch.sample_ids
        labels.append(np.asarray(batch.labels, np.int32))
        splits += batch.splits
    return _Rows(ids, np.concatenate(labels), splits, np.concatenate(masks), opened.class_names)


def digest(content: NDArray[np.uint8] | bytes | str, encoding: str) -> bytes:
    """Return the digest that the dataset has for this content."""
    if encoding == TEXT:
        return text_digest(str(content))
    return row_digest(decode(content, "source") if encoding == ENCODED else np.asarray(content))  # type: ignore[arg-type]


def _npz_without(file: Path, target: Path, rows: _Rows) -> None:
    """Write the archive without the erased rows.

    Ids, split and class names that were implied by the position are written explicitly; otherwise the retained rows
    would get others.
    """
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    with zipfile.ZipFile(file) as zipped:
        compressed = any(i.compress_type != zipfile.ZIP_STORED for i in zipped.infolist())
    rest = ~rows.erased
    out = {"ids": np.array(rows.ids)[rest], "class_names": np.array(rows.class_names)}
    if "x_train" in arrays:
        train = len(arrays["x_train"])
        for name, mask, labels in (
            ("train", rest[:train], rows.labels[:train]),
            ("test", rest[train:], rows.labels[train:]),
        ):
            out |= {f"x_{name}": arrays[f"x_{name}"][mask], f"y_{name}": labels[mask]}
    else:
        images = "x" if "x" in arrays else "images"
        out |= {images: arrays[images][rest], "y": rows.labels[rest], "split": np.array(rows.splits)[rest]}
    if "subjects" in arrays:
        out["subjects"] = arrays["subjects"][rest]
    with target.open("wb") as stream:  # given a path, NumPy would append .npz to its name
        (np.savez_compressed if compressed else np.savez)(stream, **out)  # type: ignore[arg-type]


def _tables_without(path: Path, journal: Journal, rows: _Rows) -> None:
    """Stage Parquet, CSV and TSV files without the erased rows.

    A file without erased rows is kept, unless its ids or split are implied by the position of its rows.
    """
    suffixes = (".parquet", *DELIMITERS)
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in suffixes) if path.is_dir() else [path]
    start = 0
    for file in files:
        table = pq.ParquetFile(file).read() if file.suffix.lower() == ".parquet" else read_text(file)
        erased = rows.erased[start : start + len(table)]
        cut = slice(start, start + len(table))
        start += len(table)
        names = set(table.column_names)
        if not erased.any() and names & set(ROLES["id"]) and "split" in names:
            continue
        if not any(name in table.column_names for name in ROLES["id"]):
            table = table.append_column("sample_id", pa.array(rows.ids[cut]))
        if "split" not in table.column_names:
            table = table.append_column("split", pa.array(rows.splits[cut]))
        if erased.all():
            journal.drop(file)
            continue
        table = table.filter(pa.array(~erased))
        write_table(table, journal.swap(file), file.suffix.lower())


def read_text(file: Path) -> pa.Table:
    """Return the table in a CSV or TSV file, all columns as strings."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if file.suffix.lower() == ".csv":
            reader = csv.reader(stream)
        else:
            reader = csv.reader(stream, delimiter=DELIMITERS[file.suffix.lower()], quoting=csv.QUOTE_NONE)
        header = next(reader)
        rows = [row for row in reader if row]
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(header)})


def write_table(table: pa.Table, target: Path, suffix: str) -> None:
    """Write the table as Parquet, as CSV, quoted as in RFC 4180, or as TSV without quotes, depending on `suffix`."""
    if suffix == ".parquet":
        pq.write_table(table, target, compression="zstd")
        return
    delimiter = DELIMITERS[suffix]
    with target.open("w", encoding="utf-8", newline="") as stream:
        if delimiter == ",":
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(table.column_names)
            writer.writerows(zip(*(c.to_pylist() for c in table.columns), strict=True))
            return
        lines = [table.column_names, *zip(*(c.to_pylist() for c in table.columns), strict=True)]
        stream.writelines(delimiter.join(line) + "\n" for line in lines)


def requests(targets: Targets, journal: Journal | None) -> Iterator[Found]:
    """Sweep the lists of ids and people.

    A list whose values are all erased is removed together with its `.dvc` file; from others the erased values are
    removed.
    """
    directory = targets.root / REQUESTS
    readable = (".txt", ".csv", ".parquet")
    for file in sorted(f for f in directory.glob("*") if f.suffix.lower() in readable):
        try:
            column = _column(file)
            values = read_values(file, column)
        except (DataError, csv.Error, UnicodeDecodeError, pa.ArrowException) as e:
            # One unreadable list must not stop the erasure of the others.
            problem = str(e).partition(", first ")[0].replace(str(file), "a list")  # no id, no file name
            yield NotPurgeable(str(REQUESTS), f"a list that could not be searched: {problem}", "the owner of the list")
            continue
        erased = targets.hits(values)
        if not erased.any():
            continue
        where = str(REQUESTS)  # a file name may contain the name of a person
        yield Residue(where, "ids or people in lists", int(erased.sum()))
        if journal is None:
            continue
        rest = [value for value, is_erased in zip(values, erased, strict=True) if not is_erased]
        if not rest:
            journal.drop(file)
            _drop_tracking(file, journal)
            continue
        place = journal.swap(file)
        if file.suffix.lower() == ".parquet":
            pq.write_table(pa.table({column: rest}), place)
        else:
            head = [[column]] if file.suffix.lower() == ".csv" else []
            lines = [[value] for value in rest]
            if _corrects(file):
                labels = read_labels(file)
                head, lines = [list(COLUMNS)], [[value, labels[value]] for value in rest]
            with place.open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream, lineterminator="\n").writerows([*head, *lines])


def _column(file: Path) -> str:
    """Return the column that a list holds: "subject" or "sample_id"."""
    names = pq.read_schema(file).names if file.suffix.lower() == ".parquet" else _header(file)
    return "subject" if "subject" in names and "sample_id" not in names else "sample_id"


def _corrects(file: Path) -> bool:
    """Return whether a list has a column of new labels besides the ids."""
    return file.suffix.lower() == ".csv" and set(COLUMNS) <= set(_header(file))


def _header(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig") as stream:
        return next(csv.reader(islice(stream, 1)), [])


def _drop_tracking(file: Path, journal: Journal) -> None:
    """Stage the removal of the `.dvc` file and of the line of .gitignore that `dvc add` wrote."""
    journal.drop(file.with_name(file.name + ".dvc"))
    ignore = file.with_name(".gitignore")
    if ignore.is_file():
        # An earlier list of this sweep may have staged a .gitignore already; continue from that one.
        before = staged(ignore)
        lines = (before if before.is_file() else ignore).read_text(encoding="utf-8").splitlines()
        if f"/{file.name}" in lines:
            rest = [line for line in lines if line != f"/{file.name}"]
            journal.swap(ignore).write_text("".join(f"{line}\n" for line in rest), encoding="utf-8")


def work(targets: Targets, journal: Journal | None) -> Iterator[Found]:
    """Sweep work in progress, and nested workspaces whose dataset holds an erased row."""
    yield from unfinished(targets.root, bool(targets.erased.any()), lambda d: _holds(d, targets), journal)


def unfinished(root: Path, changed: bool, holds: Callable[[Path], bool], journal: Journal | None) -> Iterator[Residue]:
    """Yield work in progress if the dataset has `changed`, and nested workspaces (demo, results) with what is swept.

    `holds(directory)` says whether a dataset has it. All of it can be recomputed, so whole folders are removed.
    """
    for child in sorted(p for p in (root / WORK).glob("*") if p.is_dir() and p.name != "sweep"):
        if child.name in IN_PROGRESS:
            nonempty = changed and any(child.rglob("*"))
        else:
            nonempty = any(holds(manifest.parent) for manifest in child.rglob(f"{DATASET}/{MANIFEST}"))
        if nonempty:
            yield Residue(str(child.relative_to(root)), "work in progress")
            if journal is not None:
                journal.drop(child)


def _holds(dataset: Path, targets: Targets) -> bool:
    for shard in sorted(dataset.glob("part-*.parquet")):
        with pq.ParquetFile(shard) as file:
            table = file.read(columns=["sample_id", "digest"])
        if targets.hits(table["sample_id"].to_pylist(), table["digest"].to_pylist()).any():
            return True
    return False
