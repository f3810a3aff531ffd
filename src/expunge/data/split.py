"""Split a dataset by an erasure request or by corrections: one part for every row."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.data.canaries import SELECTOR as CANARY_SELECTOR
from expunge.data.corrections import LABELS, Corrections, corrections_of
from expunge.data.corrections import SELECTOR as CORRECT
from expunge.data.dataset import Dataset
from expunge.data.duplicates import IGNORE, WARN, Neighbours, exact_twins, near_twins
from expunge.data.schema import ASSIGNMENT_SCHEMA, FORGET, PARTS, RETAIN, TEST_FORGET, TEST_RETAIN, TRAIN, UNSEEN
from expunge.data.selectors import refuse_most, select
from expunge.data.tombstones import Tombstones, refuse
from expunge.system.damage import reading
from expunge.system.errors import DataError, ManifestError
from expunge.system.files import read_json, read_manifest, staged_dir, write_json, write_manifest

ASSIGNMENT = "assignment.parquet"
REQUEST = "request.json"
AGAIN = "run the split stage again"


def split(
    dataset: Dataset,
    out_dir: Path | str,
    *,
    selector: str,
    classes: Sequence[int | str] = (),
    fraction: float = 0.1,
    file: Path | str | None = None,
    filter: str | None = None,
    duplicates: str = "warn",
    near_duplicates: str = IGNORE,
    validation: float = 0.0,
    seed: int = 0,
    neighbours: Neighbours | None = None,
    scores: Callable[[], np.ndarray] | None = None,
    more_than_half: bool = True,
) -> dict[str, Any]:
    """Write `out_dir` (assignment.parquet, request.json, manifest.json) and return the request.

    The arguments that each selector uses: classes -> `classes` (names or indices), random -> `fraction` of the training
    rows and `seed`, memorised -> `fraction` and `scores`, ids, subjects and correct -> `file`, filter -> `filter`,
    canaries -> none. Only training rows are forgotten. Test rows of a class whose training rows are all forgotten
    become test_forget, the other test rows test_retain; unseen rows stay unseen. The selector correct removes no row:
    the part "forget" then contains the rows whose labels change, and assignment.parquet has the columns `old_label` and
    `new_label`.

    A retained exact duplicate of a forgotten row undoes the erasure. `duplicates` is the policy for such rows: "warn",
    "include" them in the request, or "refuse" it. `near_duplicates` is the policy for retained rows that `neighbours`
    finds near forgotten ones; it may also be "ignore". `validation` is the share of the retained and of the forgotten
    rows that is held out for choosing settings and excluded from metrics; it is drawn with `seed`. `more_than_half`
    permits classes, subjects and filters to select more than half of the training rows. Raises DataError for a request
    that names unknown rows, no training row, or all of them, or that a policy refuses.
    """
    splits = dataset.splits()
    train = splits == TRAIN
    corrections = None
    if selector == CORRECT:
        corrections = _checked_corrections(dataset, train, file, duplicates, near_duplicates)
        forget = np.isin(np.arange(len(train)), corrections.rows)
    else:
        forget = select(
            dataset, train, selector, classes=classes, fraction=fraction, file=file, filter=filter, seed=seed,
            scores=scores,
        )  # fmt: skip
    guarded = forget & (selector != CANARY_SELECTOR)  # canaries are copies of retained rows on purpose
    exact = exact_twins(dataset, train, guarded, duplicates)
    forget |= exact.joined
    near = near_twins(neighbours, train, guarded | exact.joined, exact.twins, near_duplicates)
    forget |= near.joined
    if not forget.any() and Tombstones.near(dataset.directory) is not None:
        raise DataError(
            f"the request ({selector}) is already fulfilled, because every training row that it names was erased; "
            "put another request under split in params.yaml"
        )
    if not forget.any():
        raise DataError(f"the request ({selector}) forgets no training row, so there is nothing to do")
    if not (train & ~forget).any():
        raise DataError(
            f"the request ({selector}) forgets every training row, so none would be retained; name fewer rows"
        )

    refuse_most(selector, forget, train, more_than_half)

    labels = dataset.labels()
    whole = whole_classes(labels, train, forget) if corrections is None else np.empty(0, np.int32)
    part = parts_of(labels, splits, forget, corrections is not None)
    ids = dataset.sample_ids()
    named = [ids[i] for i in np.flatnonzero(forget)]
    if corrections is not None:  # so that other labels for the same rows give another digest
        named = [json.dumps([i, int(new)]) for i, new in zip(named, corrections.new, strict=True)]
    request = {
        "selector": selector,
        "forget_rows": int(forget.sum()),
        "retain_rows": int((train & ~forget).sum()),
        "digest": request_digest(named, dataset.digest),
        "classes": np.unique(labels[forget]).tolist(),
        "whole_classes": whole.tolist(),
        "duplicates_left_in_retain": exact.left,
        "duplicates_included": int(exact.joined.sum()),
        "near_duplicates": {
            "distance": near.distance,
            "left_in_retain": near.left,
            "included": int(near.joined.sum()),
        },
        "validation": {"share": validation, "seed": seed},
    }
    _write(Path(out_dir), dataset.digest, ids, part, request, corrections)
    return request


def _write(
    out_dir: Path,
    dataset_digest: str,
    ids: list[str],
    part: np.ndarray,
    request: dict[str, Any],
    corrections: Corrections | None,
) -> None:
    rows = pa.array(np.arange(len(part), dtype=np.int64))
    table = pa.table([pa.array(ids), rows, pa.array(part.tolist())], schema=ASSIGNMENT_SCHEMA)
    for name, column in ({} if corrections is None else corrections.columns(len(part))).items():
        table = table.append_column(name, column)
    with staged_dir(out_dir) as tmp:
        pq.write_table(table, tmp / ASSIGNMENT, compression="zstd", use_dictionary=["part"])
        write_json(tmp / REQUEST, request)
        counts = {name: int((part == name).sum()) for name in PARTS}
        write_manifest(tmp, "split", rows={ASSIGNMENT: len(part)}, dataset=dataset_digest, parts=counts)


def _checked_corrections(
    dataset: Dataset, train: np.ndarray, file: Path | str | None, duplicates: str, near_duplicates: str
) -> Corrections:
    """Read the corrections. Raises DataError for the policies include and refuse, which apply only to erasure."""
    for key, value in (("duplicates", duplicates), ("near_duplicates", near_duplicates)):
        if value not in (WARN, IGNORE):
            raise DataError(
                f"split.{key}: {value} cannot be used with corrections; list the copies and their new labels, too, "
                f"and set split.{key} to warn"
            )
    return corrections_of(dataset, train, file)


def whole_classes(labels: np.ndarray, train: np.ndarray, forget: np.ndarray) -> np.ndarray:
    """Return the classes whose training rows are all forgotten, ascending. All arguments have shape `(n,)`."""
    return np.setdiff1d(labels[forget], labels[train & ~forget])


def parts_of(labels: np.ndarray, splits: np.ndarray, forget: np.ndarray, corrected: bool = False) -> np.ndarray:
    """Return the part of every row, str `(n,)`.

    `labels (n,)` are integers, `splits (n,)` strings, and `forget (n,)` is the mask of the forgotten training rows. If
    they are `corrected` instead, no class is removed and no test row becomes test_forget. Unseen rows stay unseen,
    whatever their class.
    """
    train = splits == TRAIN
    part = np.where(forget & train, FORGET, RETAIN).astype("U11")  # 11 characters: the longest name
    classes = labels[:0] if corrected else whole_classes(labels, train, forget & train)
    part[~train] = np.where(np.isin(labels[~train], classes), TEST_FORGET, TEST_RETAIN)
    part[splits == UNSEEN] = UNSEEN
    return part


def described(parts: np.ndarray, dataset: Dataset) -> str:
    """Describe a request without ids: names of whole classes, and the number of other training rows. `parts (n,)`."""
    labels, forget = dataset.labels(), parts == FORGET
    whole = whole_classes(labels, (parts == FORGET) | (parts == RETAIN), forget)
    names = [dataset.class_names[c] for c in whole]
    others = int((forget & ~np.isin(labels, whole)).sum())
    return ", ".join([*names, *([f"{others:,} rows"] if others else [])]) or "rows that are erased"


def request_digest(sample_ids: Sequence[str], dataset_digest: str) -> str:
    """Identify a set of rows by `sha256:...`, the HMAC-SHA256 of the sorted ids with the dataset's digest as key."""
    ids = json.dumps(sorted(sample_ids), ensure_ascii=False, separators=(",", ":")).encode()
    return "sha256:" + hmac.new(dataset_digest.encode(), ids, hashlib.sha256).hexdigest()


def digest_of_rows(dataset: Dataset, rows: np.ndarray) -> str:
    """Return the `request_digest` of the rows at the positions `rows` `(n,)`."""
    ids = dataset.sample_ids()
    return request_digest([ids[i] for i in rows.tolist()], dataset.digest)


class Split:
    """A split directory whose files were checked against its manifest; `request` is the content of request.json."""

    def __init__(self, directory: Path | str) -> None:
        """Open `directory`. Raises ManifestError if it is not a valid split, DataError if it lists an erased row."""
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        if "parts" not in self.manifest:
            raise ManifestError(f"{self.directory}: is not a split (its producer is {self.manifest.get('producer')!r})")
        self.request: dict[str, Any] = read_json(self.directory / REQUEST)
        if not isinstance(self.request, dict) or "digest" not in self.request or "validation" not in self.request:
            raise ManifestError(f"{self.directory / REQUEST}: does not describe a request; {AGAIN}")
        if (tombstones := Tombstones.near(self.directory)) is not None:
            refuse(tombstones, self.directory, self._read("sample_id"), None)

    def _read(self, column: str) -> list[str]:
        file = self.directory / ASSIGNMENT
        with reading(file, AGAIN):
            table = pq.ParquetFile(file).read([column])  # pq.read_table would import pandas
            table.validate(full=True)
            values: list[str] = table[column].to_pylist()
        if not all(isinstance(value, str) for value in values):
            raise ManifestError(f"{file}: column {column!r} must contain only text; {AGAIN}")
        if len(values) != (expected := self.manifest["files"][ASSIGNMENT].get("rows")):
            raise ManifestError(f"{file}: has {len(values)} rows, but its manifest says {expected}; {AGAIN}")
        return values

    @cached_property
    def corrections(self) -> Corrections | None:
        """The corrections of the request; None if the request forgets rows."""
        if self.request["selector"] != CORRECT:
            return None
        return Corrections.of_table(pq.ParquetFile(self.directory / ASSIGNMENT).read(LABELS))

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels after the request, int32 `(rows,)`, given the `labels (rows,)` of the dataset.

        Raises DataError if the corrections were written for other labels.
        """
        return labels if self.corrections is None else self.corrections.apply(labels, self.directory)

    @cached_property
    def training_rows(self) -> np.ndarray:
        """Return the dataset positions of the rows on which a model is trained after the request.

        These are the retained and the corrected rows. The positions are int64, in ascending order.
        """
        return self.rows(RETAIN) if self.corrections is None else np.union1d(self.rows(RETAIN), self.rows(FORGET))

    @cached_property
    def parts(self) -> np.ndarray:
        """The part of each row, str `(rows,)` in dataset order."""
        return np.array(self._read("part"))

    @cached_property
    def validation_mask(self) -> np.ndarray:
        """Mask `(rows,)` of the training rows held out for choosing settings; used in the final fit, not in metrics."""
        mask = np.zeros(len(self.parts), dtype=bool)
        with reading(self.directory / REQUEST, AGAIN):
            drawn = self.request["validation"]
            for stream, part in enumerate((RETAIN, FORGET)):
                rows = self.rows(part)
                rng = np.random.default_rng([drawn["seed"], stream])
                mask[rng.choice(rows, int(drawn["share"] * len(rows)), replace=False)] = True
        return mask

    def rows(self, part: str) -> np.ndarray:
        """Return the dataset positions of one part, int64, ascending. Raises ValueError for an unknown part."""
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; choose one of {', '.join(PARTS)}")
        return np.flatnonzero(self.parts == part)

    def digest_of(self, rows: np.ndarray, dataset_digest: str) -> str:
        """Return the `request_digest` of the positions `rows (n,)` under a present or past digest of the dataset."""
        ids = self._read("sample_id")
        return request_digest([ids[i] for i in rows.tolist()], dataset_digest)

    def scored_rows(self, part: str) -> np.ndarray:
        """Like `rows`, without the validation rows, by which settings may have been chosen."""
        rows = self.rows(part)
        scored: np.ndarray = rows[~self.validation_mask[rows]]
        return scored
