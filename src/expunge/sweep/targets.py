"""The targets of a sweep: rows by id and by content, people whose last row is erased, and the new tombstones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.data.dataset import Dataset
from expunge.data.schema import DIGEST_BYTES, TRAIN
from expunge.data.tombstones import Tombstones, home
from expunge.system.errors import DataError
from expunge.system.paths import DATASET

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Targets:
    """The `Targets` of a sweep name the rows to erase.

    `erased` and `train` are masks `(rows,)` over the present dataset, and `ids` are the ids of the erased rows in it.
    `subjects` are the people of whom no row is retained. `twins` is the number of retained rows with the content of an
    erased row.

    `tombstones` cover these rows and all that were erased earlier; they alone decide what is erased in other stores.
    """

    root: Path
    dataset: Dataset
    erased: Mask
    train: Mask
    ids: frozenset[str]
    subjects: frozenset[str]
    twins: int
    tombstones: Tombstones

    @classmethod
    def find(cls, root: Path, rows: Iterable[str], subjects: Iterable[str], keep: bool) -> Targets:
        """Find the rows by id, all rows of `subjects`, and rows that were erased earlier and have come back.

        Without `keep` nothing is written, not even the key of the tombstones. Raises DataError for an id or a person
        that is not and never was in the dataset, or if no training row would be left.
        """
        dataset = Dataset(root / DATASET, verify=False, erased="allow")  # verifying would read every shard
        tombstones = Tombstones.open(home(root), keep)
        columns = ["sample_id", "digest", "split", *(["subject"] if "subject" in dataset.columns else [])]
        table = dataset.table(columns)
        ids: list[str] = table["sample_id"].to_pylist()
        contents: list[bytes] = table["digest"].to_pylist()
        people = table["subject"].to_pylist() if "subject" in table.column_names else [None] * len(ids)
        wanted, persons = set(rows), set(subjects)
        _refuse_unknown("rows", wanted - set(ids), tombstones, dataset)
        _refuse_unknown("people", persons - set(people), tombstones, dataset)
        named = np.array([i in wanted or p in persons for i, p in zip(ids, people, strict=True)], bool)
        erased = named | tombstones.hits(ids, contents).any
        train = np.array([s == TRAIN for s in table["split"].to_pylist()], bool)
        if not (train & ~erased).any():
            raise DataError(f"{dataset.directory}: no training row would be left; erase the whole workspace instead")
        digests = np.frombuffer(b"".join(contents), f"V{DIGEST_BYTES}")
        twins = ~erased & np.isin(digests, digests[erased])
        twin_contents = {contents[i] for i in np.flatnonzero(twins)}
        positions = np.flatnonzero(erased).tolist()
        staying = {people[i] for i in np.flatnonzero(~erased)}
        departed = frozenset(p for i in positions if (p := people[i]) is not None and p not in staying)
        return cls(
            root,
            dataset,
            erased,
            train,
            frozenset(ids[i] for i in positions),
            departed,
            int(twins.sum()),
            # People get tombstones like ids, so that lists which name them are recognised later.
            tombstones.plus(
                [*(ids[i] for i in positions), *departed],
                (contents[i] for i in positions if contents[i] not in twin_contents),
            ),
        )

    taught: ClassVar[str] = "erased rows"  # what models were taught that have to go

    @property
    def trained(self) -> bool:
        """Whether training rows are among the rows to erase."""
        return bool((self.erased & self.train).any())

    def hits(self, ids: Sequence[str], contents: Sequence[bytes] | None = None) -> Mask:
        """Return which rows of a store are to be erased, as a mask `(n,)`.

        Ids of dataset rows are cached, because keyed digests are slow.
        """
        if contents is not None:
            return self.tombstones.hits(ids, contents).any
        known = [self._known.get(i) for i in ids]
        strangers = [i for i, state in enumerate(known) if state is None]
        found = np.array([bool(state) for state in known], bool)
        if strangers:
            found[strangers] = self.tombstones.hits([ids[i] for i in strangers]).any
        return found

    @cached_property
    def _known(self) -> dict[str, bool]:
        return dict(zip(self.dataset.sample_ids(), self.erased.tolist(), strict=True))


def _refuse_unknown(what: str, unknown: set[str], tombstones: Tombstones, dataset: Dataset) -> None:
    values = sorted(unknown)
    never = int((~tombstones.hits(values).any).sum()) if values else 0
    if never:
        raise DataError(
            f"{dataset.directory}: {never} of the {what} to erase are not in it and never were; check the list, or "
            "run `dvc checkout` to bring back the dataset that they belong to"
        )
