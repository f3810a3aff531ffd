"""Training rows that keep existing under another label: the list that is asked for, and what a split records of it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.data.selectors import refuse_listed
from expunge.system.errors import DataError

SELECTOR = "correct"
COLUMNS = ("sample_id", "label")
LABELS = ("old_label", "new_label")
WAY_OUT = "write one line per row: sample_id,label, with that header"

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Corrections:
    """`rows (k,)` int64 dataset positions, ascending; `old` and `new (k,)` int32 labels, which differ in every row."""

    rows: NDArray[np.int64]
    old: Labels
    new: Labels

    def apply(self, labels: Labels, what: Path | str = "the dataset") -> Labels:
        """A copy of `labels (n,)` in which the new labels stand. Raises DataError naming `what` where the labels of the
        rows are not those that were to be replaced."""
        if len(self.rows) and not (self.rows[-1] < len(labels) and np.array_equal(labels[self.rows], self.old)):
            raise DataError(f"{what}: its labels are not those that the corrections were written for; split again")
        corrected: Labels = np.array(labels, dtype=np.int32)
        corrected[self.rows] = self.new
        return corrected

    def columns(self, rows: int) -> dict[str, pa.Array]:
        """`old_label` and `new_label` int32 of all `rows` rows of a dataset, null where nothing is corrected."""
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
        """From a table with the `columns`. Raises KeyError where it lacks them."""
        rows = np.flatnonzero(table["new_label"].is_valid().to_numpy())
        return cls(rows, *(table[name].take(pa.array(rows)).to_numpy() for name in LABELS))


def corrections_of(dataset: Dataset, train: NDArray[np.bool_], file: Path | str | None) -> Corrections:
    """What `file`, a CSV with the columns sample_id and label (a class name or index), changes in `dataset`.

    `train (n,)`: the mask of training rows. Raises DataError for a file that cannot be used, for ids that are unknown,
    listed twice or of test rows, for labels that are no class or of a class without another training row, and for a
    correction that changes nothing.
    """
    if file is None:
        raise DataError("selector correct needs a file (split.file in params.yaml)")
    file = Path(file)
    listed = read_labels(file)
    position = {sample_id: row for row, sample_id in enumerate(dataset.sample_ids())}
    refuse_listed(file, "are not in the dataset", [i for i in listed if i not in position])
    rows = np.array([position[i] for i in listed], dtype=np.int64)
    refuse_listed(file, "are test rows, which no model was trained on", _where(listed, ~train[rows]))
    known = class_index(dataset.class_names)
    absent = sorted({name for name in listed.values() if name not in known})
    if absent:
        names = ", ".join(dataset.class_names[:20]) + (", ..." if len(dataset.class_names) > 20 else "")
        raise DataError(f"{file}: {absent[0]!r} is no class of this dataset; it has {names}")
    labels = dataset.labels()
    new = np.array([known[name] for name in listed.values()], dtype=np.int32)
    refuse_listed(
        file, "have that label already, so their correction changes nothing", _where(listed, new == labels[rows])
    )
    others = train.copy()
    others[rows] = False
    alone = np.setdiff1d(new, labels[others])
    if len(alone):
        raise DataError(
            f"{file}: class {dataset.class_names[alone[0]]!r} has no training row but the corrected ones; "
            "a class is added by training a new model, not by corrections"
        )
    order = np.argsort(rows)
    return Corrections(rows[order], labels[rows][order], new[order])


def class_index(names: Sequence[str]) -> dict[str, int]:
    """Label by what a list may call a class: its name, or its index where no class has that name."""
    return {**{str(i): i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}


def read_labels(file: Path) -> dict[str, str]:
    """sample_id -> label, as text, of a CSV with these two columns in any order; others are passed over.

    Raises DataError naming the file, the row and the way out.
    """
    if file.suffix.lower() != ".csv":
        raise DataError(f"{file}: expected a .csv; {WAY_OUT}")
    try:
        with open(file, encoding="utf-8-sig", newline="") as f:
            lines = [line for line in csv.reader(f) if any(cell.strip() for cell in line)]
    except FileNotFoundError:
        raise DataError(f"{file}: no such file (split.file in params.yaml)") from None
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{file}: cannot be read ({e}); {WAY_OUT}") from e
    missing = [name for name in COLUMNS if not lines or name not in lines[0]]
    if missing:
        raise DataError(f"{file}: no column {missing[0]!r}; {WAY_OUT}")
    if len(lines) == 1:
        raise DataError(f"{file}: lists nothing to correct")
    at, named = (lines[0].index(name) for name in COLUMNS)
    short = next((n for n, line in enumerate(lines[1:], 2) if len(line) <= max(at, named)), None)
    if short is not None:
        raise DataError(f"{file}: row {short} has no label; {WAY_OUT}")
    counts = Counter(line[at] for line in lines[1:])
    refuse_listed(file, "are listed twice or more", [i for i, count in counts.items() if count > 1])
    return {line[at]: line[named].strip() for line in lines[1:]}


def _where(listed: dict[str, str], wrong: NDArray[np.bool_]) -> list[str]:
    ids = list(listed)
    return [ids[k] for k in np.flatnonzero(wrong)]
