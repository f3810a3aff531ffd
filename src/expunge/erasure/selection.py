"""Resolve requests to rows of the dataset, and set the split of params.yaml to them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from expunge.config import load_config
from expunge.data.corrections import SELECTOR as CORRECT
from expunge.data.dataset import Dataset
from expunge.data.duplicates import IGNORE, INCLUDE, WARN
from expunge.data.schema import FORGET, TRAIN
from expunge.data.selectors import class_indices
from expunge.data.split import Split
from expunge.data.tombstones import Tombstones
from expunge.erasure.corrections import as_asked, merged, new_labels
from expunge.erasure.intake import COLUMNS, values_of
from expunge.erasure.requests import ErasureRequest, Kind, Store
from expunge.ledger.forgotten import ForgottenRows
from expunge.system.errors import ConfigError, RequestError

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """A `Selection` holds the rows of the requests of a batch, and the people that they name.

    `of` maps the id of each request to the ascending positions `(k,)` of all its rows, of both splits. The others are
    masks over the dataset, bool `(rows,)`. `train` marks the training rows. `again` marks rows that promoted versions
    had forgotten and that are still in the dataset; they are forgotten again, not erased. `people` are the subjects
    that requests name. `labels` are the class names by id of requests that correct labels; then `of` and `erase` hold
    the rows that stay and get other labels.
    """

    of: Mapping[str, Rows]
    train: Mask
    again: Mask
    people: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None

    @property
    def erase(self) -> Mask:
        """The rows to erase: those of any request, in both splits."""
        mask = np.zeros(len(self.train), dtype=bool)
        for rows in self.of.values():
            mask[rows] = True
        return mask

    @property
    def forget(self) -> Mask:
        """The training rows to forget: those to erase, and those of `again`."""
        return np.asarray((self.erase | self.again) & self.train, dtype=bool)

    def is_that_of(self, split: Split, dataset: Dataset) -> bool:
        """Return whether `split`, by which the pipeline ran, forgets these rows or teaches these labels."""
        if self.labels is not None:
            return as_asked(split, self.labels, dataset)
        return split.corrections is None and np.array_equal(split.rows(FORGET), np.flatnonzero(self.forget))


def asked_values(store: Store, request: ErasureRequest) -> list[str]:
    """Return the ids, subjects or rows with new labels in the file of a request, or its classes.

    Raises RequestError if the file is missing or does not match the digest of the request.
    """
    if request.kind == "classes":
        return [str(c) for c in request.classes]
    file = Path(request.file or "")
    if not file.is_file():
        raise RequestError(
            f"request {request.id}: {file} is missing; run `dvc checkout {file}` in the workspace that took the "
            "request in"
        )
    values = values_of(file, request.kind)
    if not store.matches(request, values):
        raise RequestError(f"request {request.id}: {file} is not what was asked; restore it, or refuse the request")
    return values


def mask_of(store: Store, request: ErasureRequest, dataset: Dataset) -> Mask:
    """Return the mask `(rows,)` of all rows of `request`, in both splits.

    Raises RequestError, without naming an id, if some are not in the dataset.
    """
    asked = {request.id: asked_values(store, request)}
    mask = np.zeros(dataset.rows, dtype=bool)
    mask[_rows_of(store, [request], asked, dataset)[request.id]] = True
    return mask


def _rows_of(
    store: Store, requests: Sequence[ErasureRequest], asked: Mapping[str, Sequence[str]], dataset: Dataset
) -> dict[str, Rows]:
    """Return the rows of each request. The columns of the dataset are searched once for all requests."""
    places = {
        kind: _places(kind, requests, asked, dataset) for kind in {r.kind for r in requests} & {"ids", "subjects"}
    }
    absent = {r.id: set(asked[r.id]) - set(places[r.kind]) for r in requests if r.kind in places}
    erased = _erased(dataset, set().union(*absent.values()))
    rows = {}
    for request in requests:
        if request.kind == "classes":
            found = np.flatnonzero(np.isin(dataset.labels(), class_indices(dataset.class_names, request.classes)))
        elif request.kind == "labels":
            found = _listed(new_labels(request, asked[request.id], dataset), dataset)
        else:
            _refuse_absent(request, len(absent[request.id] - erased), len(asked[request.id]))
            found = _joined([places[request.kind][v] for v in set(asked[request.id]) - absent[request.id]])
        _refuse_most(store, request, len(found), dataset.rows)
        rows[request.id] = found
    return rows


def _places(
    kind: Kind, requests: Sequence[ErasureRequest], asked: Mapping[str, Sequence[str]], dataset: Dataset
) -> dict[str, Rows]:
    """Return the rows of every id or subject that requests of this kind ask for, if the dataset has it."""
    mine = [r.id for r in requests if r.kind == kind]
    name = COLUMNS[kind][0]
    if name not in dataset.columns:
        raise RequestError(f"request {mine[0]}: the dataset has no subjects; ask for rows by id")
    values = sorted(set().union(*(asked[id_] for id_ in mine)))
    column = dataset.table([name])[name]
    codes = pc.fill_null(pc.index_in(column, value_set=pa.array(values, column.type)), -1).to_numpy()
    return {values[code]: rows for code, rows in _grouped(codes).items()}


def _listed(labels: Mapping[str, str], dataset: Dataset) -> Rows:
    """Return the ascending positions of the rows with an id in `labels`."""
    return np.flatnonzero(np.fromiter((i in labels for i in dataset.sample_ids()), bool, dataset.rows))


def _grouped(codes: NDArray[Any]) -> dict[int, Rows]:
    """Return the ascending positions of each code `(n,)` that is not negative."""
    rows = np.flatnonzero(codes >= 0)
    rows = rows[np.argsort(codes[rows], kind="stable")]
    found, starts = np.unique(codes[rows], return_index=True)
    return dict(zip(found.tolist(), np.split(rows, starts[1:]), strict=False))


def _joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all `parts`, ascending and each once."""
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _erased(dataset: Dataset, absent: set[str]) -> set[str]:
    """Return those of `absent` that have a tombstone: they were erased earlier, so this part of a request is met."""
    tombstones = Tombstones.near(dataset.directory) if absent else None
    if tombstones is None:
        return set()
    names = sorted(absent)
    return {names[i] for i in np.flatnonzero(tombstones.hits(names).any)}


def _refuse_absent(request: ErasureRequest, missing: int, asked: int) -> None:
    if missing:
        raise RequestError(
            f"request {request.id}: {missing} of {asked} {request.kind} are not in the dataset; "
            "ask the requester again, or refuse the request for that reason"
        )


def _refuse_most(store: Store, request: ErasureRequest, rows: int, of: int) -> None:
    """Raise RequestError if the request is for more than half of the rows and the intake did not allow that."""
    if 2 * rows > of and not store.events(request.id)[0].facts.get("more_than_half"):
        raise RequestError(
            f"request {request.id} is for {rows:,} of {of:,} rows, more than half. If this is "
            "intended, refuse it and add it again with `expunge request add --more-than-half` or more_than_half in "
            "the form"
        )


def select(store: Store, requests: Iterable[ErasureRequest], dataset: Dataset, forgotten: ForgottenRows) -> Selection:
    """Resolve the requests of a batch to rows; with `split.duplicates: include`, also to rows of the same content."""
    requests = list(requests)
    if requests and requests[0].kind == "labels":
        return _corrections(store, requests, dataset, forgotten)
    asked = {r.id: asked_values(store, r) for r in requests}
    rows = _rows_of(store, requests, asked, dataset)
    if load_config().split.duplicates == "include":
        rows = _with_duplicates(rows, dataset)
    return Selection(
        rows,
        dataset.splits() == TRAIN,
        forgotten.among(dataset.sample_ids()),
        tuple(sorted({v for r in requests if r.kind == "subjects" for v in asked[r.id]})),
    )


def _with_duplicates(rows: Mapping[str, Rows], dataset: Dataset) -> dict[str, Rows]:
    """Add to the rows of each request all rows that have the content of one of them."""
    _, contents = np.unique(dataset.digests(), return_inverse=True)
    wanted = np.unique(contents[_joined(list(rows.values()))])
    alike = _grouped(np.where(np.isin(contents, wanted), contents, -1))
    return {id_: _joined([alike[c] for c in np.unique(contents[own]).tolist()]) for id_, own in rows.items()}


def _corrections(
    store: Store, requests: Iterable[ErasureRequest], dataset: Dataset, forgotten: ForgottenRows
) -> Selection:
    """Resolve the requests of a batch that corrects labels. Raises RequestError if it would bring back rows."""
    ids = dataset.sample_ids()
    left = int(forgotten.among(ids).sum())
    if left:
        raise RequestError(
            f"{left} rows that a promoted version had forgotten are still in {dataset.directory}, and a correction "
            "would teach them again; run `expunge sweep --apply`, which erases them, or request their erasure first"
        )
    of = {r.id: new_labels(r, asked_values(store, r), dataset) for r in requests}
    rows = {id_: _listed(labels, dataset) for id_, labels in of.items()}
    return Selection(rows, dataset.splits() == TRAIN, np.zeros(dataset.rows, bool), labels=merged(of, forgotten))


class _NullAsWritten(RoundTripRepresenter):
    """Writes `null` for None, as in params.yaml; by default ruamel.yaml leaves the value empty."""


_NullAsWritten.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))


def with_split(params: str, file: Path, correct: bool = False) -> str:
    """Return the text of params.yaml with `split` set to exactly the ids in `file`; all else stays, with comments.

    If the batch is to `correct` labels, `file` names the new labels. Attacks that ask whether a row was trained on are
    then off, because corrected rows are trained on.

    Raises ConfigError if the text has no section `split`.
    """
    editor = YAML()  # the round-trip editor, which keeps comments, order and quotes
    editor.preserve_quotes, editor.width = True, 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.Representer = _NullAsWritten
    tree = editor.load(params)
    if not isinstance(tree, dict) or not isinstance(tree.get("split"), dict):
        raise ConfigError("params.yaml has no section `split`, in which the rows of the request are named; add it")
    tree["split"].update(selector=CORRECT if correct else "ids", file=file.as_posix())
    if tree["split"].get("near_duplicates") == INCLUDE:
        tree["split"]["near_duplicates"] = WARN  # near-duplicates may be other people's rows, which nobody requested
    if correct:
        allowed = (WARN, IGNORE)
        tree["split"].update(
            {k: WARN for k in ("duplicates", "near_duplicates") if tree["split"].get(k) not in allowed}
        )
        tree["shadow"].update(heads=0, networks=0)
    out = io.StringIO()
    editor.dump(tree, out)
    return out.getvalue()
