"""Selectors: from the settings of a request to the mask of the training rows to forget."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from expunge.data.canaries import SELECTOR as CANARY_SELECTOR
from expunge.data.canaries import canary_rows
from expunge.data.dataset import Dataset
from expunge.data.filters import names_individuals, parse_filter
from expunge.data.tombstones import Tombstones
from expunge.system.errors import DataError
from expunge.system.limits import refuse_large, refuse_many

SELECTORS = ("classes", "random", "memorised", "canaries", "ids", "subjects", "filter")
LONGEST = 4096  # characters of an id or a subject; the longest path on Linux, since paths may be ids
FILTER_COLUMNS = ("sample_id", "subject", "label", "class", "split", "height", "width", "channels")


def select(
    dataset: Dataset,
    train: np.ndarray,
    selector: str,
    *,
    classes: Sequence[int | str],
    fraction: float,
    file: Path | str | None,
    filter: str | None,
    seed: int,
    scores: Callable[[], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the mask `(rows,)` of the training rows that the request forgets.

    `train` is the mask of training rows, and `scores` returns how strongly the model memorised each row `(rows,)`, for
    the selector "memorised" only. Raises DataError for a request that is incomplete or does not fit the dataset.
    """
    if selector == "classes":
        return train & np.isin(dataset.labels(), class_indices(dataset.class_names, classes))
    if selector == "random":
        return random_rows(train, fraction, seed)
    if selector == "memorised":
        if scores is None:
            raise DataError("selector memorised needs the features of the model; run dvc repro split")
        return memorised_rows(train, scores(), fraction)
    if selector == CANARY_SELECTOR:
        return planted_rows(dataset)
    if selector == "filter":
        if not filter:
            raise DataError("selector filter needs an expression (split.filter in params.yaml)")
        return _only_train(filter_rows(dataset, filter), train, "the filter")
    if selector not in SELECTORS:
        raise DataError(f"unknown selector {selector!r}; choose one of {', '.join(SELECTORS)}")
    if file is None:
        raise DataError(f"selector {selector} needs a file (split.file in params.yaml)")
    if selector == "ids":
        return id_rows(dataset, train, Path(file))
    return _only_train(subject_rows(dataset, Path(file)), train, f"{file}")


def refuse_most(selector: str, forget: np.ndarray, train: np.ndarray, allowed: bool) -> None:
    """Raise DataError if classes, subjects or a filter select more than half of the training rows, unless `allowed`.

    This catches requests whose condition is inverted by mistake. Lists of ids and shares of the rows are not checked,
    since they state their size. `forget` and `train` are masks `(rows,)`.
    """
    count, rows = int((forget & train).sum()), int(train.sum())
    if selector in ("classes", "subjects", "filter") and 2 * count > rows and not allowed:
        raise DataError(
            f"the request ({selector}) forgets {count:,} of {rows:,} training rows, which is more than half; to "
            "allow this, set split.more_than_half: true"
        )


def class_indices(names: Sequence[str], wanted: Sequence[int | str]) -> list[int]:
    """Return the labels of classes given by name or index.

    Case is ignored unless two class names differ only in case. Raises DataError for an unknown class, listing the
    known ones, for a repeated class, and for an empty list.
    """
    if not wanted:
        raise DataError("selector classes needs at least one class (split.classes in params.yaml)")
    indices = []
    folded = [name.casefold() for name in names]
    for item in wanted:
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(names):
            indices.append(item)
        elif isinstance(item, str) and item in names:
            indices.append(names.index(item))
        elif isinstance(item, str) and folded.count(item.casefold()) == 1:
            indices.append(folded.index(item.casefold()))
        else:
            known = ", ".join(f"{i} {name}" for i, name in enumerate(names[:50]))
            more = f" and {len(names) - 50} more" if len(names) > 50 else ""
            raise DataError(f"unknown class {item!r}; this dataset has the classes {known}{more}")
    repeated = [names[i] for i, count in Counter(indices).items() if count > 1]
    if repeated:
        raise DataError(f"class {repeated[0]!r} is listed twice")
    return indices


def share_of(fraction: float, rows: int) -> int:
    """The number of rows in the share `fraction` of `rows` rows, rounded and at least 1."""
    return max(round(fraction * rows), 1)


def random_rows(train: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw `fraction` of the training rows, at least one, without replacement. Raises DataError outside (0, 1)."""
    if not 0 < fraction < 1:
        raise DataError(f"fraction is {fraction}; give a number between 0 and 1")
    rows = np.flatnonzero(train)
    mask = np.zeros(len(train), dtype=bool)
    mask[np.random.default_rng(seed).choice(rows, share_of(fraction, len(rows)), replace=False)] = True
    return mask


def memorised_rows(train: np.ndarray, scores: np.ndarray, fraction: float) -> np.ndarray:
    """Select the `fraction` of the training rows, at least one, with the highest `scores (rows,)`.

    Rows with equal scores are taken in row order. Raises DataError for a fraction outside (0, 1) and for a training
    row whose score is not finite.
    """
    if not 0 < fraction < 1:
        raise DataError(f"fraction is {fraction}; give a number between 0 and 1")
    rows = np.flatnonzero(train)
    if not np.isfinite(scores[rows]).all():
        raise DataError("selector memorised: some training rows have no score; run dvc repro extract")
    mask = np.zeros(len(train), dtype=bool)
    mask[rows[np.argsort(-scores[rows], kind="stable")[: share_of(fraction, len(rows))]]] = True
    return mask


def planted_rows(dataset: Dataset) -> np.ndarray:
    """Return the mask `(rows,)` of the planted canaries. Raises DataError if the dataset has none."""
    canaries = canary_rows(dataset.directory, dataset.sample_ids())
    if canaries is None:
        raise DataError(f"{dataset.directory}: no canaries were planted; set data.canaries in params.yaml above 0")
    mask = np.zeros(dataset.rows, dtype=bool)
    mask[canaries[0]] = True
    return mask


def id_rows(dataset: Dataset, train: np.ndarray, file: Path) -> np.ndarray:
    """Return the mask of the rows whose sample_id is listed in `file`.

    Ids of rows that were erased earlier are ignored, since the request is fulfilled for them. Raises DataError for
    unknown or repeated ids, and for ids of test or unseen rows.
    """
    wanted = read_values(file, "sample_id")
    position = {sample_id: row for row, sample_id in enumerate(dataset.sample_ids())}
    refuse_listed(file, "are not in the dataset", _never_there(dataset, [i for i in wanted if i not in position]))
    wanted = [i for i in wanted if i in position]
    rows = np.array([position[i] for i in wanted], dtype=np.int64)
    others = [wanted[k] for k in np.flatnonzero(~train[rows])]
    refuse_listed(file, "are test rows, or unseen ones, which no model was trained on", others)
    mask = np.zeros(len(train), dtype=bool)
    mask[rows] = True
    return mask


def subject_rows(dataset: Dataset, file: Path) -> np.ndarray:
    """Return the mask of the rows of all splits whose subject is listed in `file`.

    Raises DataError for unknown and repeated subjects, and for a dataset without a subject column.
    """
    if "subject" not in dataset.columns:
        raise DataError(f"{dataset.directory}: this dataset has no subject column; select by ids instead")
    wanted = read_values(file, "subject")
    subjects = dataset.table(["subject"])["subject"].to_pylist()
    known = set(subjects)
    refuse_listed(file, "are not subjects of any row", _never_there(dataset, [s for s in wanted if s not in known]))
    chosen = set(wanted)
    return np.array([s in chosen for s in subjects], dtype=bool)


def filter_rows(dataset: Dataset, text: str) -> np.ndarray:
    """Return the mask of the rows of all splits that match the filter `text`; see `expunge.data.filters`.

    Raises DataError for an invalid filter, and for one that names rows or people, since params.yaml stays in git.
    """
    names = [c for c in FILTER_COLUMNS if c in dataset.columns]
    table = dataset.table(names)
    class_column = pa.array(dataset.class_names).take(table["label"].combine_chunks())
    table = table.append_column("class", class_column)
    types = {name: table.schema.field(name).type for name in FILTER_COLUMNS if name in table.column_names}
    expression = parse_filter(text, types)
    if names_individuals(text):
        raise DataError(
            f"filter: {text!r} names rows or people, but params.yaml is kept in git forever; list them in a file in "
            "data/requests, track it with dvc add, and use selector: ids or subjects"
        )
    numbered = table.append_column("__row", pa.array(np.arange(len(table))))
    try:
        rows = pads.dataset(numbered).to_table(columns=["__row"], filter=expression)["__row"].to_numpy()
    except pa.ArrowException as e:
        raise DataError(f"filter: {text!r} cannot be applied to the dataset ({e})") from e
    mask = np.zeros(len(table), dtype=bool)
    mask[rows] = True
    return mask


def read_values(file: Path, column: str) -> list[str]:
    """Return the values listed in a .txt (one per line), .csv or .parquet file.

    A table must have `column`; a CSV with a single column needs no header. Raises DataError for an unreadable file, no
    values, more bytes or values than the limits allow, a value of more than 4,096 characters, or repeated values.
    """
    readers = {".txt": _read_lines, ".csv": _read_csv, ".parquet": _read_parquet}
    if file.suffix.lower() not in readers:
        raise DataError(f"{file}: unknown file type; use .txt, .csv or .parquet")
    try:
        refuse_large(file)
        values = readers[file.suffix.lower()](file, column)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file (split.file in params.yaml)") from None
    except (OSError, ValueError, csv.Error, pa.ArrowException, MemoryError) as e:
        raise DataError(f"{file}: cannot be read ({e})") from e
    if not values:
        raise DataError(f"{file}: the list is empty; name at least one row or subject to forget")
    refuse_many(file, len(values))
    if long := next((i for i, value in enumerate(values, 1) if len(value) > LONGEST), None):
        raise DataError(
            f"{file}: value {long} has {len(values[long - 1]):,} characters, but at most {LONGEST:,} are allowed; "
            "write one id per line"
        )
    refuse_listed(file, "are listed twice or more", [v for v, count in Counter(values).items() if count > 1])
    return values


def _read_lines(file: Path, column: str) -> list[str]:
    lines = (line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
    return [line for line in lines if line]


def _read_csv(file: Path, column: str) -> list[str]:
    with open(file, encoding="utf-8-sig", newline="") as f:
        reader = csv.reader(f)
        try:
            rows = [row for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as e:
            raise DataError(f"{file}: line {reader.line_num} cannot be read ({e}); write one id per line") from e
    if not rows:
        return []
    if column in rows[0]:
        at = rows[0].index(column)
        short = next((i for i, row in enumerate(rows, 1) if len(row) <= at), None)
        if short is not None:
            raise DataError(f"{file}: row {short} has no {column}")
        return [row[at] for row in rows[1:]]
    if any(len(row) != 1 for row in rows):
        raise DataError(f"{file}: no column {column!r}; its columns are {', '.join(rows[0])}")
    return [row[0] for row in rows]


def _read_parquet(file: Path, column: str) -> list[str]:
    with pq.ParquetFile(file) as table:
        names, rows = table.schema_arrow.names, table.metadata.num_rows
        kind = table.schema_arrow.field(column).type if column in names else None
    refuse_many(file, rows)  # checked before reading, since a small compressed file may hold very many rows
    if column not in names:
        raise DataError(f"{file}: no column {column!r}; its columns are {', '.join(names)}")
    if kind is not None and not (pa.types.is_integer(kind) or _is_text(kind)):
        raise DataError(f"{file}: column {column!r} has the type {kind}, but integers or text are needed")
    values = pq.read_table(file, columns=[column])[column]
    if values.null_count:
        raise DataError(f"{file}: {values.null_count} rows have no {column}")
    return [str(v) for v in values.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_large_string(inner) or pa.types.is_string(inner))


def _never_there(dataset: Dataset, missing: list[str]) -> list[str]:
    """Return the `missing` values without those of erased rows."""
    tombstones = Tombstones.near(dataset.directory)
    if tombstones is None or not missing:
        return missing
    erased = tombstones.hits(missing).any
    return [value for value, is_erased in zip(missing, erased, strict=True) if not is_erased]


def _only_train(mask: np.ndarray, train: np.ndarray, what: str) -> np.ndarray:
    """Restrict `mask` to training rows. Raises DataError if it selects only rows that are not training rows."""
    if mask.any() and not (mask & train).any():
        raise DataError(
            f"{what} selects {int(mask.sum())} test rows and no training row; name training rows, because only these "
            "can be forgotten"
        )
    selected: np.ndarray = mask & train
    return selected


def refuse_listed(file: Path, problem: str, values: Sequence[str]) -> None:
    """Raise DataError if any `values` of `file` have the `problem`; the message has their number and the first."""
    if values:
        first = ", ".join(repr(v) for v in values[:3])
        raise DataError(f"{file}: {len(values)} values {problem}, first {first}")
