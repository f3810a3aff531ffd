"""The targets of a sweep of labels: rows whose labels are to be replaced, and all labels that were ever corrected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.data.corrected import CorrectedLabels
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.data.tombstones import home
from expunge.ledger.forgotten import ForgottenRows, label_pairs
from expunge.system.errors import DataError
from expunge.system.paths import DATASET, FORGOTTEN

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class LabelTargets:
    """The `LabelTargets` of a sweep, over the present dataset.

    `old` and `new` are the labels `(rows,)` before and after the sweep, `train` is the mask of the training rows.
    `corrected` covers the labels of this sweep and all that were corrected earlier.
    """

    root: Path
    dataset: Dataset
    old: Labels
    new: Labels
    train: Mask
    corrected: CorrectedLabels

    taught: ClassVar[str] = "labels that were corrected"

    @classmethod
    def find(cls, root: Path, labels: Mapping[str, str], keep: bool) -> LabelTargets:
        """Find the rows of `labels` (class name by id), and those whose old labels have come back.

        Without `keep` nothing is written, not even the key of the tombstones. Raises DataError for an id that is not
        in the dataset.
        """
        dataset = Dataset(root / DATASET, verify=False, erased="allow")
        table = dataset.table(["sample_id", "digest", "split"])
        ids, contents = table["sample_id"].to_pylist(), table["digest"].to_pylist()
        place = {sample_id: row for row, sample_id in enumerate(ids)}
        missing = sum(sample_id not in place for sample_id in labels)
        if missing:
            raise DataError(
                f"{dataset.directory}: {missing} of the rows to correct are not in it; run `dvc checkout` to bring "
                "back the dataset that they belong to"
            )
        wanted = [contents[place[sample_id]] for sample_id in labels]
        corrected = CorrectedLabels.open(home(root), keep).plus(labels, wanted, labels.values())
        old = dataset.labels()
        new = corrected.corrected(dataset.directory, ids, contents, old, dataset.class_names)
        return cls(root, dataset, old, new, np.array(table["split"].to_pylist()) == TRAIN, corrected)

    @cached_property
    def changed(self) -> Mask:
        """The rows whose labels change."""
        return np.asarray(self.old != self.new)

    @property
    def trained(self) -> bool:
        """Whether labels of training rows change."""
        return bool((self.changed & self.train).any())

    @cached_property
    def by_id(self) -> dict[str, int]:
        """The new labels of the rows whose labels change."""
        ids = self.dataset.sample_ids()
        return {ids[i]: int(self.new[i]) for i in np.flatnonzero(self.changed)}

    @property
    def covering(self) -> list[str]:
        """The digests of the requests after which a model was provably not taught the old labels."""
        ids, rows = self.dataset.sample_ids(), np.flatnonzero(self.changed & self.train).tolist()
        pairs = label_pairs([ids[i] for i in rows], self.old[rows].tolist(), self.dataset.class_names)
        forgotten = ForgottenRows(self.root / FORGOTTEN)
        return sorted(r for r in forgotten.requests() if pairs and forgotten.mask(r, pairs).all())
