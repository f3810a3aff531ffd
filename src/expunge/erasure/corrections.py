"""Requests that replace labels: what was asked, as ids and class names of the present dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from expunge.data.corrections import corrections_in
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.data.split import Split
from expunge.data.tombstones import Tombstones
from expunge.erasure.requests import ErasureRequest
from expunge.ledger.forgotten import ForgottenRows, label_pair
from expunge.system.errors import DataError, RequestError


def new_labels(request: ErasureRequest, values: Iterable[str], dataset: Dataset) -> dict[str, str]:
    """Return the class name by id that `request` asks for; `values` are the lines of its list (`intake.values_of`).

    Rows that were erased meanwhile are left out: nothing of them is left to correct. Raises RequestError, without
    naming an id, for a list that does not fit the dataset.
    """
    listed: dict[str, str] = dict(json.loads(value) for value in values)
    known = set(dataset.sample_ids())
    absent = [i for i in listed if i not in known]
    tombstones = Tombstones.near(dataset.directory) if absent else None
    erased = np.zeros(len(absent), bool) if tombstones is None else tombstones.hits(absent).any
    listed = {i: label for i, label in listed.items() if i not in {a for a, e in zip(absent, erased, strict=True) if e}}
    try:
        found = corrections_in(dataset, dataset.splits() == TRAIN, listed, Path(request.file or ""))
    except DataError as e:
        raise RequestError(
            f"request {request.id}: {str(e).partition(', first ')[0]}. Refuse it, correct the list and add it again"
        ) from None
    ids, names = dataset.sample_ids(), dataset.class_names
    return {ids[row]: names[new] for row, new in zip(found.rows.tolist(), found.new.tolist(), strict=True)}


def merged(of: dict[str, dict[str, str]], forgotten: ForgottenRows) -> dict[str, str]:
    """Join the labels of several requests, which `of` holds by request.

    Raises RequestError if two requests give a row different labels, and for a label that an earlier request corrected:
    a version that is taught it again would not cover the versions that were promoted since.
    """
    out: dict[str, str] = {}
    for request, labels in of.items():
        both = sum(out.get(i, name) != name for i, name in labels.items())
        if both:
            raise RequestError(
                f"request {request} gives {both} rows other labels than another request of this run; refuse one of them"
            )
        back = int(forgotten.among([label_pair(i, name) for i, name in labels.items()]).sum())
        if back:
            raise RequestError(
                f"request {request} gives {back} rows labels that an earlier request replaced, and a correction cannot "
                "be taken back; refuse it, and add the rows to the source again under new ids"
            )
        out |= labels
    return out


def as_asked(split: Split, labels: Mapping[str, str], dataset: Dataset) -> bool:
    """Return whether the pipeline taught exactly these labels (class name by id), instead of forgetting rows."""
    found = split.corrections
    if found is None:
        return False
    ids, names = dataset.sample_ids(), dataset.class_names
    return labels == {ids[row]: names[new] for row, new in zip(found.rows.tolist(), found.new.tolist(), strict=True)}
