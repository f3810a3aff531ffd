"""Which rows of the dataset a request is about, and the list that the pipeline is given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.data.selectors import class_indices
from expunge.data.tombstones import Tombstones
from expunge.erasure.intake import values_of
from expunge.erasure.requests import ErasureRequest, Store
from expunge.ledger.forgotten import ForgottenRows
from expunge.system.errors import ConfigError, RequestError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """Masks over the dataset: `of` every request, all its rows, training rows and test rows; `train`.

    `again`: training rows that promoted versions had forgotten and that are still there: forgotten again, not erased.
    `people`: named by requests for subjects.
    """

    of: Mapping[str, Mask]
    train: Mask
    again: Mask
    people: tuple[str, ...]

    @property
    def erase(self) -> Mask:
        return np.asarray(np.logical_or.reduce(list(self.of.values())), dtype=bool)

    @property
    def forget(self) -> Mask:
        return np.asarray((self.erase | self.again) & self.train, dtype=bool)


def asked_values(store: Store, request: ErasureRequest) -> list[str]:
    """The ids or subjects of a request, from its file. Raises RequestError if it is gone or is not what was asked."""
    if request.kind == "classes":
        return [str(c) for c in request.classes]
    file = Path(request.file or "")
    if not file.is_file():
        raise RequestError(f"request {request.id}: {file} is not here; `dvc checkout {file}` where it was taken in")
    values = values_of(file, request.kind)
    if not store.matches(request, values):
        raise RequestError(f"request {request.id}: {file} is not what was asked; restore it, or refuse the request")
    return values


def mask_of(store: Store, request: ErasureRequest, dataset: Dataset) -> Mask:
    """All rows of `request`, of both splits. Raises RequestError, which names no id, for what is not in the dataset."""
    values = asked_values(store, request)
    if request.kind == "classes":
        return np.isin(dataset.labels(), class_indices(dataset.class_names, request.classes))
    column = "sample_id" if request.kind == "ids" else "subject"
    if column not in dataset.columns:
        raise RequestError(f"request {request.id}: the dataset has no subjects; ask for rows by id")
    found = np.array(dataset.table([column])[column].to_pylist(), dtype=object)
    absent = sorted(set(values) - set(found.tolist()))
    tombstones = Tombstones.near(dataset.directory) if absent else None
    # What was erased before is not missing: that part of the request is met.
    missing = len(absent) - (0 if tombstones is None else int(tombstones.hits(absent).any.sum()))
    if missing:
        raise RequestError(
            f"request {request.id}: {missing} of {len(values)} {request.kind} are not in the dataset; "
            "ask again, or refuse it with that reason"
        )
    return np.isin(found, values)


def select(store: Store, requests: Iterable[ErasureRequest], dataset: Dataset, forgotten: ForgottenRows) -> Selection:
    """What the requests of a batch are about."""
    requests = list(requests)
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


def with_split(params: str, file: Path) -> str:
    """The text of params.yaml with `split` set to the ids in `file`; nothing else changes, comments stay."""
    block = re.search(r"^split:.*?(?=^\S|\Z)", params, re.M | re.S)
    changed = params
    if block:
        text = block[0]
        for key, value in (("selector", "ids"), ("file", file.as_posix())):
            text = re.sub(rf"^( +{key}:)[ \t]*[^\s#]+", rf"\1 {value}", text, count=1, flags=re.M)
        changed = params[: block.start()] + text + params[block.end() :]
    read = yaml.safe_load(changed)["split"]
    if (read["selector"], read["file"]) != ("ids", file.as_posix()):
        raise ConfigError("params.yaml: split.selector and split.file could not be set; write one key on a line each")
    return changed
