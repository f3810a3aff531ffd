"""Resolve requests to rows of the dataset, and set the split of params.yaml to them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from expunge.erasure.intake import values_of
from expunge.erasure.requests import ErasureRequest, Store
from expunge.ledger.forgotten import ForgottenRows
from expunge.system.errors import ConfigError, RequestError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """A `Selection` holds masks over the dataset, which are bool `(rows,)`, and the people that requests name.

    `of` maps the id of each request to all its rows, of both splits. `train` marks the training rows. `again` marks
    rows that promoted versions had forgotten and that are still in the dataset; they are forgotten again, not erased.
    `people` are the subjects that requests name. `labels` are the class names by id of requests that correct labels;
    then `of` and `erase` hold the rows that stay and get other labels.
    """

    of: Mapping[str, Mask]
    train: Mask
    again: Mask
    people: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None

    @property
    def erase(self) -> Mask:
        """The rows to erase: those of any request, in both splits."""
        return np.asarray(np.logical_or.reduce(list(self.of.values())), dtype=bool)

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
    """Return the mask of all rows of `request`, in both splits.

    Raises RequestError, without naming an id, if some are not in the dataset.
    """
    values = asked_values(store, request)
    if request.kind == "classes":
        mask = np.isin(dataset.labels(), class_indices(dataset.class_names, request.classes))
        return _refuse_most(store, request, mask)
    if request.kind == "labels":
        rows = new_labels(request, values, dataset)
        return _refuse_most(store, request, np.array([i in rows for i in dataset.sample_ids()], bool))
    column = "sample_id" if request.kind == "ids" else "subject"
    if column not in dataset.columns:
        raise RequestError(f"request {request.id}: the dataset has no subjects; ask for rows by id")
    found = np.array(dataset.table([column])[column].to_pylist(), dtype=object)
    absent = sorted(set(values) - set(found.tolist()))
    tombstones = Tombstones.near(dataset.directory) if absent else None
    # Rows with a tombstone do not count as missing: they were erased earlier, so this part of the request is met.
    missing = len(absent) - (0 if tombstones is None else int(tombstones.hits(absent).any.sum()))
    if missing:
        raise RequestError(
            f"request {request.id}: {missing} of {len(values)} {request.kind} are not in the dataset; "
            "ask the requester again, or refuse the request for that reason"
        )
    return _refuse_most(store, request, np.isin(found, values))


def _refuse_most(store: Store, request: ErasureRequest, mask: Mask) -> Mask:
    """Return `mask`. Raises RequestError if it covers more than half of the rows and the intake did not allow that."""
    if 2 * mask.sum() > len(mask) and not store.events(request.id)[0].facts.get("more_than_half"):
        raise RequestError(
            f"request {request.id} is for {int(mask.sum()):,} of {len(mask):,} rows, more than half. If this is "
            "intended, refuse it and add it again with `expunge request add --more-than-half` or more_than_half in "
            "the form"
        )
    return mask


def select(store: Store, requests: Iterable[ErasureRequest], dataset: Dataset, forgotten: ForgottenRows) -> Selection:
    """Resolve the requests of a batch to rows; with `split.duplicates: include`, also to rows of the same content."""
    requests = list(requests)
    if requests and requests[0].kind == "labels":
        return _corrections(store, requests, dataset, forgotten)
    masks = {r.id: mask_of(store, r, dataset) for r in requests}
    if load_config().split.duplicates == "include":
        contents = dataset.digests()
        masks = {id_: np.isin(contents, contents[mask]) for id_, mask in masks.items()}
    people = [v for r in requests if r.kind == "subjects" for v in asked_values(store, r)]
    return Selection(
        masks,
        dataset.splits() == TRAIN,
        forgotten.among(dataset.sample_ids()),
        tuple(sorted(set(people))),
    )


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
    masks = {id_: np.array([i in labels for i in ids], bool) for id_, labels in of.items()}
    return Selection(masks, dataset.splits() == TRAIN, np.zeros(len(ids), bool), labels=merged(of, forgotten))


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
