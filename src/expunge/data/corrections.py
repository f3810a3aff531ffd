"""Corrections: training rows that stay in the data under a new label, as a request lists and a split records them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.data.selectors import refuse_listed
from expunge.system.errors import DataError
from expunge.system.limits import refuse_large, refuse_many

SELECTOR = "correct"
COLUMNS = ("sample_id", "label")
LABELS = ("old_label", "new_label")
WAY_OUT = "write the header sample_id,label and one such line for each row"

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Corrections:
    """`rows (k,)` int64 dataset positions, ascending; `old` and `new (k,)` int32 labels, which differ in every row."""

    rows: NDArray[np.int64]
    old: Labels
    new: Labels

    def apply(self, labels: Labels, what: Path | str = "the dataset") -> Labels:
        """Return a copy of `labels (n,)`, int32, with the corrected labels.

        Raises DataError, which names `what`, if the labels of the corrected rows are not `old`.
        """
        if len(self.rows) and not (self.rows[-1] < len(labels) and np.array_equal(labels[self.rows], self.old)):
            raise DataError(
                f"{what}: its labels differ from those that the corrections were written for; run dvc repro split"
            )
        corrected: Labels = np.array(labels, dtype=np.int32)
        corrected[self.rows] = self.new
        return corrected

    def columns(self, rows: int) -> dict[str, pa.Array]:
        """The columns `old_label` and `new_label`, int32, of a dataset of `rows` rows; null in uncorrected rows."""
        wanted = np.ones(rows, dtype=bool)
        wanted[self.rows] = False
        columns = {}
        for name, labels in zip(LABELS, (self.old, self.new), strict=True):
            whole = np.zeros(rows, dtype=np.int32)
            whole[self.rows] = labels
            columns[name] = pa.array(whole, mask=wanted)
        return columns

    @classmethod
    def of_table(cls, table: pa.Table) -> Corrections:
        """Read the corrections from a table that has the columns of `columns`. Raises KeyError if it lacks them."""
        rows = np.flatnonzero(table["new_label"].is_valid().to_numpy())
        return cls(rows, *(table[name].take(pa.array(rows)).to_numpy() for name in LABELS))


def corrections_of(dataset: Dataset, train: NDArray[np.bool_], file: Path | str | None) -> Corrections:
    """Read the corrections of `dataset` from `file`, a CSV with the columns sample_id and label (class name or index).

    `train (n,)` is the mask of training rows. Raises DataError for an unreadable file, for an id that is unknown,
    listed twice or that of a test row, for a label that is not a class or whose class has no other training row, and
    for a label that the row already has.
    """
    if file is None:
        raise DataError("selector correct needs a file (split.file in params.yaml)")
    return corrections_in(dataset, train, read_labels(Path(file)), Path(file))


def corrections_in(dataset: Dataset, train: NDArray[np.bool_], listed: Mapping[str, str], file: Path) -> Corrections:
    """Return the corrections `listed` (sample_id -> label), which were read from `file`. Errors: `corrections_of`."""
    position = {sample_id: row for row, sample_id in enumerate(dataset.sample_ids())}
    refuse_listed(file, "are not in the dataset", [i for i in listed if i not in position])
    rows = np.array([position[i] for i in listed], dtype=np.int64)
    refuse_listed(file, "are test rows, which no model was trained on", _where(listed, ~train[rows]))
    known = class_index(dataset.class_names)
    absent = sorted({name for name in listed.values() if name not in known})
    if absent:
        names = ", ".join(dataset.class_names[:20]) + (", ..." if len(dataset.class_names) > 20 else "")
        raise DataError(f"{file}: {absent[0]!r} is not a class of this dataset; use one of its classes: {names}")
    labels = dataset.labels()
    new = np.array([known[name] for name in listed.values()], dtype=np.int32)
    refuse_listed(file, "have that label already, so there is nothing to correct", _where(listed, new == labels[rows]))
    others = train.copy()
    others[rows] = False
    alone = np.setdiff1d(new, labels[others])
    if len(alone):
        raise DataError(
            f"{file}: class {dataset.class_names[alone[0]]!r} would have only corrected training rows; train a new "
            "model to add a class"
        )
    order = np.argsort(rows)
    return Corrections(rows[order], labels[rows][order], new[order])


def class_index(names: Sequence[str]) -> dict[str, int]:
    """Map class names to labels, and indices as text too; a class that is named like an index takes precedence."""
    return {**{str(i): i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}


def read_labels(file: Path) -> dict[str, str]:
    """Return sample_id -> label, both text, from a CSV with these two columns in any order; other columns are ignored.

    Raises DataError for a file that is missing, unreadable or empty, lacks a column or a label, or repeats an id. The
    message names the file, the row where there is one, and the remedy.
    """
    if file.suffix.lower() != ".csv":
        raise DataError(f"{file}: expected a .csv; {WAY_OUT}")
    try:
        refuse_large(file)
        with open(file, encoding="utf-8-sig", newline="") as f:
            lines = [line for line in csv.reader(f) if any(cell.strip() for cell in line)]
    except FileNotFoundError:
        raise DataError(f"{file}: no such file (split.file in params.yaml)") from None
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{file}: cannot be read ({e}); {WAY_OUT}") from e
    missing = [name for name in COLUMNS if not lines or name not in lines[0]]
    if missing:
        raise DataError(f"{file}: no column {missing[0]!r}; {WAY_OUT}")
    refuse_many(file, len(lines) - 1)
    if len(lines) == 1:
        raise DataError(f"{file}: lists no row to correct; {WAY_OUT}")
    at, named = (lines[0].index(name) for name in COLUMNS)
    short = next((n for n, line in enumerate(lines[1:], 2) if len(line) <= max(at, named)), None)
    if short is not None:
        raise DataError(f"{file}: row {short} has no label; {WAY_OUT}")
    counts = Counter(line[at] for line in lines[1:])
    refuse_listed(file, "are listed twice or more", [i for i, count in counts.items() if count > 1])
    return {line[at]: line[named].strip() for line in lines[1:]}


def _where(listed: Mapping[str, str], wrong: NDArray[np.bool_]) -> list[str]:
    ids = list(listed)
    return [ids[k] for k in np.flatnonzero(wrong)]
